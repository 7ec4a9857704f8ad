"""The implementations that the contract is held against."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import pytest
import redis

from internal.biz import ports
from internal.biz.models import Response
from internal.data import memory_queue
from internal.data.memory_history import MemoryHistory
from internal.data.memory_queue import MemoryQueue, QueueLimits
from internal.data.redis import queue as redis_queue
from internal.data.redis.keys import Keys
from internal.data.redis.link import RedisLink
from internal.data.redis.queue import RedisQueue, RedisQueueOptions
from internal.data.redis.work_queue import RedisWorkQueue
from internal.data.sql.history import SqlHistory
from internal.metrics.instruments import Instruments

if TYPE_CHECKING:
    from test.conftest import OpenDatabase


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


class Queue(ports.Queue, ports.WorkQueue, Protocol):
    """Both sides of a queue."""


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


class Processes:
    """A queue on Redis as three processes see it: one publishes, another follows, a third works."""

    def __init__(self, publisher: RedisQueue, follower: RedisQueue, worker: RedisWorkQueue) -> None:
        self.publish = publisher.publish
        self.cancel = publisher.cancel
        self.follow = follower.follow
        self.followers = follower.followers
        self.forget = follower.forget
        self.unknown = follower.unknown
        self.backlog = follower.backlog
        self.workers = publisher.workers
        self.order = publisher.order
        self.claim = worker.claim
        self.pause = worker.pause
        self.attend = worker.attend
        self.leave = worker.leave
        self.forsake = worker.forsake
        self.append = worker.append
        self.announce = worker.announce
        self.retry = worker.retry
        self.release = worker.release


class Runs(Protocol):
    async def run(self) -> None: ...


@asynccontextmanager
async def on_redis(
    limits: Limits, settled: Settled, implementation: "Implementation"
) -> AsyncIterator[Queue]:
    keys, meter = Keys(implementation.prefix), Instruments()
    models = ("m", "other")
    options = RedisQueueOptions(
        retain_s=limits.retain_s,
        max_pending=limits.max_pending,
        max_age_s=limits.max_age_s,
        max_attempts=limits.max_attempts,
    )
    links = [implementation.link(str(number)) for number in range(3)]
    publisher, follower = (
        RedisQueue(name, models, link, keys, options, settled, meter)
        for name, link in zip(("a", "b"), links[:2], strict=True)
    )
    worker = RedisWorkQueue("w", models, links[2], keys, options, settled, meter)
    parts: tuple[Runs, ...] = (*links, publisher, follower, worker)
    tasks = [asyncio.create_task(part.run()) for part in parts]
    for link in links:
        await link.wait_heard()
    yield Processes(publisher, follower, worker)
    for task in reversed(tasks):
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "implementation" in metafunc.fixturenames:
        names = ["memory", "redis"]
        if metafunc.definition.get_closest_marker("cluster"):
            names.append("redis-cluster")
        metafunc.parametrize("implementation", names, indirect=True)


@dataclass(frozen=True)
class Implementation:
    """`url` is empty for what is in memory. `declares`: scripts say that they keep to one hash slot, and are
    held to it."""

    url: str = ""
    prefix: str = ""
    declares: bool = False

    def link(self, name: str) -> RedisLink:
        link = RedisLink(self.url, f"{self.prefix}:tick:{name}", Instruments())
        if self.declares:
            link._sources = {script: "#!lua\n" + source for script, source in link._sources.items()}
        return link


@pytest.fixture
def implementation(request: pytest.FixtureRequest) -> Implementation:
    if request.param == "memory":
        return Implementation()
    if request.param == "redis":
        return Implementation(request.getfixturevalue("redis_url"), request.getfixturevalue("redis_prefix"))
    url = request.getfixturevalue("redis_cluster_url")
    with redis.Redis.from_url(url) as client:
        major = int(client.info("server")["redis_version"].split(".")[0])
    return Implementation(url, "test", declares=major >= 7)


@pytest.fixture
def settled() -> Settled:
    return Settled()


@pytest.fixture
async def open_queue(
    implementation: Implementation, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[OpenQueue]:
    """Opens a queue with limits of its own; closed behind the test."""
    monkeypatch.setattr(memory_queue, "SWEEP_INTERVAL_S", 0.005)
    monkeypatch.setattr(memory_queue, "POSITIONS_INTERVAL_S", 0.001)
    monkeypatch.setattr(redis_queue, "HOUSEKEEPING_S", 0.02)
    monkeypatch.setattr(redis_queue, "LEAST_RETAIN_S", 0.0)
    monkeypatch.setattr(redis_queue, "POSITIONS_INTERVAL_S", 0.005)
    async with AsyncExitStack() as opened:

        async def open_it(limits: Limits) -> Queue:
            if not implementation.url:
                return await opened.enter_async_context(memory(limits, settled))
            return await opened.enter_async_context(on_redis(limits, settled, implementation))

        yield open_it


@pytest.fixture
async def queue(open_queue: OpenQueue) -> Queue:
    """A queue with the default limits."""
    return await open_queue(Limits())


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def history_url(request: pytest.FixtureRequest) -> str:
    """Where the history is: empty for one in memory."""
    if request.param == "memory":
        return ""
    url: str = request.getfixturevalue(f"{request.param}_storage")
    return url


@pytest.fixture
async def history(
    history_url: str, open_database: "OpenDatabase", watched_loop: None
) -> AsyncIterator[ports.History]:
    if not history_url:
        yield MemoryHistory()
        return
    async with open_database(history_url) as database:
        yield SqlHistory(database)


@pytest.fixture
def limits() -> type[Limits]:
    return Limits
