"""Clusters of real processes on a real Redis, and clients that know what they must be told.

A cluster's processes are stopped by SIGTERM when its test (or module) ends; they must then have exited
with 0, have logged nothing alarming, and have left no process behind.
"""

import asyncio
import contextlib
import http.client
import itertools
import json
import random
import re
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import psutil
import pytest
import redis
import yaml
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from cmd.local_redis import free_port

if TYPE_CHECKING:
    from test.conftest import Child, StartProgram

ROOT = Path(__file__).parents[2]
STEP_DEADLINE_S = 20.0
"""What a single step of a test may take on a busy machine."""
SERVER = ("-m", "cmd.server")
WORKER = ("-m", "cmd.worker")
MORTAL_WORKER = (str(Path(__file__).parent / "programs" / "mortal_worker.py"),)

JSON = dict[str, Any]
ALARMS = re.compile(
    r"Traceback|Task was destroyed|never retrieved|never awaited|Warning:|Fatal|CRITICAL|ERROR|Exception|"
    r"Unhandled|took \d+\.\d+ seconds"
)
TERMINAL = ("response.completed", "response.incomplete", "response.failed")
TRY_AGAIN = ("queue_unavailable", "queue_full", "restarting")
"""Errors with which a server refuses what it will accept later."""


# ── processes ────────────────────────────────────────────────────────────────────────────────────


class Reply(NamedTuple):
    """What a plain HTTP request was answered with."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Process:
    """A server or a worker. It may be started again when it has ended."""

    def __init__(self, name: str, program: Sequence[str], conf: Path, start: "StartProgram") -> None:
        self.name = name
        self.log_file = conf.with_name(f"{name}.log")
        self.expected_status = 0
        self._words = [*program, "-conf", str(conf)]
        self._env: dict[str, str] = {}
        self._start = start
        self._process: Child | None = None
        self._log_start = 0
        self.log_file.touch()

    def start(self) -> None:
        assert not self.runs, f"{self.name} runs"
        self._log_start = self.log_file.stat().st_size
        with self.log_file.open("ab") as log:
            self._process = self._start(self._words, self._env, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def log_since_start(self) -> str:
        return self.log_file.read_bytes()[self._log_start :].decode()

    def kill(self) -> None:
        """As a crash does."""
        if self.runs:
            self.signal(signal.SIGKILL)
        if self._process:
            self._process.wait()

    def pause(self) -> None:
        """Returns when it has stopped."""
        assert self._process
        self._process.pause()

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self._process
        self._process.send_signal(number)

    async def exit_status(self) -> int:
        assert self._process
        return await asyncio.to_thread(self._process.wait, STEP_DEADLINE_S)

    def stop(self) -> None:
        """Wait for its end after SIGTERM; it must have gone with `expected_status`."""
        if self._process is None:
            return
        try:
            status = self._process.wait(STEP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"{self.name} did not stop on SIGTERM:\n{self.log}")
        assert status == self.expected_status, f"{self.name}:\n{self.log}"


class Server(Process):
    """A running `python -m cmd.server`."""

    def __init__(self, name: str, program: Sequence[str], conf: Path, start: "StartProgram") -> None:
        super().__init__(name, program, conf, start)
        self.port = 0
        self.move()

    def move(self) -> None:
        """Take another port from the next start on: somebody was faster."""
        # Not one that the kernel gives to clients: it must be free when the server is started again.
        self.port = free_port()
        self._env["SLUICE_SERVER__HTTP__ADDR"] = f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def get(self, path: str) -> Reply:
        return self._ask("GET", path, {})

    def post(self, path: str, key: str) -> Reply:
        """As whose key this is."""
        return self._ask("POST", path, {"Authorization": f"Bearer {key}"})

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=STEP_DEADLINE_S)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return Reply(response.status, response.read().decode())

    async def fetch(self, path: str) -> Reply:
        return await asyncio.to_thread(self.get, path)

    async def workers(self) -> list[JSON]:
        """Those that live."""
        return list((await self.fetch("/v1/workers")).json["data"])


class Cluster:
    """Servers and workers on one Redis, with one configuration."""

    def __init__(self, folder: Path, url: str, config: JSON, start: "StartProgram") -> None:
        self._start = start
        self.prefix = f"test-{secrets.token_hex(6)}"
        self.redis = redis.Redis.from_url(url)
        self.servers: list[Server] = []
        self.workers: list[Process] = []
        self.may_log: list[str] = []
        """Patterns of what is alarming elsewhere, and to be expected in this test."""
        queue = {"driver": "redis", "url": url, "prefix": self.prefix, **config.get("queue", {})}
        self._conf = folder / "config.yaml"
        own_files = {
            "storage": {"url": f"sqlite:///{folder}/sluice.db"},
            "auth": {"secret_file": str(folder / "secret.key")},
        }
        sections = {"shutdown": {"timeout": "5s"}, **own_files, **config, "queue": queue}
        self._conf.write_text(yaml.safe_dump(sections))

    @property
    def processes(self) -> list[Process]:
        return [*self.servers, *self.workers]

    def start_server(self) -> Server:
        """Started, but not yet ready."""
        server = Server(f"server-{len(self.servers)}", SERVER, self._conf, self._start)
        self.servers.append(server)
        server.start()
        return server

    def start_worker(self, *models: str, program: Sequence[str] = WORKER) -> Process:
        """Started, but not yet ready. For all models, or only `models`."""
        chosen = [part for model in models for part in ("-model", model)]
        name, words = f"worker-{len(self.workers)}", (*program, *chosen)
        worker = Process(name, words, self._conf, self._start)
        self.workers.append(worker)
        worker.start()
        return worker

    async def ready(self) -> None:
        """Wait until all servers answer and know all workers that run."""
        for server in self.servers:
            await self.until(lambda s=server: self._is_ready(s), f"{server.name} is ready")  # type: ignore[misc]

    async def _is_ready(self, server: Server) -> bool:
        if not server.runs and "Address already in use" in server.log_since_start:
            server.move()
            server.start()
        try:
            found = await server.fetch("/v1/workers")
        except (OSError, http.client.HTTPException):
            return False
        if found.status != 200:
            return False
        working = [worker["id"] for worker in found.json["data"] if worker["slots"]]
        pids = {int(name.split("-")[-2]) for name in working}
        return pids >= {worker.pid for worker in self.workers if worker.runs}

    async def until(self, condition: Callable[[], Awaitable[object]], what: str) -> None:
        """Wait for what other processes bring about, and nothing announces."""
        try:
            async with asyncio.timeout(STEP_DEADLINE_S):
                while not await condition():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(f"it did not come about that {what}:\n{self.logs}")

    def key(self, model: str, *rest: str) -> str:
        return ":".join((f"{{{self.prefix}:{model}}}", *rest))

    def all_keys(self) -> list[str]:
        return [key.decode() for key in self.redis.scan_iter(f"*{self.prefix}*", count=1000)]

    @property
    def logs(self) -> str:
        return "\n".join(f"── {process.name}\n{process.log}" for process in self.processes)

    def stop(self) -> None:
        """Stop all, and check how they went. Blocks."""
        ours = [psutil.Process(process.pid) for process in self.processes if process.runs]
        children = [child for process in ours for child in process.children(recursive=True)]
        for process in self.processes:
            if process.runs:
                process.resume()
                process.signal()
        for process in self.processes:
            process.stop()
        _, alive = psutil.wait_procs(children, STEP_DEADLINE_S)
        assert not alive, f"left behind: {alive}"
        self.check_logs()

    def check_logs(self) -> None:
        for process in self.processes:
            lines = process.log.splitlines()
            alarming = [line for line in lines if ALARMS.search(line) and not self._may_log(line)]
            assert not alarming, f"{process.name}: {alarming}\n{process.log}"

    def _may_log(self, line: str) -> bool:
        return any(re.search(pattern, line) for pattern in self.may_log)

    def abandon(self) -> None:
        for process in self.processes:
            process.kill()

    def forget(self) -> None:
        with contextlib.suppress(redis.RedisError):
            for key in self.all_keys():
                self.redis.unlink(key)
        self.redis.close()


class StartCluster(Protocol):
    def __call__(
        self, config: JSON, *, servers: int = 2, workers: int = 2, program: Sequence[str] = WORKER
    ) -> AbstractAsyncContextManager[Cluster]:
        """A cluster that is ready. On the Redis that all tests share."""


@contextlib.asynccontextmanager
async def _cluster(
    folder: Path,
    url: str,
    config: JSON,
    servers: int,
    workers: int,
    program: Sequence[str],
    start: "StartProgram",
) -> AsyncIterator[Cluster]:
    cluster = Cluster(folder, url, config, start)
    try:
        for _ in range(servers):
            cluster.start_server()
        for _ in range(workers):
            cluster.start_worker(program=program)
        await cluster.ready()
        yield cluster
        await asyncio.to_thread(cluster.stop)
    except BaseException:
        cluster.abandon()
        raise
    finally:
        cluster.forget()


@pytest.fixture
def start_cluster(redis_url: str, tmp_path: Path, start_program: "StartProgram") -> StartCluster:
    def start(
        config: JSON, *, servers: int = 2, workers: int = 2, program: Sequence[str] = WORKER
    ) -> AbstractAsyncContextManager[Cluster]:
        return _cluster(tmp_path, redis_url, config, servers, workers, program, start_program)

    return start


class StartOn(Protocol):
    def __call__(
        self, url: str, config: JSON, *, servers: int, workers: int
    ) -> AbstractAsyncContextManager[Cluster]:
        """A cluster on a Redis of the test's own, of processes that share nothing from their start on."""


@pytest.fixture
def start_cluster_on(tmp_path: Path, start_fresh: "StartProgram") -> StartOn:
    def start(url: str, config: JSON, *, servers: int, workers: int) -> AbstractAsyncContextManager[Cluster]:
        return _cluster(tmp_path, url, config, servers, workers, WORKER, start_fresh)

    return start


@pytest.fixture(scope="session")
def mortal_worker() -> Sequence[str]:
    """The program of a worker that dies of every message with `poison` in it."""
    return MORTAL_WORKER


# ── clients ──────────────────────────────────────────────────────────────────────────────────────


def echo(message: str, count: int) -> str:
    """The whole answer of an echo model with `count` chunks."""
    return "".join(f"chunk {number}: {message}" for number in range(1, count + 1))


@pytest.fixture(scope="session", name="echo")
def _echo() -> Callable[[str, int], str]:
    return echo


class Answer:
    """The events of one response, as one client saw them, on however many sockets."""

    def __init__(self) -> None:
        self.events: list[JSON] = []
        self.times_s: list[float] = []

    def add(self, event: JSON) -> None:
        """Raises AssertionError when it is not one that may come next."""
        number = event["sequence_number"]
        assert number > self.number, f"{number} came after {self.number}"
        self.events.append(event)
        self.times_s.append(time.monotonic())

    @property
    def number(self) -> int:
        """That of the last event; -1 before the first."""
        return self.events[-1]["sequence_number"] if self.events else -1

    @property
    def id(self) -> str | None:
        return next((event["response"]["id"] for event in self.events if "response" in event), None)

    @property
    def text(self) -> str:
        return "".join(e["delta"] for e in self.events if e["type"] == "response.output_text.delta")

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] in TERMINAL

    @property
    def end(self) -> str:
        """`completed`, `incomplete` or `failed`."""
        assert self.ended, self.events[-1:]
        return str(self.events[-1]["type"]).removeprefix("response.")

    @property
    def response(self) -> JSON:
        response: JSON = self.events[-1]["response"]
        return response

    @property
    def output_text(self) -> str:
        """The text as the response's own `output` has it."""
        return "".join(part["text"] for item in self.response["output"] for part in item["content"])

    @property
    def largest_gap_s(self) -> float:
        """The longest that it waited for a chunk behind the first."""
        times_s = [
            at_s for e, at_s in zip(self.events, self.times_s, strict=True) if e["type"].endswith(".delta")
        ]
        return max(b - a for a, b in itertools.pairwise(times_s))


class Socket:
    """`/v1/responses` over the `websockets` package."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, kind: str, **fields: object) -> None:
        await self.connection.send(json.dumps({"type": f"response.{kind}", **fields}))

    async def create(self, message: str, **fields: object) -> None:
        await self.send("create", input=message, **fields)

    async def resume(self, response_id: str | None, after: int = -1, **fields: object) -> None:
        place = {} if after < 0 else {"starting_after": after}
        await self.send("resume", response_id=response_id, **place, **fields)

    async def cancel(self, response_id: str | None) -> None:
        await self.send("cancel", response_id=response_id)

    async def event(self) -> JSON:
        async with asyncio.timeout(STEP_DEADLINE_S):
            event: JSON = json.loads(await self.connection.recv())
        return event

    async def error(self) -> JSON:
        """The next event, which must be an error: its inner object."""
        event = await self.event()
        assert event["type"] == "error", event
        error: JSON = event["error"]
        return error

    async def read(self, answer: Answer, kind: str | None = None, count: int = 1) -> Answer:
        """Add events to `answer` until it has ended, or `count` events of type `kind` came."""
        while count and not answer.ended:
            event = await self.event()
            assert event["type"] != "error", event
            answer.add(event)
            count -= event["type"] == kind
        return answer

    async def ask(self, message: str, **fields: object) -> Answer:
        await self.create(message, **fields)
        return await self.read(Answer())


OpenSocket = Callable[[Server], AbstractAsyncContextManager[Socket]]


@contextlib.asynccontextmanager
async def open_socket(server: Server) -> AsyncIterator[Socket]:
    url = f"{server.url}/v1/responses"
    async with connect(url, proxy=None, max_size=None, open_timeout=STEP_DEADLINE_S) as connection:
        yield Socket(connection)


@pytest.fixture(scope="session", name="open_socket")
def _open_socket() -> OpenSocket:
    return open_socket


@pytest.fixture(scope="session")
def new_answer() -> type[Answer]:
    return Answer


@dataclass(eq=False)
class Stream:
    """A client with one question, which connects again, to any server, until it has the whole answer."""

    servers: Sequence[Server]
    model: str
    message: str
    chunks: int
    dice: random.Random
    answer: Answer = field(default_factory=Answer)
    asked: int = 0
    """How often it had to ask: once more when it had not even heard the answer's name."""
    connected: int = 0
    errors: list[str] = field(default_factory=list)
    cancelled: bool = False
    """Somebody wants it to be stopped: then a beginning of the text will do."""
    socket: Socket | None = None

    async def run(self) -> Answer:
        while not self.answer.ended:
            with contextlib.suppress(OSError, WebSocketException, TimeoutError):
                await self._listen(self.dice.choice(self.servers))
            if not self.answer.ended:
                await asyncio.sleep(0.02 + 0.1 * self.dice.random())
        return self.answer

    async def _listen(self, server: Server) -> None:
        async with open_socket(server) as socket:
            self.socket, self.connected = socket, self.connected + 1
            try:
                if self.answer.id is None:
                    self.asked += 1
                    await socket.create(self.message, model=self.model)
                else:
                    await socket.resume(self.answer.id, self.answer.number)
                while not self.answer.ended:
                    event: JSON = json.loads(await socket.connection.recv())
                    if event["type"] == "error":
                        self.errors.append(event["error"]["code"])
                        assert event["error"]["code"] in TRY_AGAIN, event
                        return
                    self.answer.add(event)
            finally:
                self.socket = None

    @property
    def expected(self) -> str:
        return echo(self.message, self.chunks)

    def check(self) -> None:
        """Raises AssertionError when the client was not told exactly what it must."""
        answer = self.answer
        assert answer.text == answer.output_text
        if self.cancelled and answer.end == "incomplete":
            assert self.expected.startswith(answer.text)
        else:
            assert answer.end == "completed", answer.response
            assert answer.text == self.expected


@pytest.fixture(scope="session")
def new_stream() -> type[Stream]:
    return Stream


class Crowd:
    """Clients that stream at the same time, each with words of its own."""

    def __init__(self, servers: Sequence[Server], model: str, count: int, chunks: int, seed: int = 0) -> None:
        dice = random.Random(seed)
        self.streams = []
        for number in range(count):
            message = f"stream {number} "
            self.streams.append(Stream(servers, model, message, chunks, random.Random(dice.random())))
        self._tasks: list[asyncio.Task[Answer]] = []

    async def start(self, *, chunks: int = 1) -> None:
        """Returns when all have got `chunks` chunks at least."""
        self._tasks = [asyncio.create_task(stream.run()) for stream in self.streams]
        try:
            async with asyncio.timeout(STEP_DEADLINE_S):
                while not all(_chunks_of(stream.answer) >= chunks for stream in self.streams):
                    self._raise()
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(f"some have got nothing yet: {self.unfinished}")

    def _raise(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    @property
    def unfinished(self) -> list[tuple[str, str | None, int, list[str]]]:
        return [
            (stream.message, stream.answer.id, stream.answer.number, stream.errors)
            for stream in self.streams
            if not stream.answer.ended
        ]

    async def finish(self, within_s: float = STEP_DEADLINE_S) -> None:
        """Wait for all ends; every text must be exact."""
        _, late = await asyncio.wait(self._tasks, timeout=within_s)
        self._raise()
        assert not late, f"these did not end: {self.unfinished}"
        for stream in self.streams:
            stream.check()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _chunks_of(answer: Answer) -> int:
    return sum(event["type"] == "response.output_text.delta" for event in answer.events)


class MakeCrowd(Protocol):
    def __call__(
        self, servers: Sequence[Server], model: str, count: int, *, chunks: int, seed: int = 0
    ) -> Crowd: ...


@pytest.fixture
async def crowd() -> AsyncIterator[MakeCrowd]:
    crowds: list[Crowd] = []

    def make(servers: Sequence[Server], model: str, count: int, *, chunks: int, seed: int = 0) -> Crowd:
        crowds.append(Crowd(servers, model, count, chunks, seed))
        return crowds[-1]

    yield make
    for one in crowds:
        await one.close()
