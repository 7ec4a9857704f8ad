"""Asking several models: what is refused before anything is stored, how each stands, and which is chosen."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from internal.biz.batches import Batches
from internal.biz.chat import MAX_BATCH, Ask, Chat, ChatRules
from internal.biz.errors import (
    Conflict,
    GenerationFailed,
    InvalidRequest,
    NotFound,
    SluiceError,
    UnsupportedParameter,
)
from internal.biz.events import ScoredDelta
from internal.biz.generation import FinishReason
from internal.biz.ids import new_ids
from internal.biz.limits import NoLimits
from internal.biz.models import Caller, Feature, Message, Response, Role, Settings, Status
from internal.data.memory_history import MemoryHistory
from internal.data.memory_queue import QueueLimits

if TYPE_CHECKING:
    from test.biz.conftest import Server

ADA, EVE = Caller("user_ada", is_guest=False), Caller("user_eve", is_guest=False)
HELLO = (Message(Role.USER, "hello"),)
BOTH = ("m", "other")


def batches(server: "Server") -> Batches:
    return Batches(server.chat, server.history)


@pytest.mark.parametrize(
    ("models", "ask", "expected"),
    [
        (("m", "nonsense"), Ask(HELLO), NotFound),
        (("m", "m"), Ask(HELLO), InvalidRequest),
        (("m", *map(str, range(MAX_BATCH))), Ask(HELLO), InvalidRequest),
        (BOTH, Ask(()), InvalidRequest),
        (BOTH, Ask(HELLO, settings=Settings(stop=("x",))), UnsupportedParameter),
    ],
    ids=["unknown", "twice", "too many", "empty", "unsupported by the second"],
)
async def test_what_is_wrong_with_one_model_is_told_before_anything_is_stored(
    server_type: "type[Server]", models: Sequence[str], ask: Ask, expected: type[SluiceError]
) -> None:
    names = (*BOTH, *map(str, range(MAX_BATCH)))
    server = server_type(rules=ChatRules(names, features={"m": frozenset((Feature.STOP,))}))
    with pytest.raises(expected):
        await batches(server).begin(ADA, ask, models)
    assert await server.history.unfinished(time.time() + 1, "", 10) == []
    assert await server.waiting() == 0


async def test_the_tasks_are_in_the_order_of_the_models(server: "Server") -> None:
    begun = await batches(server).begin(ADA, Ask(HELLO), ("other", "m"))
    batch = await batches(server).get(ADA, begun.batch_id)
    assert [task.id for task in batch.tasks] == begun.task_ids
    assert [task.model for task in batch.tasks] == ["other", "m"]
    assert list(begun.task_ids) == sorted(begun.task_ids)


async def test_without_a_model_it_is_the_default_one(server: "Server") -> None:
    begun = await batches(server).begin(ADA, Ask(HELLO), ())
    assert [task.model for task in (await batches(server).get(ADA, begun.batch_id)).tasks] == ["m"]


async def test_a_conversation_begins_unless_the_turn_continues_something(server: "Server") -> None:
    begun = await batches(server).begin(ADA, Ask(HELLO), BOTH)
    assert begun.conversation_id is not None
    runs = [await server.claim(model) for model in BOTH]
    for run in runs:
        await run.say("hi")
        await run.finish()
    for settings in (
        Settings(previous_response_id=runs[0].id),
        Settings(conversation_id=begun.conversation_id),
    ):
        again = await batches(server).begin(ADA, Ask(HELLO, settings=settings), BOTH)
        assert again.conversation_id == settings.conversation_id
        run = await server.claim("other")
        assert [message.content for message in run.transcript.messages] == ["hello", "hi", "hello"]


async def test_a_task_is_told_as_it_stands(server: "Server") -> None:
    begun = await batches(server).begin(ADA, Ask(HELLO), BOTH)
    one, other = [(await batches(server).task(ADA, task)) for task in begun.task_ids]
    assert (one.status, one.text, one.ended_at) == (Status.QUEUED, "", None)
    run = await server.claim()
    await run.say("so ")
    await run.say("far", kind=lambda text: ScoredDelta(text, ()))
    one = await batches(server).task(ADA, one.id)
    assert (one.status, one.text, one.ended_at) == (Status.IN_PROGRESS, "so far", None)
    await run.finish(FinishReason.ERROR, GenerationFailed("it broke"))
    one = await batches(server).task(ADA, one.id)
    assert (one.status, one.text, one.failure and one.failure.message) == (Status.FAILED, "", "it broke")
    assert one.ended_at is not None
    assert (await batches(server).task(ADA, other.id)).status is Status.QUEUED


async def test_a_task_whose_end_could_not_be_stored_has_ended_all_the_same(server: "Server") -> None:
    """Its log says so."""
    begun = await batches(server).begin(ADA, Ask(HELLO), ("m",))
    run = await server.claim()
    await run.say("hi")
    server.history.finish = _nothing  # type: ignore[method-assign]
    await run.finish()
    (task,) = (await batches(server).get(ADA, begun.batch_id)).tasks
    assert (task.status, task.text) == (Status.COMPLETED, "hi")
    assert task.ended_at is not None


async def _nothing(responses: Sequence[Response]) -> None:
    return


async def test_a_task_that_the_queue_has_forgotten_is_told_as_it_is_stored(server: "Server") -> None:
    begun = await batches(server).begin(ADA, Ask(HELLO), ("m",))
    chat = Chat(
        type(server.queue)(QueueLimits(), server.history.finish),
        server.history,
        NoLimits(),
        server.history.finish,
        ChatRules(BOTH),
    )
    (task,) = (await Batches(chat, server.history).get(ADA, begun.batch_id)).tasks
    assert (task.status, task.text) == (Status.IN_PROGRESS, "")
    await Batches(chat, server.history).cancel(ADA, begun.batch_id)


# ── whose it is ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("owners_only", [True, False])
async def test_what_is_anothers_is_not_found(server_type: "type[Server]", *, owners_only: bool) -> None:
    server = server_type(rules=ChatRules(BOTH, owners_only=owners_only))
    begun = await batches(server).begin(ADA, Ask(HELLO), BOTH)
    for found in (
        batches(server).get(EVE, begun.batch_id),
        batches(server).task(EVE, begun.task_ids[0]),
        batches(server).cancel(EVE, begun.batch_id),
        batches(server).choose(EVE, begun.batch_id, begun.task_ids[0]),
        batches(server).get(ADA, "batch_none"),
        batches(server).task(ADA, "resp_none"),
    ):
        with pytest.raises(NotFound):
            await found
    await batches(server).cancel(ADA, begun.batch_id)


async def test_what_is_a_guests_is_seen_by_who_knows_its_id_where_there_are_guests(
    server_type: "type[Server]",
) -> None:
    server, guest = server_type(), Caller("guest_1")
    begun = await batches(server).begin(guest, Ask(HELLO), BOTH)
    assert (await batches(server).get(Caller("guest_2"), begun.batch_id)).prompt == "hello"
    with pytest.raises(NotFound):
        await batches(server).choose(Caller("guest_2"), begun.batch_id, begun.task_ids[0])
    closed = Batches(
        Chat(
            server.queue,
            server.history,
            NoLimits(),
            server.history.finish,
            ChatRules(BOTH, owners_only=True),
        ),
        server.history,
    )
    with pytest.raises(NotFound):
        await closed.get(ADA, begun.batch_id)


# ── choosing ─────────────────────────────────────────────────────────────────────────────────────


async def test_why_an_answer_cannot_be_chosen(server: "Server") -> None:
    begun = await batches(server).begin(ADA, Ask(HELLO), BOTH)
    one, two = begun.task_ids

    async def refusal(task: str) -> str:
        with pytest.raises(SluiceError) as error:
            await batches(server).choose(ADA, begun.batch_id, task)
        return error.value.code

    assert await refusal(one) == "conversation_locked"
    await (await server.claim("m")).finish(FinishReason.ERROR, GenerationFailed("it broke"))
    assert await refusal(two) == "conversation_locked"
    run = await server.claim("other")
    await run.say("hi")
    await run.finish()
    assert await refusal(one) == "task_failed"
    assert await refusal("resp_none") == "task_not_found"
    assert (await batches(server).choose(ADA, begun.batch_id, two)).chosen_id == two


async def test_who_has_gone_on_from_one_answer_cannot_choose_another(server: "Server") -> None:
    begun = await batches(server).begin(ADA, Ask(HELLO), BOTH)
    for model in BOTH:
        run = await server.claim(model)
        await run.say(model)
        await run.finish()
    settings = Settings(conversation_id=begun.conversation_id)
    await batches(server).begin(ADA, Ask(HELLO, settings=settings), ("m",))
    with pytest.raises(Conflict) as error:
        await batches(server).choose(ADA, begun.batch_id, begun.task_ids[1])
    assert error.value.code == "conversation_moved_on"


# ── places ───────────────────────────────────────────────────────────────────────────────────────


class Places(NoLimits):
    """Remembers who has places."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    async def admit(self, caller: Caller, *response_ids: str) -> None:
        self.taken += response_ids

    async def settle(self, responses: Sequence[Response]) -> None:
        for response in responses:
            self.taken.remove(response.id)


async def test_what_was_not_published_gives_its_place_back(server_type: "type[Server]") -> None:
    server, places = server_type(QueueLimits(max_pending=1)), Places()
    await server.chat.submit(ADA, Ask(HELLO, "other"), "resp_1")
    chat = Chat(server.queue, server.history, places, _both(server.history, places), ChatRules(BOTH))
    begun = await Batches(chat, server.history).begin(ADA, Ask(HELLO), BOTH)
    assert places.taken == [begun.task_ids[0]]
    with pytest.raises(SluiceError):
        await Batches(chat, server.history).begin(ADA, Ask(HELLO), BOTH)
    assert places.taken == [begun.task_ids[0]]


async def test_a_batch_that_is_given_up_before_it_is_stored_gives_its_places_back(server: "Server") -> None:
    places, storing = Places(), asyncio.Event()

    class Slow(MemoryHistory):
        async def begin_batch(self, *args: object, **options: object) -> None:
            storing.set()
            await asyncio.Event().wait()

    chat = Chat(server.queue, Slow(), places, _both(server.history, places), ChatRules(BOTH))
    asking = asyncio.create_task(
        chat.submit_batch(ADA, Ask(HELLO), BOTH, "batch_1", ids := new_ids("resp", 2))
    )
    await storing.wait()
    assert places.taken == ids
    asking.cancel()
    await asyncio.wait([asking])
    assert places.taken == []


def _both(history: MemoryHistory, places: Places) -> Callable[[Sequence[Response]], Awaitable[None]]:
    async def settle(responses: Sequence[Response]) -> None:
        await history.finish(responses)
        await places.settle(responses)

    return settle
