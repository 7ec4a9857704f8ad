"""Everything that may happen, at random: and at its end all texts are exact, and nothing is left over.

TEST_CHAOS_SEED repeats a run (as far as processes can), TEST_CHAOS_S makes it longer.
"""

import asyncio
import contextlib
import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import WebSocketException

if TYPE_CHECKING:
    from test.chaos.conftest import JSON, Cluster, OpenSocket, Process, StartOn, Stream
    from test.conftest import OwnRedis

DURATION_S = float(os.environ.get("TEST_CHAOS_S", "20"))
SERVERS, WORKERS, CLIENTS = 2, 3, 50
CHUNKS = 80
PAUSES_S = (0.1, 0.8)
LEASE_S = 1.0
CONFIG: "JSON" = {
    # Nobody may be given up who only met too many faults, or who was away for some seconds.
    "queue": {"lease": f"{LEASE_S:g}s", "max_attempts": 10},
    "session": {"grace": "30s"},
    "models": [{"name": "echo", "generator": "echo", "options": {"chunks": CHUNKS, "interval": "50ms"}}],
    "shutdown": {"timeout": "1s"},
}
REDIS_IS_AWAY = [
    r"Redis is away: ",
    r"Redis refused \w+: LOADING ",
]


class Clients:
    """Each asks one question after another, and has to get every answer exactly."""

    def __init__(self, cluster: "Cluster", new_stream: "type[Stream]", dice: random.Random) -> None:
        self.streams: list[Stream] = []
        """What each is busy with."""
        self.answered = 0
        self._cluster = cluster
        self._new_stream = new_stream
        self._dice = dice
        self._stopping = False

    async def talk(self) -> None:
        """Returns when `stop` was called and all have their answers."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(CLIENTS):
                self.streams.append(self._ask(f"{number}"))
                tasks.create_task(self._keep_asking(number))

    def stop(self) -> None:
        self._stopping = True

    def _ask(self, message: str) -> "Stream":
        dice = random.Random(self._dice.random())
        return self._new_stream(self._cluster.servers, "echo", message, CHUNKS, dice)

    async def _keep_asking(self, number: int) -> None:
        while True:
            stream = self.streams[number]
            await stream.run()
            stream.check()
            self.answered += 1
            if self._stopping:
                return
            self.streams[number] = self._ask(f"{number} asks {self.answered}")


class Chaos:
    """Faults, one after another, each of which is mended by itself."""

    def __init__(
        self,
        cluster: "Cluster",
        redis: "OwnRedis",
        clients: Clients,
        open_socket: "OpenSocket",
        dice: random.Random,
    ) -> None:
        self.done: Counter[str] = Counter()
        self._cluster = cluster
        self._redis = redis
        self._clients = clients
        self._open_socket = open_socket
        self._dice = dice
        self._broken: set[object] = set()
        self._faults: list[Callable[[], Awaitable[None]]] = [
            *[self._kill_a_worker] * 3,
            *[self._stop_a_worker] * 3,
            self._end_a_worker,
            *[self._kill_a_server] * 2,
            *[self._stop_a_server] * 2,
            self._end_a_server,
            *[self._redis_goes] * 2,
            self._redis_hangs,
            *[self._cancel] * 4,
            *[self._disconnect] * 6,
        ]

    async def rage(self, seconds: float) -> None:
        """Returns when everything is mended."""
        end_s = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            while time.monotonic() < end_s:
                fault = self._dice.choice(self._faults)
                self.done[fault.__name__.strip("_")] += 1
                tasks.create_task(fault())  # type: ignore[arg-type]
                await asyncio.sleep(self._dice.uniform(*PAUSES_S))

    def _pick(self, processes: "list[Process]") -> "contextlib.AbstractContextManager[Process | None]":
        """One that is whole; None when none is."""
        whole = [process for process in processes if process not in self._broken]
        return self._breaking(self._dice.choice(whole) if whole else None)

    @contextlib.contextmanager
    def _breaking(self, thing: "Process | None") -> "Iterator[Process | None]":
        self._broken.add(thing)
        yield thing
        self._broken.discard(thing)

    async def _pause(self, longest_s: float) -> None:
        await asyncio.sleep(self._dice.uniform(0, longest_s))

    async def _kill_a_worker(self) -> None:
        await self._kill(self._cluster.workers)

    async def _kill_a_server(self) -> None:
        await self._kill([*self._cluster.servers])

    async def _kill(self, processes: "list[Process]") -> None:
        with self._pick(processes) as process:
            if process:
                process.kill()
                await self._pause(1)
                process.start()

    async def _stop_a_worker(self) -> None:
        await self._stop(self._cluster.workers, 2.5 * LEASE_S)

    async def _stop_a_server(self) -> None:
        await self._stop([*self._cluster.servers], 3)

    async def _stop(self, processes: "list[Process]", longest_s: float) -> None:
        with self._pick(processes) as process:
            if process:
                process.pause()
                await self._pause(longest_s)
                process.resume()

    async def _end_a_worker(self) -> None:
        await self._end(self._cluster.workers)

    async def _end_a_server(self) -> None:
        await self._end([*self._cluster.servers])

    async def _end(self, processes: "list[Process]") -> None:
        with self._pick(processes) as process:
            # Before that a signal just kills it.
            if process and "connected to Redis" in process.log_since_start:
                process.signal()
                assert await process.exit_status() == 0, process.log
                process.start()

    async def _redis_goes(self) -> None:
        await self._break_redis(self._dice.choice((self._redis.kill, self._redis.stop)), self._redis.start)

    async def _redis_hangs(self) -> None:
        await self._break_redis(self._redis.pause, self._redis.resume)

    async def _break_redis(
        self, break_it: Callable[[], Awaitable[None]], mend_it: Callable[[], Awaitable[None]]
    ) -> None:
        if self._redis not in self._broken:
            self._broken.add(self._redis)
            await break_it()
            await self._pause(1.5)
            await mend_it()
            self._broken.discard(self._redis)

    async def _cancel(self) -> None:
        """From wherever."""
        stream = self._dice.choice(self._clients.streams)
        if stream.answer.id is None:
            return
        stream.cancelled = True
        with contextlib.suppress(OSError, WebSocketException, TimeoutError):
            async with self._open_socket(self._dice.choice(self._cluster.servers)) as socket:
                await socket.cancel(stream.answer.id)

    async def _disconnect(self) -> None:
        """As a client does whose network is gone."""
        for stream in self._dice.sample(self._clients.streams, CLIENTS // 5):
            if stream.socket is not None:
                stream.socket.connection.transport.abort()


@pytest.mark.deadline_s(DURATION_S + 100)
async def test_texts_are_exact_and_nothing_is_left_whatever_happens(
    own_redis: "OwnRedis",
    start_cluster_on: "StartOn",
    open_socket: "OpenSocket",
    new_stream: "type[Stream]",
) -> None:
    seed = int(os.environ.get("TEST_CHAOS_SEED") or secrets.randbelow(10**6))
    print(f"TEST_CHAOS_SEED={seed} TEST_CHAOS_S={DURATION_S:g}")
    dice = random.Random(seed)
    async with start_cluster_on(own_redis.url, CONFIG, servers=SERVERS, workers=WORKERS) as cluster:
        cluster.may_log += REDIS_IS_AWAY
        clients = Clients(cluster, new_stream, dice)
        chaos = Chaos(cluster, own_redis, clients, open_socket, dice)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(clients.talk())
            await chaos.rage(DURATION_S)
            clients.stop()
            print(f"{chaos.done}; {clients.answered} answers")
        await cluster.ready()
        await cluster.until(lambda: is_calm(cluster), "nothing waits or runs, and all workers are free")
        assert not [key for key in cluster.all_keys() if cluster.redis.ttl(key) == -1]
        assert not cluster.redis.exists(cluster.key("echo", "dead"))


async def is_calm(cluster: "Cluster") -> bool:
    queue = (cluster.key("echo", "waiting"), cluster.key("echo", "running"), cluster.key("echo", "ring"))
    if cluster.redis.exists(*queue):
        return False
    workers = await cluster.servers[0].workers()
    return len(workers) == WORKERS and not any(worker["busy"] for worker in workers)
