"""A worker whose model is unloaded and loaded again, or whose engine is lost."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from internal.biz import model_life
from internal.biz.errors import EngineLost, GenerationFailed, Unavailable
from internal.biz.events import QueueUpdate, ResponseQueued
from internal.biz.generation import Finished, FinishReason
from internal.biz.models import Condition, ModelState, Order, Settings, Status
from internal.biz.ports import Append
from internal.biz.worker import Worker

if TYPE_CHECKING:
    from test.biz.conftest import Answer, MakeShop, Shop

    Settle = Callable[[], Awaitable[None]]

STOP = Finished(FinishReason.STOP)
CANCELLED = Finished(FinishReason.CANCELLED)
PATIENCE_S = 5.0


async def until(condition: Callable[[], object]) -> None:
    """For what the worker does by itself."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def condition(shop: "Shop") -> Condition:
    assert shop.worker is not None
    return shop.worker.condition


async def carried_out(shop: "Shop", order: Order, name: str = "") -> Condition:
    """How the model is when it was told to be so, and has done it."""
    name = name or f"{order}-{time.monotonic()}"
    await shop.queue.order("m", name, order)
    await until(lambda: name in condition(shop).orders)
    return condition(shop)


async def opened(shop: "Shop", *, idle_unload_s: float = 0.0, unload_timeout_s: float = PATIENCE_S) -> None:
    """Its worker takes requests."""
    shop.open(idle_unload_s=idle_unload_s, unload_timeout_s=unload_timeout_s)
    await until(lambda: shop.worker is not None and shop.worker.takes_requests)


async def ends(shop: "Shop", answer: "Answer", number: int, said: str = "x") -> None:
    """The job of this number says so, and `answer` is that."""
    shop.engine.say(await shop.engine.job(number), said, STOP)
    assert (await answer.text()).endswith(said)


# ── at an operator's word ────────────────────────────────────────────────────────────────────────


async def test_what_runs_may_finish_before_the_model_is_unloaded(shop: "Shop", settle: "Settle") -> None:
    await opened(shop)
    answer = await shop.ask()
    job = await shop.engine.job(0)
    unloading = asyncio.create_task(carried_out(shop, Order.UNLOAD))
    await until(lambda: condition(shop).state is ModelState.UNLOADING)
    shop.engine.say(job, "so far")
    later = await shop.ask()
    await settle()
    assert not shop.engine.stopped
    shop.engine.say(job, STOP)
    assert await answer.text() == "so far"
    assert (await unloading).state is ModelState.UNLOADED
    assert shop.engine.stopped
    assert len(shop.engine.jobs) == 1
    assert await shop.waiting() == 1
    assert (await carried_out(shop, Order.LOAD)).state is ModelState.LOADED
    await ends(shop, later, 1)


async def test_what_does_not_finish_goes_on_when_the_model_is_loaded_again(
    shop: "Shop", settle: "Settle"
) -> None:
    await opened(shop, unload_timeout_s=0.01)
    answer = await shop.ask()
    job = await shop.engine.job(0)
    shop.engine.say(job, "half ")
    await settle()
    await carried_out(shop, Order.UNLOAD)
    assert shop.engine.cancelled == [job]
    assert await shop.waiting() == 1
    assert shop.worker is not None
    assert (shop.worker.room, shop.worker.idle_s > 0) == (4, True)
    await carried_out(shop, Order.LOAD)
    shop.engine.say(job, "ghost", STOP)  # the job of before, which ended without a word
    again = await shop.engine.job(1)
    assert again.emitted == "half "
    shop.engine.say(again, "whole", STOP)
    assert await answer.text() == "half whole"
    await until(lambda: shop.worker and shop.worker.idle_s)
    assert shop.worker.room == 4


async def test_requests_for_an_unloaded_model_wait_and_are_told_that_nobody_works(shop: "Shop") -> None:
    await opened(shop)
    await carried_out(shop, Order.UNLOAD)
    (info,) = await shop.queue.workers()
    assert (info.condition.state, info.slots, info.takes_requests) == (ModelState.UNLOADED, 0, False)
    answer = await shop.ask()
    await carried_out(shop, Order.LOAD)
    await ends(shop, answer, 0)
    queued = (await answer.events())[0]
    assert isinstance(queued, ResponseQueued)
    assert queued.workers == 0
    (info,) = await shop.queue.workers()
    assert (info.condition.state, info.slots) == (ModelState.LOADED, 4)


async def test_a_full_worker_that_is_told_to_unload_takes_nothing_from_then_on(
    shop: "Shop", settle: "Settle"
) -> None:
    await opened(shop)
    answers = [await shop.ask(str(number)) for number in range(4)]
    await shop.engine.job(3)
    await settle()  # it waits for room now
    unloading = asyncio.create_task(carried_out(shop, Order.UNLOAD))
    await until(lambda: condition(shop).state is ModelState.UNLOADING)
    await settle()
    assert [info.takes_requests for info in await shop.queue.workers()] == [False]
    for number, answer in enumerate(answers):
        await ends(shop, answer, number)
    await unloading
    assert [info.takes_requests for info in await shop.queue.workers()] == [False]


async def test_unloading_at_any_moment_of_a_claim_loses_nothing(
    make_shop: "MakeShop", settle: "Settle"
) -> None:
    for ticks in range(14):
        shop = make_shop()
        await opened(shop, unload_timeout_s=0.0)
        await settle()
        answer = await shop.ask()
        for _ in range(ticks):
            await asyncio.sleep(0)
        await carried_out(shop, Order.UNLOAD)
        assert await shop.waiting() == 1, ticks
        begun = len(shop.engine.jobs)
        await carried_out(shop, Order.LOAD)
        await ends(shop, answer, begun)
        await shop.close()


async def test_unloading_while_the_storage_is_away_ends_in_time(shop: "Shop", settle: "Settle") -> None:
    await opened(shop, unload_timeout_s=0.01)
    shop.history.away = 10**6
    first = await shop.ask()
    shop.engine.say(await shop.engine.job(0), "x", STOP)
    await settle()
    await carried_out(shop, Order.UNLOAD)
    assert shop.engine.stopped
    shop.history.away = 0
    await carried_out(shop, Order.LOAD)
    assert (await shop.engine.job(1)).emitted == "x"
    await ends(shop, first, 1, "y")
    assert await first.text() == "xy"
    # The first attempt is stored when that is tried again; of the two the history takes the later one.
    await until(lambda: {response.attempt for response in shop.history.finished} == {1, 2})


async def test_unloading_while_what_was_said_before_cannot_be_read_ends_in_time(
    shop: "Shop", settle: "Settle"
) -> None:
    await opened(shop, unload_timeout_s=0.01)
    shop.history.away = 10**6
    answer = await shop.ask(settings=Settings(previous_response_id="resp_0"))
    await settle()
    await carried_out(shop, Order.UNLOAD)
    assert shop.engine.jobs == []
    assert await shop.waiting() == 1
    shop.history.away = 0
    await carried_out(shop, Order.LOAD)
    await ends(shop, answer, 0)


async def test_orders_are_carried_out_in_turn_and_once(shop: "Shop") -> None:
    await opened(shop)
    for _ in range(3):
        for name, order in (("a", Order.UNLOAD), ("b", Order.LOAD), ("c", Order.UNLOAD), ("d", Order.LOAD)):
            await shop.queue.order("m", name, order)
    await until(lambda: condition(shop).orders == ("a", "b", "c", "d"))
    assert shop.engine.starts == 3
    await carried_out(shop, Order.LOAD)
    assert shop.engine.starts == 3
    answer = await shop.ask()
    await ends(shop, answer, 0)


async def test_many_orders_that_need_nothing_are_all_known_to_be_done(shop: "Shop") -> None:
    await opened(shop)
    names = tuple(str(number) for number in range(2 * model_life.MAX_ORDERS))
    for name in names:
        await carried_out(shop, Order.LOAD, name)
    assert condition(shop).orders == names


async def test_more_orders_than_can_be_kept_are_not_heard(shop: "Shop") -> None:
    shop.engine.go_on.clear()
    shop.open()
    await until(lambda: shop.engine.starts)
    for number in range(model_life.MAX_ORDERS + 5):
        await shop.queue.order("m", str(number), Order.LOAD)
    shop.engine.go_on.set()
    await until(lambda: condition(shop).orders[-1:] == (str(model_life.MAX_ORDERS - 1),))


async def test_an_order_that_comes_while_the_model_is_first_loaded_waits(shop: "Shop") -> None:
    shop.engine.go_on.clear()
    shop.open()
    await until(lambda: shop.engine.starts)
    assert condition(shop).state is ModelState.LOADING
    await shop.queue.order("m", "a", Order.UNLOAD)
    shop.engine.go_on.set()
    await until(lambda: condition(shop).orders == ("a",))
    assert condition(shop).state is ModelState.UNLOADED


async def test_it_is_told_how_far_a_load_is(shop: "Shop") -> None:
    await opened(shop)
    await carried_out(shop, Order.UNLOAD)
    shop.engine.go_on.clear()
    await shop.queue.order("m", "again", Order.LOAD)
    await until(lambda: condition(shop) == Condition(ModelState.LOADING, 0.5, condition(shop).orders))
    shop.engine.go_on.set()
    await until(lambda: "again" in condition(shop).orders)
    assert condition(shop).progress == 1.0
    assert shop.progress == [0.5, 1.0]  # which is told of the first load only


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (GenerationFailed("no such file"), "no such file"),
        (ZeroDivisionError("oops"), "the model cannot be loaded: ZeroDivisionError"),
    ],
)
async def test_a_load_that_fails_leaves_the_model_unloaded(
    shop: "Shop", refusal: Exception, reason: str
) -> None:
    await opened(shop)
    await carried_out(shop, Order.UNLOAD)
    shop.engine.refusal = refusal
    found = await carried_out(shop, Order.LOAD)
    assert (found.state, found.failure) == (ModelState.UNLOADED, reason)
    assert shop.engine.stopped
    answer = await shop.ask()
    assert await shop.waiting() == 1
    shop.engine.refusal = None
    found = await carried_out(shop, Order.LOAD)
    assert (found.state, found.failure) == (ModelState.LOADED, "")
    await ends(shop, answer, 0)


async def test_draining_while_the_model_is_loaded_for_a_request_gives_it_back(shop: "Shop") -> None:
    await opened(shop, idle_unload_s=0.01)
    await until(lambda: shop.engine.stopped)
    shop.engine.go_on.clear()
    await shop.ask()
    await until(lambda: shop.engine.starts == 2)
    assert shop.worker is not None
    await shop.worker.drain(0.01)
    assert await shop.waiting() == 1


# ── after a time in which nobody asks ────────────────────────────────────────────────────────────


async def test_a_model_that_nobody_asks_is_unloaded_and_loaded_for_the_next_request(shop: "Shop") -> None:
    await opened(shop, idle_unload_s=0.02)
    for number in range(2):
        await until(lambda: condition(shop).state is ModelState.UNLOADED)
        assert shop.engine.stopped
        (info,) = await shop.queue.workers()
        assert info.takes_requests  # whoever asks is served
        answer = await shop.ask()
        await ends(shop, answer, number)
        queued = (await answer.events())[0]
        assert isinstance(queued, ResponseQueued)
        assert (queued.workers, queued.position) == (1, 0)
    assert shop.engine.starts >= 3


async def test_a_model_is_not_idle_while_something_runs(shop: "Shop") -> None:
    await opened(shop, idle_unload_s=0.01)
    answer = await shop.ask()
    job = await shop.engine.job(0)
    await asyncio.sleep(0.05)
    assert condition(shop).state is ModelState.LOADED
    shop.engine.say(job, "x", STOP)
    assert await answer.text() == "x"
    await until(lambda: shop.engine.stopped)


async def test_without_a_time_no_model_falls_idle(shop: "Shop") -> None:
    await opened(shop)
    await asyncio.sleep(0.03)
    assert condition(shop) == Condition()


async def test_a_request_that_comes_while_the_model_goes_is_served(shop: "Shop", settle: "Settle") -> None:
    at_stop, go_on = asyncio.Event(), asyncio.Event()
    stop = shop.engine.stop

    async def slow_stop() -> None:
        at_stop.set()
        await go_on.wait()
        await stop()

    shop.engine.stop = slow_stop  # type: ignore[method-assign]
    await opened(shop, idle_unload_s=0.01)
    await at_stop.wait()
    answer = await shop.ask()
    await until(lambda: shop.worker and shop.worker.room == 3)
    await settle()
    assert shop.engine.starts == 1  # not before it is gone
    go_on.set()
    await ends(shop, answer, 0)
    assert shop.engine.starts == 2


async def test_a_model_that_cannot_be_loaded_fails_who_asks_and_is_tried_again(
    shop: "Shop", caplog: pytest.LogCaptureFixture
) -> None:
    await opened(shop, idle_unload_s=0.01)
    await until(lambda: shop.engine.stopped)
    shop.engine.refusal = GenerationFailed("there is no model file /srv/model.gguf")
    for _ in range(2):
        response = await (await shop.ask()).response()
        assert response.status is Status.FAILED
        assert response.failure is not None
        assert response.failure.code == "model_not_loaded"
        assert response.failure.message == "the model cannot be loaded now; ask again later"
        assert shop.history.finished[-1] == response
    # Why is for operators.
    assert condition(shop).failure == shop.engine.refusal.message
    assert caplog.text.count(shop.engine.refusal.message) == 2
    shop.engine.refusal = None
    await ends(shop, await shop.ask(), 0)


async def test_who_wants_to_know_hears_how_far_the_model_is(shop: "Shop") -> None:
    await opened(shop, idle_unload_s=0.01)
    await until(lambda: shop.engine.stopped)
    shop.engine.go_on.clear()
    answer = await shop.ask(queue_updates=True)
    await until(lambda: QueueUpdate(0, loading=0.5) in answer.reader.updates)
    assert answer.reader.updates[0] == QueueUpdate(0, loading=0.0)
    shop.engine.go_on.set()
    await ends(shop, answer, 0)


async def test_who_cancels_does_not_wait_for_the_model(shop: "Shop") -> None:
    await opened(shop, idle_unload_s=0.01)
    await until(lambda: shop.engine.stopped)
    shop.engine.go_on.clear()
    unwanted, wanted = await shop.ask(), await shop.ask()
    await until(lambda: shop.worker and shop.worker.room == 2)
    await shop.queue.cancel(unwanted.id)
    response = await unwanted.response()
    assert (response.status, response.incomplete_reason) == (Status.INCOMPLETE, "cancelled")
    shop.engine.go_on.set()
    await ends(shop, wanted, 0)
    assert len(shop.engine.jobs) == 1


async def test_a_model_that_an_operator_loads_is_idle_from_then_on(shop: "Shop") -> None:
    await opened(shop, idle_unload_s=0.2)
    await carried_out(shop, Order.UNLOAD)
    await asyncio.sleep(0.2)
    loaded_at_s = time.monotonic()
    await carried_out(shop, Order.LOAD)
    await until(lambda: shop.engine.stopped)
    assert time.monotonic() - loaded_at_s >= 0.2


async def test_an_operator_s_word_counts_while_a_model_sleeps(shop: "Shop") -> None:
    await opened(shop, idle_unload_s=0.01)
    await until(lambda: shop.engine.stopped)
    await carried_out(shop, Order.UNLOAD)
    (info,) = await shop.queue.workers()
    assert not info.takes_requests
    answer = await shop.ask()
    assert await shop.waiting() == 1
    await carried_out(shop, Order.LOAD)
    await ends(shop, answer, 0)


# ── an engine that is lost ───────────────────────────────────────────────────────────────────────


async def lost(shop: "Shop") -> None:
    """The worker has ended for it."""
    with pytest.raises(BaseException) as raised:  # noqa: PT011  # it may be in a group of groups
        await shop.ended()
    error: BaseException = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, EngineLost)


async def test_where_nobody_could_go_on_what_ran_has_failed_with_what_was_said(shop: "Shop") -> None:
    await opened(shop)
    answers = [await shop.ask(str(number)) for number in range(2)]
    jobs = [await shop.engine.job(number) for number in range(2)]
    for job in jobs:
        shop.engine.say(job, "half")
    shop.engine.lose()
    shop.engine.say(jobs[0], "ghost", STOP)
    await lost(shop)
    for answer in answers:
        response = await answer.response()
        assert response.status is Status.FAILED
        assert response.failure is not None
        assert response.failure.code == "engine_lost"
        assert response.text == "half"
    assert {response.id for response in shop.history.finished} == {answer.id for answer in answers}
    assert not shop.engine.stopped  # which might take for ever
    assert not await shop.queue.workers()


async def test_what_had_ended_before_is_stored_as_it_ended(shop: "Shop", settle: "Settle") -> None:
    await opened(shop)
    answer = await shop.ask()
    shop.history.go_on.clear()
    shop.engine.say(await shop.engine.job(0), "whole", STOP)
    await settle()
    shop.engine.lose()
    await settle()
    shop.history.go_on.set()
    await lost(shop)
    assert (await answer.response()).status is Status.COMPLETED
    assert shop.meter.ended == [("m", Status.COMPLETED)]


async def test_what_others_can_take_over_is_handed_on_and_not_written_any_more(
    shop: "Shop", settle: "Settle"
) -> None:
    handed_on = await self_forsaking(shop)
    answer = await shop.ask()
    shop.engine.say(await shop.engine.job(0), "half")
    await settle()
    shop.engine.lose()
    await lost(shop)
    assert handed_on == [answer.id]
    assert shop.history.finished == []


async def test_who_is_told_to_give_back_what_its_lost_engine_ran_forsakes_it(
    shop: "Shop", settle: "Settle"
) -> None:
    handed_on = await self_forsaking(shop)
    answer, (begun, go_on) = await shop.ask(), slow_appends(shop, "half")
    shop.engine.say(await shop.engine.job(0), "half")
    await begun.wait()
    shop.engine.lose()  # which it hears of behind what it writes just now
    assert shop.worker is not None
    draining = asyncio.create_task(shop.worker.drain(0.0))
    await settle()
    assert not draining.done()
    assert (await shop.queue.backlog("m")).running == 1
    go_on.set()
    await lost(shop)
    await draining
    assert handed_on == [answer.id]
    assert await shop.waiting() == 0


def slow_appends(shop: "Shop", text: str) -> tuple[asyncio.Event, asyncio.Event]:
    """What says `text` is written when the second event is set; the first one tells that it is to be."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    append = shop.queue.append

    async def slow(step: Sequence[Append]) -> Sequence[Append]:
        if any(event == text for item in step for event in item.events):
            begun.set()
            await go_on.wait()
        return await append(step)

    shop.queue.append = slow  # type: ignore[method-assign]
    return begun, go_on


async def self_forsaking(shop: "Shop") -> list[str]:
    """The queue of the shop takes what is forsaken, as one does that outlives the worker."""
    handed_on: list[str] = []
    leave = shop.queue.forsake

    async def forsake(model: str, consumer: Worker, deliveries: list) -> list:  # type: ignore[type-arg]
        await leave(model, consumer, deliveries)
        handed_on.extend(delivery.request.response_id for delivery in deliveries)
        return []

    shop.queue.forsake = forsake  # type: ignore[method-assign, assignment]
    await opened(shop)
    return handed_on


async def test_a_queue_that_is_away_does_not_keep_the_worker(shop: "Shop") -> None:
    await opened(shop)

    async def away(*_: object) -> list[object]:
        raise Unavailable("the queue is away")

    shop.queue.forsake = away  # type: ignore[method-assign, assignment]
    await shop.ask()
    await shop.engine.job(0)
    shop.engine.lose()
    await lost(shop)


async def test_an_engine_may_be_lost_while_it_loads(shop: "Shop") -> None:
    shop.engine.refusal = EngineLost("no card")
    shop.open()
    await lost(shop)
    assert not shop.engine.stopped


async def test_an_engine_that_is_lost_when_it_is_woken_ends_the_worker(shop: "Shop") -> None:
    await opened(shop, idle_unload_s=0.01)
    await until(lambda: shop.engine.stopped)
    shop.engine.refusal = EngineLost("no card")
    response = await (await shop.ask()).response()
    assert response.status is Status.FAILED
    await lost(shop)
