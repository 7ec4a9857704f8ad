"""What stored responses promise, one at a time, in memory and in databases."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from internal.biz.conversations import TURN_SIZE
from internal.biz.errors import NotFound
from internal.biz.ids import new_id
from internal.biz.items import Place
from internal.biz.models import (
    Failure,
    ItemKind,
    Message,
    OutputFormat,
    OutputItem,
    Request,
    Response,
    Role,
    Sampling,
    Settings,
    Status,
    Tool,
    ToolCall,
    Tooling,
    Usage,
)
from internal.biz.ports import History
from internal.biz.responses import ResponseStore
from internal.biz.sampling import RareSampling
from internal.biz.scores import TokenScore
from internal.data.memory_history import MemoryHistory
from internal.data.sql.conversations import SqlConversations
from internal.data.sql.database import Database
from internal.data.sql.history import SqlHistory
from internal.data.sql.responses import SqlResponses
from internal.data.sql.tables import conversations, responses

if TYPE_CHECKING:
    from test.conftest import OpenDatabase, RequestFactory

CALL = ToolCall("call_1", "weather", '{"city": "Graz"}')
USER, ADA = "user", "ada"


@dataclass(frozen=True)
class Shelf:
    """Where turns are stored, and read one by one."""

    history: History
    responses: ResponseStore
    database: Database | None = None

    async def turn(
        self, request: Request, *output: OutputItem, status: Status = Status.COMPLETED
    ) -> Response:
        begins = request.settings.conversation_id is not None
        await self.history.begin(request, None, begins=begins, wants_title=False)
        return await self.end(request, *output, status=status)

    async def end(self, request: Request, *output: OutputItem, status: Status = Status.COMPLETED) -> Response:
        response = Response.of(request, status, output=output, usage=Usage(7, 3, 2, 1), attempt=1)
        await self.history.finish([response])
        return response

    async def dialogue(self, response_id: str) -> list[str]:
        """What a turn that follows this response would be told of."""
        following = Request("resp_f", "m", ADA, 0.0, (), Settings(previous_response_id=response_id))
        await self.history.check(following, None)
        (before,) = await self.history.before([following], 0)
        return [message.content for message in before]


@pytest.fixture
async def shelf(history_url: str, open_database: "OpenDatabase", watched_loop: None) -> AsyncIterator[Shelf]:
    if not history_url:
        memory = MemoryHistory()
        yield Shelf(memory, memory)
        return
    async with open_database(history_url) as database:
        yield Shelf(SqlHistory(database), SqlResponses(database), database)


def asking(make_request: "RequestFactory", text: str = "hello", **settings: object) -> Request:
    return make_request(text, settings=Settings(**settings), user=ADA, response_id=new_id("resp"))  # type: ignore[arg-type]


def said(text: str, status: Status = Status.COMPLETED) -> OutputItem:
    return OutputItem(ItemKind.MESSAGE, text, status)


async def test_a_response_is_read_as_it_ended(shelf: Shelf, make_request: "RequestFactory") -> None:
    settings = Settings(
        instructions="be brief",
        sampling=Sampling(temperature=0.5, seed=7, rare=RareSampling(logit_bias=((5, -1.0),))),
        output_format=OutputFormat(pattern="a+"),
        tooling=Tooling((Tool("weather", "how it is", {"type": "object"}),), "required"),
        logprobs=1,
        background=True,
        metadata={"a": "b"},
    )
    request = replace(asking(make_request), settings=settings)
    scored = replace(said("let me see"), scores=(TokenScore("let me see", -0.5),))
    output = (
        OutputItem(ItemKind.REASONING, "hm"),
        said("let me see"),
        OutputItem(ItemKind.FUNCTION_CALL, "", call=CALL),
    )
    ended = await shelf.turn(request, output[0], scored, output[2])
    found = await shelf.responses.get(request.response_id, ADA)
    # How likely the tokens were takes a hundred times as much, and is not kept.
    assert replace(found, completed_at=None) == replace(ended, output=output)
    assert (found.completed_at is None) is (shelf.database is None)


async def test_one_that_runs_has_no_output_yet(shelf: Shelf, make_request: "RequestFactory") -> None:
    request = asking(make_request)
    await shelf.history.begin(request, None, begins=False, wants_title=False)
    found = await shelf.responses.get(request.response_id, None)
    assert found == Response.of(request, Status.IN_PROGRESS)


async def test_one_of_an_older_version_is_read_as_it_was_meant(
    shelf: Shelf, make_request: "RequestFactory"
) -> None:
    if shelf.database is None:
        return
    response = await shelf.turn(asking(make_request), said("hello"))
    old = '{"max_output_tokens": 5, "temperature": null, "top_p": 0.5, "truncation": "disabled"}'
    await shelf.database.change(update(responses).values(settings=old))
    read = await shelf.responses.get(response.id, ADA)
    assert read.settings == Settings(max_output_tokens=5, sampling=Sampling(top_p=0.5))


async def test_one_that_was_cut_off_says_so(shelf: Shelf, make_request: "RequestFactory") -> None:
    output = (OutputItem(ItemKind.REASONING, "hm"), said("half", Status.INCOMPLETE))
    ended = await shelf.turn(asking(make_request), *output, status=Status.INCOMPLETE)
    found = await shelf.responses.get(ended.id, ADA)
    assert (found.status, found.output) == (Status.INCOMPLETE, output)


async def test_one_that_failed_says_why_and_nothing_else(
    shelf: Shelf, make_request: "RequestFactory"
) -> None:
    request = asking(make_request)
    await shelf.history.begin(request, None, begins=False, wants_title=False)
    failure = Failure("engine_failed", "it broke")
    failed = Response.of(request, Status.FAILED, output=(said("half"),), failure=failure, attempt=1)
    await shelf.history.finish([failed])
    found = await shelf.responses.get(request.response_id, ADA)
    assert (found.status, found.failure, found.output) == (Status.FAILED, failure, ())


async def test_what_was_asked_is_read_piece_by_piece(shelf: Shelf, make_request: "RequestFactory") -> None:
    other = ToolCall("call_2", "time", "{}")
    turn = (
        Message(Role.SYSTEM, "be brief"),
        Message(Role.ASSISTANT, "let me see", (CALL, other)),
        Message(Role.TOOL, "sunny", call_id="call_1"),
    )
    request = replace(asking(make_request), messages=turn)
    await shelf.turn(request, said("fine"))
    items = await shelf.responses.input(request.response_id, ADA)
    assert [(item.place, item.said) for item in items] == [
        (Place(request.response_id, position), message)
        for position, message in enumerate(
            (
                turn[0],
                Message(Role.ASSISTANT, "let me see"),
                Message(Role.ASSISTANT, "", (CALL,)),
                Message(Role.ASSISTANT, "", (other,)),
                turn[2],
            )
        )
    ]
    # What a model is told of it is whole again.
    following = asking(make_request, previous_response_id=request.response_id)
    (before,) = await shelf.history.before([following], 0)
    assert before == (*turn, Message(Role.ASSISTANT, "fine"))


@pytest.mark.parametrize("owner", ["eve", "nobody"])
async def test_another_s_is_not_found(shelf: Shelf, make_request: "RequestFactory", owner: str) -> None:
    response_id = (await shelf.turn(asking(make_request), said("fine"))).id
    for call in (shelf.responses.get, shelf.responses.input, shelf.responses.delete):
        with pytest.raises(NotFound) as theirs:
            await call(response_id, owner)
        with pytest.raises(NotFound) as nothing:
            await call("resp_none", owner)
        assert theirs.value.message.replace(response_id, "resp_none") == nothing.value.message
    assert (await shelf.responses.get(response_id, None)).text == "fine"


async def test_what_was_deleted_is_gone_and_what_followed_it_remains(
    shelf: Shelf, make_request: "RequestFactory"
) -> None:
    ids: list[str] = []
    for number in range(4):
        request = asking(make_request, f"q{number}", previous_response_id=ids[-1] if ids else None)
        ids.append((await shelf.turn(request, said(f"a{number}"))).id)
    await shelf.responses.delete(ids[1], ADA)
    for call in (shelf.responses.get, shelf.responses.input, shelf.responses.delete):
        with pytest.raises(NotFound):
            await call(ids[1], None)
    with pytest.raises(NotFound) as refused:
        await shelf.dialogue(ids[1])
    assert refused.value.code == "previous_response_not_found"
    assert await shelf.dialogue(ids[3]) == ["q0", "a0", "q2", "a2", "q3", "a3"]
    await shelf.responses.delete(ids[0], None)
    assert await shelf.dialogue(ids[3]) == ["q2", "a2", "q3", "a3"]


@pytest.mark.parametrize("which", ["first", "last"])
async def test_a_conversation_goes_on_without_what_was_deleted(
    shelf: Shelf, make_request: "RequestFactory", which: str
) -> None:
    conversation = new_id("conv")
    first = asking(make_request, "q0", conversation_id=conversation)
    await shelf.turn(first, said("a0"))
    last = asking(make_request, "q1", conversation_id=conversation)
    await shelf.history.begin(last, None, begins=False, wants_title=False)
    await shelf.end(last, said("a1"))
    await shelf.responses.delete((first if which == "first" else last).response_id, ADA)
    following = asking(make_request, "q2", conversation_id=conversation)
    await shelf.history.begin(following, None, begins=False, wants_title=False)
    (before,) = await shelf.history.before([following], 0)
    assert [message.content for message in before] == (["q1", "a1"] if which == "first" else ["q0", "a0"])


async def test_those_who_delete_neighbours_at_once_delete_once_and_leave_no_gap(
    shelf: Shelf, make_request: "RequestFactory"
) -> None:
    conversation, ids = new_id("conv"), list[str]()
    for number in range(8):
        request = asking(make_request, f"q{number}", conversation_id=conversation)
        await shelf.history.begin(request, None, begins=number == 0, wants_title=False)
        ids.append((await shelf.end(request, said(f"a{number}"))).id)
    middle = ids[1:7]
    twice = (shelf.responses.delete(one, ADA) for one in (*middle, *reversed(middle)))
    for error in await asyncio.gather(*twice, return_exceptions=True):
        assert error is None or isinstance(error, NotFound)
    assert await shelf.dialogue(ids[7]) == ["q0", "a0", "q7", "a7"]
    if shelf.database is not None:
        (row,) = await shelf.database.read(select(conversations.c.size))
        assert row.size == 2 * (TURN_SIZE + 4)


async def test_what_ends_more_than_once_takes_its_room_once(
    shelf: Shelf, make_request: "RequestFactory"
) -> None:
    request = asking(make_request, "1234", conversation_id=new_id("conv"))
    await shelf.history.begin(request, None, begins=True, wants_title=False)
    for attempt, text in ((1, "a" * 20), (1, "a" * 20), (2, "b" * 30), (1, "late"), (3, "c" * 10)):
        ended = Response.of(request, Status.COMPLETED, output=(said(text),), attempt=attempt)
        await shelf.history.finish([ended])
    if shelf.database is not None:
        (row,) = await shelf.database.read(select(conversations.c.size))
        assert row.size == TURN_SIZE + 4 + 10


async def test_one_that_runs_can_be_deleted_and_its_end_harms_nothing(
    shelf: Shelf, make_request: "RequestFactory"
) -> None:
    conversation = new_id("conv")
    request = asking(make_request, conversation_id=conversation)
    await shelf.history.begin(request, None, begins=True, wants_title=False)
    await shelf.responses.delete(request.response_id, None)
    await shelf.end(request, said("late"))
    with pytest.raises(NotFound):
        await shelf.responses.get(request.response_id, None)
    following = asking(make_request, "q2", conversation_id=conversation)
    await shelf.history.begin(following, None, begins=False, wants_title=False)
    assert await shelf.history.before([following], 0) == [()]


async def test_what_is_of_a_deleted_conversation_is_not_found(
    database: Database, make_request: "RequestFactory"
) -> None:
    shelf = Shelf(SqlHistory(database), SqlResponses(database), database)
    conversation = new_id("conv")
    response_id = (await shelf.turn(asking(make_request, conversation_id=conversation), said("a"))).id
    assert (await shelf.responses.get(response_id, ADA)).text == "a"
    await SqlConversations(database).delete(conversation, ADA)
    with pytest.raises(NotFound):
        await shelf.responses.get(response_id, ADA)
