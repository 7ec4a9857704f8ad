"""The implementations that the contract is held against."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from internal.biz.models import Response
from internal.biz.ports import Queue
from internal.data import memory_queue
from internal.data.memory_queue import MemoryQueue, QueueLimits


@dataclass
class Limits:
    retain_s: float = 600.0
    max_pending: int = 1024
    max_age_s: float = 600.0
    max_attempts: int = 3


@dataclass
class Settled:
    """What the queue stored of responses that it ended itself, in the place of a worker."""

    responses: list[Response] = field(default_factory=list)

    async def __call__(self, responses: Sequence[Response]) -> None:
        self.responses += responses


OpenQueue = Callable[[Limits], Awaitable[Queue]]


@asynccontextmanager
async def memory(limits: Limits, settled: Settled) -> AsyncIterator[Queue]:
    queue = MemoryQueue(
        QueueLimits(
            retain_s=limits.retain_s,
            max_pending=limits.max_pending,
            max_age_s=limits.max_age_s,
            max_attempts=limits.max_attempts,
        ),
        settled,
    )
    housekeeping = asyncio.create_task(queue.run())
    yield queue
    housekeeping.cancel()
    await asyncio.gather(housekeeping, return_exceptions=True)


IMPLEMENTATIONS = {"memory": memory}


@pytest.fixture
def settled() -> Settled:
    return Settled()


@pytest.fixture(params=list(IMPLEMENTATIONS))
async def open_queue(
    request: pytest.FixtureRequest, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[OpenQueue]:
    """Opens a queue with limits of its own; closed behind the test."""
    monkeypatch.setattr(memory_queue, "SWEEP_INTERVAL_S", 0.005)
    monkeypatch.setattr(memory_queue, "POSITIONS_INTERVAL_S", 0.001)
    async with AsyncExitStack() as opened:

        async def open_it(limits: Limits) -> Queue:
            return await opened.enter_async_context(IMPLEMENTATIONS[request.param](limits, settled))

        yield open_it


@pytest.fixture
async def queue(open_queue: OpenQueue) -> Queue:
    """A queue with the default limits."""
    return await open_queue(Limits())


@pytest.fixture
def limits() -> type[Limits]:
    return Limits
