"""What every storage promises of turns that stand beside one another, and of the way between them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, update

from internal.biz.attachments import Attachments
from internal.biz.batches import Batch, BatchStore
from internal.biz.conversations import MAX_SIZE, Conversations
from internal.biz.dialogue import Dialogue
from internal.biz.errors import Conflict, InvalidRequest, NotFound
from internal.biz.ids import new_id, new_ids
from internal.biz.models import (
    Caller,
    Failure,
    ItemKind,
    Message,
    OutputItem,
    Request,
    Response,
    Role,
    Seat,
    Settings,
    Status,
    Usage,
)
from internal.biz.ports import History
from internal.biz.responses import ResponseStore
from internal.biz.turns import Turn, Turns
from internal.data.memory_history import MemoryHistory
from internal.data.sql import turns as sql_turns
from internal.data.sql.batches import SqlBatches
from internal.data.sql.conversations import SqlConversations
from internal.data.sql.database import Database
from internal.data.sql.erasure import delete_user_data
from internal.data.sql.history import SqlHistory
from internal.data.sql.items import SqlItems
from internal.data.sql.responses import SqlResponses
from internal.data.sql.tables import conversations, messages, responses
from internal.data.sql.titles import SqlTitles
from internal.data.sql.turns import SqlTurns

if TYPE_CHECKING:
    from test.conftest import OpenDatabase

ADA, EVE = "ada", "eve"
TWO = ("one", "two")


@dataclass
class Tree:
    """A conversation of Ada's. What was asked is called as its answer, but for the case: `Q` is answered by
    `q`, and by `q/two` of the model `two`."""

    history: History
    responses: ResponseStore
    batches: BatchStore
    id: str = field(default_factory=lambda: new_id("conv"))
    begins: bool = True

    def asking(
        self, question: str, replaces: str | None = None, models: Sequence[str] = ("one",)
    ) -> list[Request]:
        settings = Settings(conversation_id=self.id, replaces=replaces)
        said, batch = (Message(Role.USER, question.upper()),), new_id("batch")
        return [
            Request(one, model, ADA, 1000.5, said, settings, Seat(batch, n) if len(models) > 1 else None)
            for n, (model, one) in enumerate(zip(models, new_ids("resp", len(models)), strict=True))
        ]

    async def begin(self, requests: Sequence[Request]) -> None:
        begins, self.begins = self.begins, False
        if requests[0].batch is None:
            await self.history.begin(requests[0], ADA, begins=begins, wants_title=False)
        else:
            await self.history.begin_batch(requests, ADA, begins=begins, wants_title=False)

    async def ask(
        self, question: str, replaces: str | None = None, models: Sequence[str] = ("one",)
    ) -> list[Request]:
        requests = self.asking(question, replaces, models)
        await self.begin(requests)
        return requests

    async def end(self, request: Request, status: Status = Status.COMPLETED) -> None:
        text = request.prompt.lower() + ("" if request.model == "one" else f"/{request.model}")
        output = (OutputItem(ItemKind.REASONING, "hm"), OutputItem(ItemKind.MESSAGE, text))
        failure = Failure("generation_failed", "it broke") if status is Status.FAILED else None
        ended = Response.of(
            request,
            status,
            output=output,
            usage=Usage(3, 0, 2),
            failure=failure,
            attempt=1,
            first_token_at=2000.5,
        )
        await self.history.finish([ended])

    async def turn(
        self, question: str, replaces: str | None = None, status: Status = Status.COMPLETED
    ) -> str:
        (request,) = await self.ask(question, replaces)
        await self.end(request, status)
        return request.response_id

    async def batch(self, question: str, replaces: str | None = None) -> list[str]:
        requests = await self.ask(question, replaces, TWO)
        for request in requests:
            await self.end(request)
        return [request.response_id for request in requests]

    async def told(self, request: Request) -> str:
        """What the model is told of that was said before."""
        (before,) = await self.history.before([request], 0)
        return " ".join(message.content for message in before)

    async def seen(self) -> str:
        """What the next turn would be told of."""
        (request,) = await self.ask("?")
        told = await self.told(request)
        await self.responses.delete(request.response_id, None)
        return told


@pytest.fixture
async def tree(history_url: str, open_database: "OpenDatabase", watched_loop: None) -> AsyncIterator[Tree]:
    if not history_url:
        memory = MemoryHistory()
        yield Tree(memory, memory, memory)
        return
    async with open_database(history_url) as database:
        yield Tree(SqlHistory(database), SqlResponses(database), SqlBatches(database))


# ── one turn in the place of another ─────────────────────────────────────────────────────────────


async def test_what_replaces_a_turn_continues_what_that_one_did(tree: Tree) -> None:
    await tree.turn("a")
    b = await tree.turn("b")
    (request,) = await tree.ask("c", replaces=b)
    assert await tree.told(request) == "A a"
    await tree.end(request)
    assert await tree.seen() == "A a C c"
    await tree.turn("d")
    assert await tree.seen() == "A a C c D d"


async def test_the_first_turn_can_be_replaced_too(tree: Tree) -> None:
    a = await tree.turn("a")
    await tree.turn("b")
    (request,) = await tree.ask("c", replaces=a)
    assert await tree.told(request) == ""
    await tree.end(request)
    assert await tree.seen() == "C c"


async def test_what_was_replaced_can_be_replaced_again(tree: Tree) -> None:
    await tree.turn("a")
    b = await tree.turn("b")
    c = await tree.turn("c", replaces=b)
    await tree.turn("d", replaces=b)
    await tree.turn("e", replaces=c)
    assert await tree.seen() == "A a E e"


@pytest.mark.parametrize("status", [Status.FAILED, Status.INCOMPLETE, Status.CANCELLED])
async def test_what_did_not_end_well_can_be_replaced(tree: Tree, status: Status) -> None:
    await tree.turn("a")
    b = await tree.turn("b", status=status)
    await tree.turn("c", replaces=b)
    assert await tree.seen() == "A a C c"


async def test_where_what_replaces_a_turn_fails_the_turn_before_goes_on(tree: Tree) -> None:
    await tree.turn("a")
    b = await tree.turn("b")
    await tree.turn("c", replaces=b, status=Status.FAILED)
    assert await tree.seen() == "A a"


async def test_several_models_can_replace_one_and_one_several(tree: Tree) -> None:
    await tree.turn("a")
    b = await tree.turn("b")
    requests = await tree.ask("c", replaces=b, models=TWO)
    assert [await tree.told(request) for request in requests] == ["A a"] * 2
    for request in reversed(requests):
        await tree.end(request)
    assert await tree.seen() == "A a C c"
    await tree.turn("d", replaces=requests[1].response_id)
    assert await tree.seen() == "A a D d"


async def test_a_turn_is_replaced_once_however_often_it_is_begun(tree: Tree) -> None:
    a = await tree.turn("a")
    requests = tree.asking("b", replaces=a)
    for _ in range(2):
        await tree.begin(requests)
    await tree.end(requests[0])
    await tree.begin(requests)
    assert await tree.seen() == "B b"


async def test_nothing_is_replaced_while_an_answer_runs(tree: Tree) -> None:
    a = await tree.turn("a")
    (running,) = await tree.ask("b")
    for replaces in (a, running.response_id):
        with pytest.raises(Conflict) as error:
            await tree.ask("c", replaces=replaces)
        assert error.value.code == "conversation_locked"
    await tree.end(running)
    assert await tree.seen() == "A a B b"


async def test_of_those_who_replace_at_once_one_does_and_follows_what_it_named(tree: Tree) -> None:
    ids = [await tree.turn(name) for name in "abc"]
    asked = [tree.asking(f"{n}", replaces=one) for n, one in enumerate((None, *ids, ids[0]))]
    results = await asyncio.gather(*(tree.begin(one) for one in asked), return_exceptions=True)
    (winner,) = [n for n, result in enumerate(results) if result is None]
    assert all(isinstance(result, Conflict) for n, result in enumerate(results) if n != winner)
    before = ("A a B b C c", "", "A a", "A a B b", "")[winner]
    assert await tree.told(asked[winner][0]) == before
    await tree.end(asked[winner][0])
    assert await tree.seen() == f"{before} {winner} {winner}".strip()


@pytest.mark.parametrize("unknown", ["resp_unknown", "", "' OR 1=1 --", "\0", "🙂", "another's"])
async def test_what_is_not_of_the_conversation_cannot_be_replaced(tree: Tree, unknown: str) -> None:
    await tree.turn("a")
    if unknown == "another's":
        unknown = await replace(tree, id=new_id("conv"), begins=True).turn("b")
    for requests in (tree.asking("c", unknown), tree.asking("c", unknown, TWO)):
        with pytest.raises(NotFound) as error:
            await tree.begin(requests)
        assert (error.value.code, error.value.param) == ("response_not_found", "replaces")
        with pytest.raises(NotFound):
            await tree.responses.get(requests[0].response_id, None)
    assert await tree.seen() == "A a"


async def test_an_answer_aside_cannot_be_chosen_from_its_batch(tree: Tree) -> None:
    first, second = await tree.batch("a")
    await tree.turn("b")
    batch_id = await batch_of(tree, first)
    await tree.turn("c", replaces=first)
    for response_id in (first, second):
        await tree.batches.choose(batch_id, response_id)
    assert await tree.seen() == "C c"


async def batch_of(tree: Tree, response_id: str) -> str:
    seat = (await tree.responses.get(response_id, None)).batch
    assert seat is not None
    return seat.batch_id


# ── in a database only ───────────────────────────────────────────────────────────────────────────


@dataclass
class Grove(Tree):
    """With all that looks at the tree."""

    conversations: Conversations = field(kw_only=True)
    dialogue: Dialogue = field(kw_only=True)
    turns: Turns = field(kw_only=True)

    async def go_on_from(self, response_id: str) -> None:
        await self.conversations.go_on_from(self.id, ADA, response_id)

    async def listed(self) -> str:
        """What a client sees that knows nothing of branches; it is the same everywhere."""
        said = [message.content for message in await self.conversations.messages(self.id, ADA)]
        assert (await self.conversations.get(self.id, ADA)).message_count == len(said)
        items = await self.dialogue.page(self.id, ADA, None, 100, newest_first=False)
        texts = [it.said.content if isinstance(it.said, Message) else it.said.text for it in items]
        assert [text for text in texts if text != "hm"] == said
        return " ".join(said)

    async def all(self) -> list[Turn]:
        return list((await self.turns.page(self.id, ADA, None, 100, newest_first=False)).turns)

    async def aside(self) -> str:
        """The questions of those that stand aside."""
        return "".join(said(turn) for turn in await self.all() if turn.aside)

    async def head(self) -> str | None:
        return (await self.turns.page(self.id, ADA, None, 1, newest_first=True)).head_id


def said(turn: Turn) -> str:
    (item,) = turn.asked
    assert isinstance(item.said, Message)
    return item.said.content


@pytest.fixture
def grove(database: Database) -> Grove:
    history = SqlHistory(database)
    return Grove(
        history,
        SqlResponses(database),
        SqlBatches(database),
        conversations=Conversations(SqlConversations(database)),
        dialogue=Dialogue(SqlItems(database), history, Attachments()),
        turns=Turns(SqlTurns(database)),
    )


async def test_what_was_replaced_and_what_followed_it_is_in_no_list(grove: Grove) -> None:
    await grove.turn("a")
    b = await grove.turn("b")
    await grove.turn("c")
    (running,) = await grove.ask("d", replaces=b)
    assert await grove.listed() == "A a D"
    assert await grove.aside() == "BC"
    await grove.end(running)
    assert await grove.listed() == "A a D d"
    await grove.turn("e")
    assert await grove.listed() == "A a D d E e"
    for search, found in (("E", 1), ("C", 0), ("b", 0)):
        page = await grove.conversations.page(ADA, search=search)
        # Its title is what was asked first.
        assert len(page.conversations) == found, search


async def test_a_turn_that_failed_stands_aside_once_it_is_replaced(grove: Grove) -> None:
    await grove.turn("a")
    b = await grove.turn("b", status=Status.FAILED)
    assert [message.content for message in await grove.conversations.messages(grove.id, ADA)] == [
        "A",
        "a",
        "B",
    ]
    await grove.turn("c", replaces=b)
    assert await grove.listed() == "A a C c"


async def test_all_turns_take_room(grove: Grove, database: Database) -> None:
    size = select(conversations.c.size)
    a = await grove.turn("a")
    ((before,),) = await database.read(size)
    await grove.turn("b", replaces=a)
    ((after,),) = await database.read(size)
    assert after == 2 * before
    await database.change(update(conversations).values(size=MAX_SIZE + 1))
    with pytest.raises(InvalidRequest) as error:
        await grove.ask("c", replaces=a)
    assert error.value.code == "conversation_full"
    assert await grove.listed() == "B b"


async def test_a_conversation_goes_on_from_any_of_its_answers(grove: Grove) -> None:
    a = await grove.turn("a")
    b = await grove.turn("b")
    c = await grove.turn("c")
    d = await grove.turn("d", replaces=b)
    for response_id, listed, aside in (
        (c, "A a B b C c", "D"),
        (b, "A a B b", "CD"),
        (a, "A a", "BCD"),
        (d, "A a D d", "BC"),
    ):
        await grove.go_on_from(response_id)
        assert await grove.head() == response_id
        assert (await grove.listed(), await grove.aside()) == (listed, aside)
        assert await grove.seen() == listed
    await grove.go_on_from(b)
    await grove.turn("e")
    assert await grove.listed() == "A a B b E e"


@pytest.mark.parametrize("status", [Status.INCOMPLETE, Status.CANCELLED])
async def test_a_conversation_goes_on_from_an_answer_that_was_cut_off(grove: Grove, status: Status) -> None:
    a = await grove.turn("a", status=status)
    await grove.turn("b", replaces=a)
    await grove.go_on_from(a)
    assert await grove.seen() == "A a"


async def test_a_conversation_goes_on_from_what_was_added_to_it(grove: Grove) -> None:
    await grove.turn("a")
    (added,) = await grove.dialogue.add(Caller(ADA), grove.id, [Message(Role.USER, "B")])
    await grove.turn("c", replaces=added.place.response_id)
    assert await grove.listed() == "A a C c"
    await grove.go_on_from(added.place.response_id)
    assert await grove.listed() == "A a B"


async def test_a_conversation_does_not_go_on_from_what_failed_runs_or_is_elsewhere(grove: Grove) -> None:
    a = await grove.turn("a")
    b = await grove.turn("b")
    failed = await grove.turn("c", status=Status.FAILED)
    elsewhere = await replace(grove, id=new_id("conv"), begins=True).turn("d")
    with pytest.raises(InvalidRequest) as refused:
        await grove.go_on_from(failed)
    assert (refused.value.code, refused.value.param) == ("response_failed", "head")
    for unknown in (elsewhere, "resp_none", "\0", "\ud83d"):
        with pytest.raises(NotFound) as missing:
            await grove.go_on_from(unknown)
        assert (missing.value.code, missing.value.param) == ("response_not_found", "head")
    (running,) = await grove.ask("e")
    for response_id in (a, running.response_id):
        with pytest.raises(Conflict) as locked:
            await grove.go_on_from(response_id)
        assert locked.value.code == "conversation_locked"
    await grove.end(running, Status.FAILED)
    assert await grove.head() == b


async def test_another_s_conversation_does_not_go_on_from_anywhere(grove: Grove) -> None:
    a = await grove.turn("a")
    b = await grove.turn("b")
    for conversation_id, user in ((grove.id, EVE), ("conv_none", ADA)):
        with pytest.raises(NotFound) as error:
            await grove.conversations.go_on_from(conversation_id, user, a)
        assert error.value.code == "conversation_not_found"
        with pytest.raises(NotFound):
            await grove.turns.page(conversation_id, user, None, 10, newest_first=True)
    assert await grove.head() == b
    await grove.conversations.delete(grove.id, ADA)
    with pytest.raises(NotFound):
        await grove.go_on_from(a)
    with pytest.raises(NotFound):
        await grove.turns.page(grove.id, ADA, None, 10, newest_first=True)


async def test_a_conversation_is_named_and_goes_on_or_neither(grove: Grove) -> None:
    a, _ = await grove.turn("a"), await grove.turn("b")
    before = await grove.conversations.get(grove.id, ADA)
    for head, title in (("resp_none", "new"), (a, " ")):
        with pytest.raises((NotFound, InvalidRequest)):
            await grove.conversations.go_on_from(grove.id, ADA, head, title)
    assert await grove.conversations.get(grove.id, ADA) == before
    named = await grove.conversations.go_on_from(grove.id, ADA, a, "new")
    assert (named.title, named.has_title, named.message_count) == ("new", True, 2)


async def test_who_goes_on_while_another_begins_a_turn_leaves_one_way(grove: Grove) -> None:
    a = await grove.turn("a")
    b = await grove.turn("b")
    for number in range(5):
        requests = grove.asking(f"c{number}")
        begun, gone = await asyncio.gather(grove.begin(requests), grove.go_on_from(a), return_exceptions=True)
        assert begun is None
        assert gone is None or isinstance(gone, Conflict)
        before = "A a B b" if isinstance(gone, Conflict) else "A a"
        assert await grove.told(requests[0]) == before
        await grove.end(requests[0])
        assert await grove.listed() == f"{before} C{number} c{number}"
        await grove.go_on_from(b)


# ── answers of several models ────────────────────────────────────────────────────────────────────


async def test_the_answers_of_a_batch_are_on_the_way_or_aside_together(grove: Grove) -> None:
    a = await grove.turn("a")
    first, second = await grove.batch("b")
    assert await grove.listed() == "A a B b b/two"
    await grove.turn("c", replaces=first)
    assert (await grove.listed(), await grove.aside()) == ("A a C c", "BB")
    await grove.go_on_from(second)
    assert (await grove.listed(), await grove.aside()) == ("A a B b b/two", "C")
    await grove.turn("d")
    assert await grove.listed() == "A a B b b/two D d"
    assert await grove.seen() == "A a B b/two D d"
    await grove.batch("e", replaces=a)
    assert await grove.listed() == "E e e/two"


async def test_the_answer_that_is_on_the_way_is_the_chosen_one(grove: Grove) -> None:
    first, second = await grove.batch("a")
    batch_id = await batch_of(grove, first)
    assert await chosen(grove, batch_id) is None
    await grove.go_on_from(second)
    assert await chosen(grove, batch_id) == second
    b = await grove.turn("b")
    await grove.go_on_from(first)
    assert await chosen(grove, batch_id) == first
    c = await grove.turn("c")
    await grove.go_on_from(b)
    assert await chosen(grove, batch_id) == second
    await grove.turn("d", replaces=c)
    assert await chosen(grove, batch_id) == first
    assert await grove.seen() == "A a D d"


async def test_only_what_the_way_leads_through_can_be_chosen(grove: Grove) -> None:
    first, second = await grove.batch("a")
    batch_id = await batch_of(grove, first)
    await grove.turn("b")
    await grove.go_on_from(second)
    await grove.turn("c")
    await grove.batches.choose(batch_id, first)  # which has been gone on from, but not on this way
    assert await chosen(grove, batch_id) == second
    await grove.go_on_from(second)
    await grove.batches.choose(batch_id, first)
    assert await chosen(grove, batch_id) == first
    assert await grove.head() == first
    assert await grove.listed() == "A a a/two"


async def chosen(grove: Grove, batch_id: str) -> str | None:
    batch = await grove.batches.batch(batch_id)
    assert isinstance(batch, Batch)
    return batch.chosen_id


async def test_a_batch_that_replaces_a_turn_has_no_chosen_answer_yet(grove: Grove) -> None:
    a = await grove.turn("a")
    first, _ = await grove.batch("b", replaces=a)
    assert await chosen(grove, await batch_of(grove, first)) is None
    assert await grove.head() == first


# ── what is deleted ──────────────────────────────────────────────────────────────────────────────


async def test_where_the_turn_that_replaced_another_is_deleted_the_one_before_goes_on(grove: Grove) -> None:
    a = await grove.turn("a")
    b = await grove.turn("b")
    c = await grove.turn("c", replaces=b)
    await grove.responses.delete(c, ADA)
    assert (await grove.head(), await grove.listed(), await grove.aside()) == (a, "A a", "B")
    await grove.go_on_from(b)
    assert await grove.listed() == "A a B b"


async def test_what_stood_behind_a_deleted_turn_stays_where_it_was(grove: Grove) -> None:
    a = await grove.turn("a")
    b = await grove.turn("b")
    c = await grove.turn("c")
    d = await grove.turn("d", replaces=c)
    await grove.responses.delete(b, ADA)
    assert [(said(turn), turn.previous_id, turn.aside) for turn in await grove.all()] == [
        ("A", None, False),
        ("C", a, True),
        ("D", a, False),
    ]
    await grove.responses.delete(c, ADA)  # which stands aside
    assert await grove.head() == d
    assert await grove.listed() == "A a D d"
    await grove.responses.delete(a, ADA)
    assert await grove.seen() == "D d"


async def test_what_is_begun_while_the_turn_before_is_deleted_follows_what_is_left(grove: Grove) -> None:
    await grove.turn("a")
    for number in range(22):
        b, c = await grove.turn("b"), await grove.turn("c")
        # These may end in a deadlock, which takes PostgreSQL a second to see.
        is_replacing = number > 19
        requests, _ = await asyncio.gather(
            grove.ask(f"{number}", replaces=c if is_replacing else None),
            grove.responses.delete(b if is_replacing else c, ADA),
        )
        await grove.end(requests[0])
        left = f"{'A a' if is_replacing else 'A a B b'} {number} {number}"
        assert await grove.listed() == left
        assert await grove.seen() == left
        await grove.go_on_from((await grove.all())[0].id)


async def test_one_that_runs_in_the_place_of_another_can_be_deleted(grove: Grove) -> None:
    a = await grove.turn("a")
    (running,) = await grove.ask("b", replaces=a)
    await grove.responses.delete(running.response_id, None)
    await grove.end(running)
    assert (await grove.head(), await grove.listed()) == (None, "")
    await grove.go_on_from(a)
    assert await grove.listed() == "A a"


async def test_what_stands_aside_is_found_and_deleted_piece_by_piece(grove: Grove) -> None:
    a = await grove.turn("a")
    (item, *_) = await grove.dialogue.page(grove.id, ADA, None, 10, newest_first=False)
    await grove.turn("b", replaces=a)
    assert await grove.dialogue.get(grove.id, ADA, item.place) == item
    await grove.dialogue.delete(grove.id, ADA, item.place)
    first, _ = await grove.all()
    assert (first.aside, first.asked) == (True, [])


async def test_an_account_goes_with_all_its_branches(grove: Grove, database: Database) -> None:
    a = await grove.turn("a")
    await grove.batch("b", replaces=a)
    await database.transact(lambda connection: delete_user_data(connection, ADA))
    for table in (conversations, responses, messages):
        ((left,),) = await database.read(select(func.count()).select_from(table))
        assert left == 0


# ── titles ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_title_is_found_for_what_replaced_the_first_turn(grove: Grove, database: Database) -> None:
    titles = SqlTitles(database)
    a = await grove.turn("a")
    (request,) = grove.asking("b", replaces=a)
    await grove.history.begin(request, ADA, begins=False, wants_title=True)
    assert await titles.take_untitled(10) == (), "nothing is answered yet on the way"
    await grove.end(request)
    (untitled,) = await titles.take_untitled(10)
    assert (untitled.question, untitled.answer) == ("B", "b")


# ── all turns ────────────────────────────────────────────────────────────────────────────────────


async def test_all_turns_are_listed_as_they_stand(grove: Grove) -> None:
    a = await grove.turn("a")
    b = await grove.turn("b", status=Status.FAILED)
    (added,) = await grove.dialogue.add(Caller(ADA), grove.id, [Message(Role.USER, "C")])
    c = added.place.response_id
    first, second = await grove.batch("d", replaces=c)
    (running,) = await grove.ask("e")
    turns = await grove.all()
    assert [(turn.id, said(turn), turn.previous_id, turn.aside) for turn in turns] == [
        (a, "A", None, False),
        (b, "B", a, True),
        (c, "C", a, True),
        (first, "D", a, False),
        (second, "D", a, False),
        (running.response_id, "E", first, False),
    ]
    for turn in turns:
        if turn.response is None:
            assert turn.id == c
            continue
        assert turn.response == await grove.responses.get(turn.id, ADA)
        assert turn.asked == await grove.responses.input(turn.id, ADA)
        has_ended = turn.id != running.response_id
        assert turn.created_at == 1000.5
        assert turn.first_token_at == (2000.5 if has_ended else None)
        assert (turn.ended_at is not None) is has_ended
    answers = [turn.response for turn in turns if turn.response is not None]
    assert [answer.text for answer in answers] == ["a", "", "d", "d/two", ""]
    assert [answer.batch and answer.batch.position for answer in answers] == [None, None, 0, 1, None]


@pytest.mark.parametrize("newest_first", [False, True])
async def test_pages_of_turns_follow_one_another(grove: Grove, newest_first: bool) -> None:
    ids = [await grove.turn("a")]
    for _ in range(6):
        ids.append(await grove.turn("b", replaces=ids[0]))
    found: list[str] = []
    has_more = True
    while has_more:
        after = found[-1] if found else None
        page = await grove.turns.page(grove.id, ADA, after, 3, newest_first=newest_first)
        assert 1 <= len(page.turns) <= 3
        assert page.head_id == ids[-1]
        found += [turn.id for turn in page.turns]
        has_more = page.has_more
    assert found == (ids[::-1] if newest_first else ids)


async def test_long_turns_make_a_page_shorter_but_never_empty(
    grove: Grove, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a" * 2000, "b" * 10, "c" * 10):
        await grove.turn(name)
    monkeypatch.setattr(sql_turns, "MAX_PAGE_CHARS", 4000)
    first = await grove.turns.page(grove.id, ADA, None, 100, newest_first=False)
    assert ([said(turn)[0] for turn in first.turns], first.has_more) == (["A"], True)
    rest = await grove.turns.page(grove.id, ADA, first.turns[0].id, 100, newest_first=False)
    assert ([said(turn)[0] for turn in rest.turns], rest.has_more) == (["B", "C"], False)


async def test_a_conversation_without_turns_has_none(grove: Grove) -> None:
    empty = await grove.conversations.create(ADA)
    page = await grove.turns.page(empty.id, ADA, None, 10, newest_first=True)
    assert (page.turns, page.head_id, page.has_more) == ([], None, False)
