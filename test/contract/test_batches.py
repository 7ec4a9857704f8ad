"""What every storage promises of a turn that asks several models."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete

from internal.biz.batches import Batch, BatchStore
from internal.biz.conversations import Conversations
from internal.biz.errors import Conflict, NotFound
from internal.biz.ids import new_id, new_ids
from internal.biz.models import (
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
)
from internal.biz.ports import History
from internal.biz.responses import ResponseStore
from internal.data.memory_history import MemoryHistory
from internal.data.sql.batches import SqlBatches
from internal.data.sql.conversations import SqlConversations
from internal.data.sql.database import Database
from internal.data.sql.history import SqlHistory
from internal.data.sql.items import SqlItems
from internal.data.sql.responses import SqlResponses
from internal.data.sql.tables import responses
from internal.data.sql.titles import SqlTitles

if TYPE_CHECKING:
    from test.conftest import OpenDatabase

ADA = "user_ada"


@dataclass(frozen=True)
class Storage:
    """Conversations in which several models are asked."""

    history: History
    batches: BatchStore
    responses: ResponseStore

    async def ask(
        self,
        question: str = "q",
        *,
        conversation: str | None = None,
        after: str | None = None,
        models: Sequence[str] = ("one", "two", "three"),
        begins: bool = False,
        wants_title: bool = False,
    ) -> list[Request]:
        """A turn for several models; for one, it is no batch."""
        requests = turn(question, conversation=conversation, after=after, models=models)
        if len(models) == 1:
            await self.history.begin(requests[0], None, begins=begins, wants_title=wants_title)
        else:
            await self.history.begin_batch(requests, None, begins=begins, wants_title=wants_title)
        return requests

    async def end(self, request: Request, text: str = "", status: Status = Status.COMPLETED) -> None:
        text = text or f"{request.model} on {request.prompt}"
        failure = Failure("generation_failed", "it broke") if status is Status.FAILED else None
        output = (OutputItem(ItemKind.REASONING, "hm"), OutputItem(ItemKind.MESSAGE, text))
        ended = Response.of(request, status, output=output, failure=failure, attempt=1)
        await self.history.finish([ended])

    async def batch(self, requests: Sequence[Request]) -> Batch:
        found = await self.batches.batch(batch_of(requests))
        assert found is not None
        return found

    async def choose(self, requests: Sequence[Request], chosen: int) -> bool:
        """Whether it may be chosen."""
        before = (await self.batch(requests)).chosen_id
        await self.batches.choose(batch_of(requests), requests[chosen].response_id)
        after = (await self.batch(requests)).chosen_id
        assert after in (before, requests[chosen].response_id)
        return after == requests[chosen].response_id

    async def said(self, conversation: str) -> list[str]:
        """What the next turn of a conversation continues."""
        (before,) = await self.history.before(turn("next", conversation=conversation, models=["one"]), 0)
        return [message.content for message in before]


def turn(
    question: str, *, conversation: str | None = None, after: str | None = None, models: Sequence[str]
) -> list[Request]:
    settings = Settings(conversation_id=conversation, previous_response_id=after)
    said, batch_id, now = (Message(Role.USER, question),), new_id("batch"), time.time()
    return [
        Request(one, model, ADA, now, said, settings, Seat(batch_id, place) if len(models) > 1 else None)
        for place, (model, one) in enumerate(zip(models, new_ids("resp", len(models)), strict=True))
    ]


def batch_of(requests: Sequence[Request]) -> str:
    assert requests[0].batch is not None
    return requests[0].batch.batch_id


@pytest.fixture
async def storage(
    history_url: str, open_database: "OpenDatabase", watched_loop: None
) -> AsyncIterator[Storage]:
    if not history_url:
        history = MemoryHistory()
        yield Storage(history, history, history)
        return
    async with open_database(history_url) as database:
        yield Storage(SqlHistory(database), SqlBatches(database), SqlResponses(database))


@pytest.fixture
def conversation() -> str:
    return new_id("conv")


# ── what is stored ───────────────────────────────────────────────────────────────────────────────


async def test_a_batch_is_there_with_its_tasks_in_order(storage: Storage, conversation: str) -> None:
    requests = await storage.ask("how?", conversation=conversation, begins=True)
    begun = await storage.batch(requests)
    assert (begun.user, begun.conversation_id, begun.prompt) == (ADA, conversation, "how?")
    assert begun.created_at == requests[0].created_at
    assert [(task.id, task.model) for task in begun.tasks] == [(it.response_id, it.model) for it in requests]
    assert all(task.text == "" and task.ended_at is None for task in begun.tasks)
    assert not begun.is_complete
    await storage.end(requests[1], status=Status.FAILED)
    await storage.end(requests[2], "two words")
    assert not (await storage.batch(requests)).is_complete
    await storage.end(requests[0], "one word", Status.INCOMPLETE)
    ended = await storage.batch(requests)
    assert ended.is_complete
    assert [(task.status, task.text) for task in ended.tasks] == [
        (Status.INCOMPLETE, "one word"),
        (Status.FAILED, ""),
        (Status.COMPLETED, "two words"),
    ]
    assert [task.failure and task.failure.message for task in ended.tasks] == [None, "it broke", None]
    assert all((task.ended_at or 0) >= task.created_at for task in ended.tasks)
    assert ended.tasks[2] == await storage.batches.task(requests[2].response_id)


async def test_a_response_of_no_batch_is_a_task_as_well(storage: Storage) -> None:
    (request,) = await storage.ask(models=["one"])
    await storage.end(request, "hello")
    task = await storage.batches.task(request.response_id)
    assert task is not None
    assert (task.model, task.user, task.text) == ("one", ADA, "hello")


async def test_what_was_never_stored_is_not_found(storage: Storage) -> None:
    for unknown in ("batch_none", "", "\0", "\ud83d"):
        assert await storage.batches.batch(unknown) is None
        assert await storage.batches.task(unknown) is None
        await storage.batches.choose(unknown, unknown)


async def test_to_begin_twice_is_to_begin_once(storage: Storage, conversation: str) -> None:
    requests = await storage.ask(conversation=conversation, begins=True)
    await storage.history.begin_batch(requests, None, begins=True, wants_title=False)
    assert len((await storage.batch(requests)).tasks) == 3
    for request in requests:
        await storage.end(request)
    assert await storage.said(conversation) == ["q", "one on q"]


# ── one turn ─────────────────────────────────────────────────────────────────────────────────────


async def test_no_turn_begins_until_the_last_answer_has_ended(storage: Storage, conversation: str) -> None:
    requests = await storage.ask(conversation=conversation, begins=True)
    for request in requests:
        for models in (["one"], ["one", "two"]):
            with pytest.raises(Conflict) as error:
                await storage.ask("too early", conversation=conversation, models=models)
            assert error.value.code == "conversation_locked"
        await storage.end(request)
    later = await storage.ask("later", conversation=conversation)
    assert len((await storage.batch(later)).tasks) == 3


async def test_of_two_batches_at_once_one_is_refused_whole(storage: Storage, conversation: str) -> None:
    (first,) = await storage.ask(conversation=conversation, models=["one"], begins=True)
    await storage.end(first)
    turns = [turn(f"q{n}", conversation=conversation, models=["one", "two"]) for n in range(2)]
    beginning = (
        storage.history.begin_batch(requests, None, begins=False, wants_title=False) for requests in turns
    )
    errors = await asyncio.gather(*beginning, return_exceptions=True)
    assert [type(error) for error in errors] in ([type(None), Conflict], [Conflict, type(None)])
    found = [await storage.batches.batch(batch_of(requests)) for requests in turns]
    assert sorted(0 if batch is None else len(batch.tasks) for batch in found) == [0, 2]


async def test_a_batch_that_may_not_continue_what_it_names_is_not_stored(storage: Storage) -> None:
    for named in ({"after": "resp_unknown"}, {"conversation": "conv_unknown"}):
        requests = turn("q", models=["one", "two"], **named)
        with pytest.raises(NotFound):
            await storage.history.begin_batch(requests, None, begins=False, wants_title=False)
        assert await storage.batches.batch(batch_of(requests)) is None
        assert await storage.batches.task(requests[1].response_id) is None


async def test_every_answer_follows_what_was_said_before(storage: Storage, conversation: str) -> None:
    (first,) = await storage.ask("q0", conversation=conversation, models=["one"], begins=True)
    await storage.end(first, "a0")
    requests = await storage.ask("q1", conversation=conversation)
    await storage.end(requests[1])
    for before in await storage.history.before(requests, 0):
        assert [message.content for message in before] == ["q0", "a0"]


# ── what the next turn continues ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_the_first_models_answer_goes_on_whichever_ends_first(
    storage: Storage, conversation: str, order: tuple[int, ...]
) -> None:
    requests = await storage.ask("q0", conversation=conversation, begins=True)
    for place in order:
        await storage.end(requests[place])
    assert await storage.said(conversation) == ["q0", "one on q0"]
    requests = await storage.ask("q1", conversation=conversation)
    for place in order:
        await storage.end(requests[place])
    assert await storage.said(conversation) == ["q0", "one on q0", "q1", "one on q1"]


async def test_an_answer_that_failed_is_not_gone_on_from(storage: Storage, conversation: str) -> None:
    requests = await storage.ask(conversation=conversation, begins=True)
    await storage.end(requests[2])
    await storage.end(requests[0], status=Status.FAILED)
    await storage.end(requests[1])
    assert await storage.said(conversation) == ["q", "two on q"]


async def test_where_all_failed_the_turn_before_goes_on(storage: Storage, conversation: str) -> None:
    (first,) = await storage.ask("q0", conversation=conversation, models=["one"], begins=True)
    await storage.end(first, "a0")
    for request in await storage.ask("q1", conversation=conversation):
        await storage.end(request, status=Status.FAILED)
    assert await storage.said(conversation) == ["q0", "a0"]


async def test_the_chosen_answer_goes_on(storage: Storage, conversation: str) -> None:
    requests = await storage.ask("q0", conversation=conversation, begins=True)
    for request in requests:
        await storage.end(request)
    assert await storage.choose(requests, 2)
    assert await storage.said(conversation) == ["q0", "three on q0"]
    assert await storage.choose(requests, 1)
    assert await storage.said(conversation) == ["q0", "two on q0"]
    (later,) = await storage.ask("q1", conversation=conversation, models=["one"])
    await storage.end(later)
    assert await storage.said(conversation) == ["q0", "two on q0", "q1", "one on q1"]


async def test_answers_can_be_deleted_one_by_one(storage: Storage, conversation: str) -> None:
    requests = await storage.ask(conversation=conversation, begins=True)
    for request in requests:
        await storage.end(request)
    assert await storage.choose(requests, 1)
    await storage.responses.delete(requests[1].response_id, ADA)
    left = await storage.batch(requests)
    assert ([task.model for task in left.tasks], left.chosen_id) == (["one", "three"], None)
    for request in (requests[0], requests[2]):
        await storage.responses.delete(request.response_id, ADA)
    assert await storage.batches.batch(batch_of(requests)) is None


async def test_where_an_answer_is_deleted_the_next_one_goes_on_and_can_be_chosen_from(
    storage: Storage, conversation: str
) -> None:
    (first,) = await storage.ask("q0", conversation=conversation, models=["one"], begins=True)
    await storage.end(first, "a0")
    requests = await storage.ask("q1", conversation=conversation, models=("one", "two", "three", "four"))
    await storage.end(requests[1], status=Status.FAILED)
    for place in (0, 2, 3):
        await storage.end(requests[place])
    await storage.responses.delete(requests[0].response_id, ADA)
    assert await storage.said(conversation) == ["q0", "a0", "q1", "three on q1"]
    assert await storage.choose(requests, 3)
    assert await storage.said(conversation) == ["q0", "a0", "q1", "four on q1"]
    for place in (3, 2):
        await storage.responses.delete(requests[place].response_id, ADA)
    assert await storage.said(conversation) == ["q0", "a0"]


async def test_a_later_attempt_does_not_undo_a_choice(storage: Storage, conversation: str) -> None:
    requests = await storage.ask(conversation=conversation, begins=True)
    for request in requests:
        await storage.end(request)
    assert await storage.choose(requests, 2)
    output = (OutputItem(ItemKind.MESSAGE, "again"),)
    await storage.history.finish([Response.of(requests[0], Status.COMPLETED, output=output, attempt=2)])
    assert await storage.said(conversation) == ["q", "three on q"]
    assert (await storage.batch(requests)).tasks[0].text == "again"


async def test_nothing_is_chosen_while_an_answer_runs(storage: Storage, conversation: str) -> None:
    requests = await storage.ask(conversation=conversation, begins=True)
    await storage.end(requests[0])
    await storage.end(requests[1])
    for place in range(3):
        assert not await storage.choose(requests, place)
    await storage.end(requests[2])
    assert await storage.said(conversation) == ["q", "one on q"]


async def test_an_answer_that_failed_cannot_be_chosen(storage: Storage, conversation: str) -> None:
    requests = await storage.ask(conversation=conversation, begins=True)
    await storage.end(requests[0])
    await storage.end(requests[1], status=Status.FAILED)
    await storage.end(requests[2])
    assert not await storage.choose(requests, 1)
    assert await storage.said(conversation) == ["q", "one on q"]


async def test_an_answer_of_another_batch_cannot_be_chosen(storage: Storage, conversation: str) -> None:
    mine = await storage.ask(conversation=conversation, begins=True)
    theirs = await storage.ask(conversation=new_id("conv"), begins=True)
    for request in (*mine, *theirs):
        await storage.end(request)
    await storage.batches.choose(batch_of(mine), theirs[1].response_id)
    assert (await storage.batch(mine)).chosen_id is None
    assert await storage.said(conversation) == ["q", "one on q"]


@pytest.mark.parametrize("runs", [True, False])
async def test_what_the_conversation_has_not_gone_on_from_cannot_be_chosen_any_more(
    storage: Storage, conversation: str, *, runs: bool
) -> None:
    requests = await storage.ask("q0", conversation=conversation, begins=True)
    for request in requests:
        await storage.end(request)
    assert await storage.choose(requests, 1)
    (later,) = await storage.ask("q1", conversation=conversation, models=["one"])
    if not runs:
        await storage.end(later)
    assert not await storage.choose(requests, 2)
    assert await storage.choose(requests, 1)  # which it has gone on from
    if runs:
        await storage.end(later)
    assert await storage.said(conversation) == ["q0", "two on q0", "q1", "one on q1"]


async def test_a_batch_in_no_conversation_can_be_chosen_from_and_continued(storage: Storage) -> None:
    (first,) = await storage.ask("q0", models=["one"])
    await storage.end(first, "a0")
    requests = await storage.ask("q1", after=first.response_id)
    for request in requests:
        await storage.end(request)
    assert (await storage.batch(requests)).conversation_id is None
    assert await storage.choose(requests, 1)
    after = turn("q2", after=requests[2].response_id, models=["one"])
    (before,) = await storage.history.before(after, 0)
    assert [message.content for message in before] == ["q0", "a0", "q1", "three on q1"]


# ── in a database only ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Shelf(Storage):
    conversations: Conversations
    titles: SqlTitles


@pytest.fixture
def shelf(database: Database) -> Shelf:
    return Shelf(
        SqlHistory(database),
        SqlBatches(database),
        SqlResponses(database),
        Conversations(SqlConversations(database)),
        SqlTitles(database),
    )


async def test_the_question_is_listed_once_and_every_answer(shelf: Shelf, conversation: str) -> None:
    requests = await shelf.ask("what is a sluice", conversation=conversation, begins=True)
    for request in reversed(requests):
        await shelf.end(request)
    listed = await shelf.conversations.messages(conversation, ADA)
    assert [(message.role, message.model) for message in listed] == [
        (Role.USER, "one"),
        (Role.ASSISTANT, "one"),
        (Role.ASSISTANT, "two"),
        (Role.ASSISTANT, "three"),
    ]
    assert {message.batch_id for message in listed} == {batch_of(requests)}
    assert (await shelf.conversations.get(conversation, ADA)).message_count == 4
    for search, found in (("sluice", 1), ("three", 1), ("four", 0)):
        assert len((await shelf.conversations.page(ADA, search=search)).conversations) == found


async def test_the_question_is_listed_while_the_first_answer_has_failed(
    shelf: Shelf, conversation: str
) -> None:
    requests = await shelf.ask(conversation=conversation, begins=True)
    await shelf.end(requests[0], status=Status.FAILED)
    await shelf.end(requests[1])
    listed = await shelf.conversations.messages(conversation, ADA)
    assert [message.content for message in listed] == ["q", "two on q"]


async def test_the_question_is_an_item_also_when_the_first_answer_has_failed(
    shelf: Shelf, database: Database, conversation: str
) -> None:
    requests = await shelf.ask(conversation=conversation, begins=True)
    await shelf.end(requests[0], status=Status.FAILED)
    await shelf.end(requests[1])
    await shelf.end(requests[2])
    items = await SqlItems(database).page(conversation, ADA, None, 10, newest_first=False)
    said = [it.said.content if isinstance(it.said, Message) else it.said.text for it in items]
    assert said == ["q", "hm", "two on q", "hm", "three on q"]


async def test_the_question_stays_when_the_first_answer_is_deleted(
    shelf: Shelf, database: Database, conversation: str
) -> None:
    requests = await shelf.ask(conversation=conversation, begins=True)
    for request in requests:
        await shelf.end(request)
    await database.change(delete(responses).where(responses.c.id == requests[0].response_id))
    listed = await shelf.conversations.messages(conversation, ADA)
    assert [message.content for message in listed] == ["q", "two on q", "three on q"]
    assert (await shelf.conversations.get(conversation, ADA)).message_count == 3
    assert [task.model for task in (await shelf.batch(requests)).tasks] == ["two", "three"]


async def test_a_conversation_wants_one_title_for_all_its_answers(shelf: Shelf, conversation: str) -> None:
    requests = await shelf.ask("hi there", conversation=conversation, begins=True, wants_title=True)
    await shelf.end(requests[1])
    (untitled,) = await shelf.titles.take_untitled(10)
    assert (untitled.question, untitled.answer) == ("hi there", "two on hi there")
    await shelf.end(requests[0])
    assert await shelf.titles.take_untitled(10) == ()


async def test_a_batch_in_a_deleted_conversation_is_not_found(shelf: Shelf, conversation: str) -> None:
    requests = await shelf.ask(conversation=conversation, begins=True)
    await shelf.conversations.delete(conversation, ADA)
    assert await shelf.batches.batch(batch_of(requests)) is None
    assert await shelf.batches.task(requests[0].response_id) is None
