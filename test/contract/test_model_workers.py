"""What every queue promises of workers whose models come and go, and of those whose engine is lost."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from internal.biz.events import QueueUpdate, ResponseQueued
from internal.biz.generation import Delivery, Transcript
from internal.biz.models import Condition, ModelState, Order, WorkerInfo

if TYPE_CHECKING:
    from test.conftest import Eventually, Reader, RequestFactory
    from test.contract.conftest import Queue

    MakeReader = Callable[[], Reader]

LOADING = Condition(ModelState.LOADING, 0.5, ("order_1",), "it was too large")


class Worker:
    """Implements Consumer and Resident."""

    slots = room = 2

    def __init__(self, condition: Condition) -> None:
        self.condition = condition
        self.orders: list[tuple[str, Order]] = []

    def order(self, order_id: str, order: Order) -> None:
        self.orders.append((order_id, order))

    def revoke(self, delivery: Delivery) -> None:
        raise AssertionError

    def lose(self, delivery: Delivery) -> None:
        raise AssertionError


async def known(queue: "Queue", eventually: "Eventually", slots: int, condition: Condition) -> WorkerInfo:
    """The only worker, as soon as it is told to be so."""
    found: list[WorkerInfo] = []

    async def is_known() -> bool:
        found[:] = await queue.workers()
        return [(it.slots, it.condition) for it in found] == [(slots, condition)]

    await eventually(is_known)
    return found[0]


async def counted(queue: "Queue", make_request: "RequestFactory", reader: "Reader") -> int:
    """How many workers a request is told that there are for it."""
    request = make_request()
    await queue.publish(request)
    cursor = await queue.follow(request.response_id, -1, reader)
    (queued,) = cursor.take(1, 1000)
    cursor.close()
    await queue.cancel(request.response_id)
    assert isinstance(queued, ResponseQueued)
    return queued.workers


async def stopped(task: "asyncio.Task[object]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.cluster
async def test_a_worker_is_seen_that_takes_nothing_but_does_not_count(
    queue: "Queue", eventually: "Eventually", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    worker = Worker(LOADING)
    queue.attend("m", worker)
    info = await known(queue, eventually, 0, LOADING)
    assert (info.model, info.busy, info.takes_requests) == ("m", 0, False)
    assert await counted(queue, make_request, make_reader()) == 0

    claiming = asyncio.create_task(queue.claim("m", worker))
    worker.condition = Condition()
    queue.attend("m", worker)
    await known(queue, eventually, 2, Condition())
    await stopped(claiming)
    worker.condition = Condition(ModelState.UNLOADED, 0.0)
    queue.attend("m", worker)
    await known(queue, eventually, 0, worker.condition)
    assert await counted(queue, make_request, make_reader()) == 0

    queue.leave("m", worker)

    async def is_gone() -> bool:
        return not await queue.workers()

    await eventually(is_gone)


@pytest.mark.cluster
async def test_a_worker_that_pauses_while_it_is_full_does_not_count(
    queue: "Queue", eventually: "Eventually", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    worker = Worker(Condition())
    queue.attend("m", worker)
    await queue.publish(make_request())
    assert await queue.claim("m", worker)
    await known(queue, eventually, 2, Condition())
    queue.pause("m", worker)  # without a claim that could be cancelled
    await known(queue, eventually, 0, Condition())
    assert await counted(queue, make_request, make_reader()) == 0
    claiming = asyncio.create_task(queue.claim("m", worker))
    await known(queue, eventually, 2, Condition())
    await stopped(claiming)


@pytest.mark.cluster
async def test_an_order_reaches_the_workers_of_its_model(queue: "Queue", eventually: "Eventually") -> None:
    mine, other = Worker(Condition()), Worker(Condition())
    queue.attend("m", mine)
    queue.attend("other", other)

    async def are_known() -> bool:
        return len(await queue.workers()) == 2

    await eventually(are_known)
    await queue.order("m", "order_1", Order.UNLOAD)
    await queue.order("m", "order_2", Order.LOAD)

    async def is_told() -> bool:
        return len(mine.orders) == 2

    await eventually(is_told)
    assert mine.orders == [("order_1", Order.UNLOAD), ("order_2", Order.LOAD)]
    assert other.orders == []


async def test_an_order_for_a_model_without_workers_is_heard_by_nobody(queue: "Queue") -> None:
    await queue.order("m", "order_1", Order.LOAD)
    assert not await queue.workers()


async def test_who_asked_hears_how_far_the_model_is_loaded(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    request, reader = make_request(), make_reader()
    await queue.publish(request)
    cursor = await queue.follow(request.response_id, -1, reader, queue_updates=True)
    (delivery,) = await queue.claim("m", Worker(Condition()))
    updates = [QueueUpdate(0, loading=0.25), QueueUpdate(0, 64, 300)]
    for update in updates:
        queue.announce(delivery, update)
    while reader.updates[-1:] != updates[-1:]:
        await reader.news()
    assert [it for it in reader.updates if it in updates] == updates
    cursor.close()


@pytest.mark.cluster
async def test_what_is_forsaken_is_handed_on_or_returned(
    queue: "Queue", eventually: "Eventually", make_request: "RequestFactory"
) -> None:
    worker = Worker(Condition())
    queue.attend("m", worker)
    requests = [make_request(), make_request(user="bob")]
    for request in requests:
        await queue.publish(request)
    deliveries = await queue.claim("m", worker)
    assert len(deliveries) == 2
    left = await queue.forsake("m", worker, deliveries)

    async def is_gone() -> bool:
        return not await queue.workers()

    await eventually(is_gone)
    for delivery in deliveries:
        run = Transcript(delivery)
        run.start()
        refused = await queue.append([run])
        # Either it is still theirs to be ended, or nothing of theirs is written any more.
        assert (delivery in left) is not bool(refused)
