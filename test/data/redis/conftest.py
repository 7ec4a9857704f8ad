"""Logs as a worker would write them, and processes around a real Redis that the test has in its hands."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio

from internal.biz.errors import Unavailable
from internal.biz.events import Event, ReasoningDelta, ResponseQueued, TextDelta
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.models import Request, Response, Status
from internal.biz.ports import Append
from internal.data.redis import link as link_module
from internal.data.redis import queue as queue_module
from internal.data.redis import work_queue as work_queue_module
from internal.data.redis.entries import encode, head_of
from internal.data.redis.keys import Keys
from internal.data.redis.link import RedisLink, Unanswered
from internal.data.redis.queue import RedisQueue, RedisQueueOptions
from internal.data.redis.work_queue import RedisWorkQueue
from internal.metrics.instruments import Instruments

if TYPE_CHECKING:
    from test.conftest import OwnRedis, RequestFactory

MODELS = ("m", "other")

Saying = TextDelta | ReasoningDelta


@dataclass(frozen=True)
class Log:
    """What stands in one log, and how it is written."""

    head: Request
    events: list[Event]
    entries: list[bytes]


def write_log(
    request: Request, attempts: Sequence[Sequence[Saying]], end: Finished | None = None, *, position: int = 0
) -> Log:
    """The log of a response that took several attempts, each of which said something."""
    head = head_of(request)
    events: list[Event] = [ResponseQueued(Response.of(head, Status.QUEUED), position)]
    for number, sayings in enumerate(attempts, 1):
        run = Transcript(Delivery(head, number, tuple(events), None))
        run.start()
        for saying in sayings:
            run.add(saying)
        if end is not None and number == len(attempts):
            run.finish(end)
        events += run.events
    return Log(head, events, [encode(event) for event in events])


@pytest.fixture(scope="session", name="write_log")
def _write_log() -> Callable[..., Log]:
    return write_log


# ── processes ────────────────────────────────────────────────────────────────────────────────────


class Meter:
    """Counts what went wrong."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def lease_taken_over(self, model: str) -> None:
        self.counts["taken over"] += 1

    def append_refused(self, model: str) -> None:
        self.counts["refused"] += 1

    def gap_filled(self, model: str) -> None:
        self.counts["gap"] += 1

    def response_lost(self, model: str) -> None:
        self.counts["lost"] += 1

    def dead_letter(self, model: str) -> None:
        self.counts["dead"] += 1

    def turns_continued(self, model: str, same: int, other: int) -> None:
        self.counts["same worker"] += same
        self.counts["other worker"] += other

    def redis_error(self) -> None:
        self.counts["error"] += 1


class FlakyLink(RedisLink):
    """Loses what the test says."""

    def __init__(self, url: str, tick_channel: str, meter: Meter) -> None:
        super().__init__(url, tick_channel, meter)
        self.deaf = False
        """Messages do not arrive."""
        self.before: Counter[str] = Counter()
        """How many of the next calls of a script do not reach Redis."""
        self.behind: Counter[str] = Counter()
        """Of how many of the next ones the answer does not come back."""
        self.calls: Counter[str] = Counter()

    async def call(self, script: str, base: str, *args: Any) -> Any:
        self.calls[script] += 1
        if self.before[script]:
            self.before[script] -= 1
            raise Unavailable("lost on the way", code="queue_unavailable")
        reply = await super().call(script, base, *args)
        if self.behind[script]:
            self.behind[script] -= 1
            raise Unanswered("lost on the way back", code="queue_unavailable")
        return reply

    def _tell(self, channel: bytes, message: bytes) -> None:
        if not self.deaf:
            super()._tell(channel, message)


class Consumer:
    """A worker's ear."""

    def __init__(self, room: int = 1) -> None:
        self.slots = room
        self.room = room
        self.revoked: list[Delivery] = []
        self.lost: list[Delivery] = []

    def revoke(self, delivery: Delivery) -> None:
        self.revoked.append(delivery)

    def lose(self, delivery: Delivery) -> None:
        self.lost.append(delivery)


class _Process:
    def __init__(self, net: "Net", name: str) -> None:
        self.name = name
        self.meter = Meter()
        self.link = FlakyLink(net.url, f"{net.prefix}:tick:{name}", self.meter)
        if net.declares:
            self.link._sources = {script: "#!lua\n" + text for script, text in self.link._sources.items()}
        self._tasks: list[asyncio.Task[None]] = []

    async def _start(self, *parts: Callable[[], Awaitable[None]]) -> None:
        self._tasks = [asyncio.ensure_future(part()) for part in (self.link.run, *parts)]
        async with asyncio.timeout(5):
            await self.link.wait_heard()

    async def freeze(self) -> None:
        """It keeps its connections, and does nothing by itself any more."""
        await self._end(self._tasks[1:])

    async def kill(self) -> None:
        await self._end(reversed(self._tasks))

    async def _end(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
            await asyncio.wait([task], timeout=2)
            assert task.done(), f"{self.name} does not end"
            if not task.cancelled():
                await task


class Server(_Process):
    def __init__(self, net: "Net", name: str) -> None:
        super().__init__(net, name)
        self.queue = RedisQueue(name, MODELS, self.link, net.keys, net.options, net.settle, self.meter)

    async def start(self) -> "Server":
        await self._start(self.queue.run)
        return self


class Worker(_Process):
    def __init__(self, net: "Net", name: str) -> None:
        super().__init__(net, name)
        self.queue = RedisWorkQueue(name, MODELS, self.link, net.keys, net.options, net.settle, self.meter)
        self.consumer = Consumer()

    async def start(self) -> "Worker":
        await self._start(self.queue.run)
        return self

    async def claim(self, room: int = 1) -> list["Run"]:
        self.consumer.room = room
        async with asyncio.timeout(5):
            deliveries = await self.queue.claim("m", self.consumer)
        self.consumer.room = 0
        return [Run(self, delivery) for delivery in deliveries]

    async def claim_one(self) -> "Run":
        (run,) = await self.claim()
        return run

    async def ask(self, model: str = "m") -> list["Run"]:
        """What there is for it now. Its consumer's room stays what it is."""
        deliveries, _ = await self.queue._claim(model, self.queue._keys.base(model), self.consumer)
        return [Run(self, delivery) for delivery in deliveries]

    async def tell_room(self, room: int) -> None:
        """It lives, and has this much room from now on."""
        self.consumer.slots = self.consumer.room = room
        self.queue._consumers["m"] = self.consumer
        await self.queue._renew()

    async def step(self, *runs: "Run") -> list["Run"]:
        """Append what they have to say, as often as it takes. Returns what was refused."""
        refused: Sequence[Append] | None = None
        while refused is None:
            try:
                refused = await self.queue.append(runs)
            except Unavailable:
                await asyncio.sleep(0.01)
        for run in runs:
            run.appended()
        return [run for run in runs if run in refused]


class Run(Transcript):
    """A delivery on an engine that is the test."""

    def __init__(self, worker: Worker, delivery: Delivery) -> None:
        super().__init__(delivery)
        self._worker = worker

    async def say(self, *words: str) -> bool:
        """False when it was refused."""
        self.start()
        for word in words:
            self.add(TextDelta(word))
        return not await self._worker.step(self)

    async def end(self, *words: str) -> Response:
        self.start()
        for word in words:
            self.add(TextDelta(word))
        response = self.finish(Finished(FinishReason.STOP))
        assert not await self._worker.step(self)
        return response


class Net:
    """Servers and workers around one Redis."""

    def __init__(self, url: str, prefix: str, make_request: "RequestFactory") -> None:
        self.url = url
        self.prefix = prefix
        self.keys = Keys(prefix)
        self.base = self.keys.base("m")
        self.options = RedisQueueOptions(lease_s=5.0)
        self.declares = False
        """Whether scripts say that they keep to one hash slot, and are held to it: from Redis 7 on."""
        self.settled: list[Response] = []
        self.storage_is_away = False
        self.refusals = 0
        """How often it was asked while it was away."""
        self.redis: Any = redis.asyncio.Redis.from_url(url)
        """To look behind the scenes."""
        self.make_request = make_request
        self._processes: list[_Process] = []

    async def settle(self, responses: Sequence[Response]) -> None:
        if self.storage_is_away:
            self.refusals += 1
            raise Unavailable("the storage is away")
        self.settled += responses

    async def server(self, name: str = "s") -> Server:
        server = Server(self, name)
        self._processes.append(server)
        return await server.start()

    async def worker(self, name: str = "w") -> Worker:
        worker = Worker(self, name)
        self._processes.append(worker)
        return await worker.start()

    async def publish(self, server: Server, *turn: str, **fields: Any) -> Request:
        request = self.make_request(*turn, **fields)
        await server.queue.publish(request)
        return request

    async def log(self, response_id: str) -> list[bytes]:
        entries: list[bytes] = await self.redis.lrange(f"{self.base}:log:{response_id}", 0, -1)
        return entries

    async def meta(self, response_id: str, field: str) -> str | None:
        value = await self.redis.hget(f"{self.base}:meta:{response_id}", field)
        return value.decode() if isinstance(value, bytes) else value

    async def letters(self) -> list[dict[bytes, bytes]]:
        """The dead ones."""
        return [fields for _, fields in await self.redis.xrange(f"{self.base}:dead")]

    async def close(self) -> None:
        await self.redis.aclose()
        for process in reversed(self._processes):
            await process.kill()


@pytest.fixture
async def net(
    watched_loop: None,
    redis_url: str,
    redis_prefix: str,
    make_request: "RequestFactory",
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Net]:
    """Around the Redis that all tests share."""
    _hurry(monkeypatch)
    net = Net(redis_url, redis_prefix, make_request)
    yield net
    await net.close()


@pytest.fixture
async def own_net(
    watched_loop: None,
    own_redis: "OwnRedis",
    make_request: "RequestFactory",
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Net]:
    """Around a Redis of the test's own."""
    _hurry(monkeypatch)
    net = Net(own_redis.url, "own", make_request)
    yield net
    await net.close()


def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PROBE_INTERVAL_S", 0.02)
    monkeypatch.setattr(queue_module, "HOUSEKEEPING_S", 0.05)
    monkeypatch.setattr(queue_module, "POSITIONS_INTERVAL_S", 0.02)
    monkeypatch.setattr(work_queue_module, "POLL_INTERVAL_S", 0.05)


# ── one connection, as every process has one ─────────────────────────────────────────────────────


@pytest.fixture
def keys(redis_prefix: str) -> Keys:
    return Keys(redis_prefix)


@pytest.fixture
async def link(redis_url: str, keys: Keys) -> AsyncIterator[RedisLink]:
    link = RedisLink(redis_url, keys.tick("test"), Instruments())
    await link.reach()
    running = asyncio.create_task(link.run())
    yield link
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
