"""What the memory queue promises beyond the port: bounds in bytes."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import NotFound
from internal.biz.events import Event, ResponseFailed, TextDelta
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.models import Response, Status
from internal.data.memory_queue import MemoryQueue, QueueLimits

if TYPE_CHECKING:
    from test.conftest import Reader, RequestFactory

    MakeReader = Callable[[], Reader]


class Consumer:
    slots = room = 1

    def revoke(self, delivery: Delivery) -> None: ...

    def lose(self, delivery: Delivery) -> None: ...


class Settled:
    def __init__(self) -> None:
        self.responses: list[Response] = []

    async def __call__(self, responses: Sequence[Response]) -> None:
        self.responses += responses


async def claim(queue: MemoryQueue) -> Delivery:
    async with asyncio.timeout(5):
        (delivery,) = await queue.claim("m", Consumer())
        return delivery


async def append(queue: MemoryQueue, run: Transcript, *words: str) -> Sequence[str]:
    for word in words:
        run.add(TextDelta(word))
    refused = [one.response_id for one in await queue.append([run])]
    run.number += len(run.events)
    run.events = ()
    return refused


async def answer(queue: MemoryQueue, *words: str) -> str:
    delivery = await claim(queue)
    run = Transcript(delivery)
    run.start()
    await append(queue, run, *words)
    run.finish(Finished(FinishReason.STOP))
    assert not await append(queue, run)
    return run.response_id


async def is_known(queue: MemoryQueue, response_id: str, make_reader: "MakeReader") -> bool:
    try:
        (await queue.follow(response_id, -1, make_reader())).close()
    except NotFound:
        return False
    return True


@pytest.mark.parametrize("per_append", [1, 2, 3, 64, 100])
@pytest.mark.parametrize("first", [0, 1])
async def test_an_answer_that_grows_beyond_its_bound_fails(
    make_request: "RequestFactory", make_reader: "MakeReader", per_append: int, first: int
) -> None:
    settled = Settled()
    queue = MemoryQueue(QueueLimits(max_response_bytes=100_000), settled)
    request, reader = make_request(), make_reader()
    await queue.publish(request)
    cursor = await queue.follow(request.response_id, -1, reader)
    run = Transcript(await claim(queue))
    run.start()
    await append(queue, run, *["x"] * first)
    said, refused = 0, list[str]()
    while not refused:
        assert said < 100_000 + 200 * 1000, "never bounded"
        refused = list(await append(queue, run, *["y" * 1000] * per_append))
        said += 1000 * per_append
    assert refused == [request.response_id]
    events = await reader.read(cursor)
    last = events[-1]
    assert isinstance(last, ResponseFailed)
    assert last.response.status is Status.FAILED
    assert last.response.failure is not None
    assert last.response.failure.code == "answer_too_long"
    assert settled.responses == [last.response]
    assert len(last.response.text) == said + first
    assert await append(queue, run, "more") == refused


async def test_retained_logs_are_bounded_in_bytes_and_the_oldest_go_first(
    make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    queue = MemoryQueue(QueueLimits(max_retained_bytes=100_000), Settled())
    ids = []
    for _ in range(10):
        await queue.publish(make_request())
        response_id = await answer(queue, "x" * 5000)  # kept five times: delta, three done, completed
        ids.append(response_id)
    known = [await is_known(queue, response_id, make_reader) for response_id in ids]
    assert known == sorted(known)
    assert not known[0]
    assert known[-1]


async def test_a_follower_that_is_behind_still_gets_everything_of_what_was_forgotten(
    make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    queue = MemoryQueue(QueueLimits(max_retained_bytes=50_000), Settled())
    request, slow = make_request(), make_reader()
    await queue.publish(request)
    cursor = await queue.follow(request.response_id, -1, slow)
    await answer(queue, "slow " * 1000, "and steady")
    for _ in range(5):
        await queue.publish(make_request())
        await answer(queue, "x" * 10_000)
    assert not await is_known(queue, request.response_id, make_reader)
    events: list[Event] = await slow.read(cursor)
    assert "".join(event for event in events if isinstance(event, TextDelta)).endswith("slow and steady")


async def test_housekeeping_ends_when_cancelled(
    make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    queue = MemoryQueue(QueueLimits(), Settled())
    housekeeping = asyncio.create_task(queue.run())
    await asyncio.sleep(0)
    first, second = make_request(), make_request()
    await queue.publish(first)
    await queue.publish(second)
    await queue.follow(second.response_id, -1, make_reader(), queue_updates=True)
    await claim(queue)  # a timer that tells positions is under way
    housekeeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await housekeeping
