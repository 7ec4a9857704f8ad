"""What the items of stored conversations promise, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import bindparam, select, update

from internal.biz.attachments import Attachments
from internal.biz.conversations import Conversations
from internal.biz.dialogue import Dialogue
from internal.biz.errors import Conflict, InvalidRequest, NotFound
from internal.biz.ids import new_id
from internal.biz.items import OUTPUT, Item, Place
from internal.biz.models import (
    Attachment,
    Caller,
    ItemKind,
    Message,
    OutputItem,
    Request,
    Response,
    Role,
    Settings,
    Status,
    ToolCall,
)
from internal.data.sql.conversations import SqlConversations
from internal.data.sql.database import Database, Write
from internal.data.sql.history import SqlHistory
from internal.data.sql.items import SqlItems
from internal.data.sql.responses import SqlResponses
from internal.data.sql.tables import conversations, responses

if TYPE_CHECKING:
    from test.conftest import RequestFactory

ADA, EVE = "ada", "eve"
_SEAT = Write(
    0,
    update(responses)
    .where(responses.c.id == bindparam("b_id"))
    .values(batch_id="batch_1", batch_position=bindparam("b_seat")),
)
CALL = ToolCall("call_1", "weather", "{}")


def user(text: str) -> Message:
    return Message(Role.USER, text)


class Thread:
    """A conversation of Ada's, and all that is done with it."""

    def __init__(self, database: Database, make_request: "RequestFactory") -> None:
        self._make_request = make_request
        self.history = SqlHistory(database)
        self.dialogue = Dialogue(SqlItems(database), self.history, Attachments())
        self.conversations = Conversations(SqlConversations(database))
        self.responses = SqlResponses(database)
        self.id = ""

    async def begin(self) -> "Thread":
        self.id = (await self.conversations.create(ADA)).id
        return self

    async def ask(self, text: str) -> Request:
        settings = Settings(conversation_id=self.id)
        request = self._make_request(text, settings=settings, user=ADA, response_id=new_id("resp"))
        await self.history.begin(request, None, begins=False, wants_title=False)
        return request

    async def turn(self, text: str, *output: OutputItem, status: Status = Status.COMPLETED) -> str:
        request = await self.ask(text)
        await self.history.finish([Response.of(request, status, output=output, attempt=1)])
        return request.response_id

    async def items(
        self, after: Place | None = None, limit: int = 100, *, newest_first: bool = False
    ) -> Sequence[Item]:
        return await self.dialogue.page(self.id, ADA, after, limit, newest_first=newest_first)

    async def seen(self) -> list[str]:
        """What the next turn is told of."""
        request = await self.ask("?")
        (before,) = await self.history.before([request], 0)
        await self.history.finish([Response.of(request, Status.FAILED, attempt=1)])
        return [message.content for message in before]


@pytest.fixture
async def thread(database: Database, make_request: "RequestFactory") -> Thread:
    return await Thread(database, make_request).begin()


def said(text: str, status: Status = Status.COMPLETED) -> OutputItem:
    return OutputItem(ItemKind.MESSAGE, text, status)


THOUGHT = OutputItem(ItemKind.REASONING, "hm")


async def test_all_that_was_said_is_listed_in_pieces(thread: Thread) -> None:
    first = await thread.turn("one", THOUGHT, said("1"), OutputItem(ItemKind.FUNCTION_CALL, "", call=CALL))
    second = await thread.turn("two", said("2", Status.INCOMPLETE), status=Status.INCOMPLETE)
    await thread.turn("three", status=Status.FAILED)
    running = await thread.ask("four")
    assert await thread.items() == [
        Item(Place(first, 0), user("one")),
        Item(Place(first, OUTPUT), THOUGHT),
        Item(Place(first, OUTPUT + 1), said("1")),
        Item(Place(first, OUTPUT + 2), OutputItem(ItemKind.FUNCTION_CALL, "", call=CALL)),
        Item(Place(second, 0), user("two")),
        Item(Place(second, OUTPUT), said("2", Status.INCOMPLETE)),
        Item(Place(running.response_id, 0), user("four")),
    ]


@pytest.mark.parametrize("newest_first", [False, True])
async def test_pages_follow_one_another(thread: Thread, newest_first: bool) -> None:
    for number in range(3):
        await thread.turn(f"q{number}", said(f"a{number}"))
    whole = await thread.items(newest_first=newest_first)
    assert list(whole) == sorted(whole, key=lambda item: item.place, reverse=newest_first)
    pages: list[Item] = []
    while page := await thread.items(pages[-1].place if pages else None, 4, newest_first=newest_first):
        assert len(page) <= 4
        pages += page
    assert pages == whole
    for item in whole:
        assert await thread.dialogue.get(thread.id, ADA, item.place) == item


async def test_what_is_added_is_what_the_next_turn_continues(thread: Thread) -> None:
    turn = [
        user("I am Ada"),
        Message(Role.ASSISTANT, "hi", (CALL,)),
        Message(Role.TOOL, "ok", call_id="call_1"),
    ]
    added = await thread.dialogue.add(Caller(ADA), thread.id, turn)
    assert added == await thread.items()
    assert [item.place.position for item in added] == [0, 1, 2, 3]
    await thread.turn("who am I?", said("Ada"))
    await thread.dialogue.add(Caller(ADA), thread.id, [user("right")])
    assert await thread.seen() == ["I am Ada", "hi", "ok", "who am I?", "Ada", "right"]
    # It is no answer of anybody's.
    with pytest.raises(NotFound):
        await thread.responses.get(added[0].place.response_id, ADA)


async def test_what_is_added_may_come_with_files(thread: Thread) -> None:
    sent = Attachment("a.txt", "", url="data:text/plain;base64,aGVsbG8=")
    with_file = Message(Role.USER, "look", attachments=(sent,))
    (item,) = await thread.dialogue.add(Caller(ADA), thread.id, [with_file])
    assert isinstance(item.said, Message)
    assert item.said.attachments == (Attachment("a.txt", "text/plain", text="hello"),)
    assert await thread.items() == [item]


async def test_nothing_is_added_to_what_is_busy_or_when_there_is_nothing(thread: Thread) -> None:
    with pytest.raises(InvalidRequest):
        await thread.dialogue.add(Caller(ADA), thread.id, [])
    await thread.ask("one")
    with pytest.raises(Conflict) as locked:
        await thread.dialogue.add(Caller(ADA), thread.id, [user("more")])
    assert locked.value.code == "conversation_locked"
    assert len(await thread.items()) == 1


async def test_what_was_deleted_is_not_seen_any_more(thread: Thread) -> None:
    await thread.turn("one", THOUGHT, said("1"))
    await thread.turn("two", said("2"))
    question, thought, answer = (await thread.items())[:3]
    for item in (question, thought):
        await thread.dialogue.delete(thread.id, ADA, item.place)
        with pytest.raises(NotFound):
            await thread.dialogue.get(thread.id, ADA, item.place)
        with pytest.raises(NotFound):
            await thread.dialogue.delete(thread.id, ADA, item.place)
    assert await thread.seen() == ["1", "two", "2"]
    assert (await thread.items())[0] == answer
    assert (await thread.responses.get(answer.place.response_id, ADA)).output == (said("1"),)


async def test_what_is_being_answered_is_not_deleted(thread: Thread) -> None:
    request = await thread.ask("one")
    (item,) = await thread.items()
    with pytest.raises(Conflict):
        await thread.dialogue.delete(thread.id, ADA, item.place)
    await thread.history.finish([Response.of(request, Status.COMPLETED, output=(said("1"),), attempt=1)])
    await thread.dialogue.delete(thread.id, ADA, item.place)
    assert await thread.seen() == ["1"]


async def test_what_several_models_were_asked_is_said_once_and_deleted_everywhere(
    thread: Thread, database: Database
) -> None:
    request = await thread.ask("one")
    await thread.history.finish([Response.of(request, Status.COMPLETED, output=(said("1"),), attempt=1)])
    other = await thread.turn("one", said("uno"))
    seats = [
        {"b_id": response_id, "b_seat": seat} for seat, response_id in enumerate((request.response_id, other))
    ]
    await database.write((_SEAT, seats))
    items = await thread.items()
    assert [item.said for item in items] == [user("one"), said("1"), said("uno")]
    await thread.dialogue.delete(thread.id, ADA, items[0].place)
    assert [item.said for item in await thread.items()] == [said("1"), said("uno")]
    assert await thread.responses.input(other, ADA) == []


async def test_the_room_of_what_was_deleted_is_free_again(thread: Thread, database: Database) -> None:
    await thread.turn("one", said("1" * 1000))
    before, place = await size(database, thread.id), (await thread.items())[1].place
    twice = (thread.dialogue.delete(thread.id, ADA, place) for _ in range(2))
    for error in await asyncio.gather(*twice, return_exceptions=True):
        assert error is None or isinstance(error, NotFound)
    assert await size(database, thread.id) == before - 1000


async def size(database: Database, conversation_id: str) -> int:
    (row,) = await database.read(select(conversations.c.size).where(conversations.c.id == conversation_id))
    return int(row.size)


@pytest.mark.parametrize("whose", ["another user's", "deleted", "of another conversation"])
async def test_what_is_not_theirs_is_not_found(thread: Thread, whose: str) -> None:
    await thread.turn("one", said("1"))
    item, conversation_id, caller = (await thread.items())[0], thread.id, ADA
    if whose == "another user's":
        caller = EVE
    elif whose == "deleted":
        await thread.conversations.delete(conversation_id, ADA)
    else:
        conversation_id = (await thread.conversations.create(ADA)).id
    dialogue = thread.dialogue
    for call in (dialogue.get, dialogue.delete):
        with pytest.raises(NotFound):
            await call(conversation_id, caller, item.place)
    if whose == "of another conversation":
        assert await dialogue.page(conversation_id, caller, None, 10, newest_first=True) == []
        return
    with pytest.raises(NotFound):
        await dialogue.page(conversation_id, caller, None, 10, newest_first=True)
    with pytest.raises(NotFound):
        await dialogue.add(Caller(caller), conversation_id, [user("mine")])


async def test_metadata_is_kept_until_it_is_replaced(thread: Thread) -> None:
    labelled = await thread.conversations.create(ADA, metadata={"a": "b", "ä": "🍏"})
    assert (await thread.conversations.get(labelled.id, ADA)).metadata == {"a": "b", "ä": "🍏"}
    assert (await thread.conversations.label(labelled.id, ADA, {"c": "d"})).metadata == {"c": "d"}
    assert (await thread.conversations.label(labelled.id, ADA, {})).metadata == {}
    with pytest.raises(NotFound):
        await thread.conversations.label(labelled.id, EVE, {"mine": "!"})
