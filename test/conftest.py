"""What all tests share: a watched event loop, its clock, programs of ours, the server, those that keep data,
requests, a reader of logs, and one of what engines say.

A test that uses the event loop fails when a callback takes the loop for longer than 100 ms, when an error
reaches the loop's exception handler, and when a task is left behind.
"""

import asyncio
import contextlib
import functools
import gc
import http.client
import json
import logging
import os
import queue
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, Protocol

import asyncpg  # type: ignore[import-untyped]
import psutil
import pytest
import redis
import yaml
from hypothesis import settings as hypothesis_settings
from prometheus_client.parser import text_string_to_metric_families
from pytest_asyncio import is_async_test
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from cmd import local_postgres, local_redis
from cmd.local_postgres import LocalPostgres
from cmd.local_redis import LocalRedis, free_port
from internal.biz.errors import EngineLost, SluiceError
from internal.biz.events import Event, QueueUpdate
from internal.biz.generation import Chunk, Finished, Job, Output
from internal.biz.log import Cursor
from internal.biz.models import Message, Request, Role, Settings
from internal.data.sql.database import Database
from internal.data.sql.migrate import migrate
from internal.data.sql.tables import metadata

MAX_CALLBACK_S = 0.1
PATIENCE_S = 5.0
"""How long a test waits for what must happen. Never reached by a test that passes."""

# No deadline: it would measure the machine. Each example of a failure is printed so that it can be repeated.
hypothesis_settings.register_profile("sluice", deadline=None, max_examples=60, print_blob=True)
hypothesis_settings.load_profile("sluice")


PROCESSES_S = {"e2e": 40.0, "web": 120.0, "faults": 90.0, "chaos": 60.0}
"""Folders whose tests talk to processes of their own, and how long one of these may take, whatever it waits
for, unless it says so itself."""


def folder_of(item: pytest.Item) -> str:
    """The one of PROCESSES_S that a test is in; empty for all others."""
    return next((name for name in PROCESSES_S if name in item.path.parts), "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast ones first: whole servers come last, what is done to them behind that, and clusters at the end.

    The other way round where several files run at a time: the long ones must not be all that is left.
    """
    order = ["", *PROCESSES_S]
    if "PYTEST_XDIST_WORKER" in os.environ:
        order.reverse()
    items.sort(key=lambda item: order.index(folder_of(item)))
    for item in items:
        if item.get_closest_marker("alone") and folder_of(item) != "chaos":
            raise pytest.UsageError(f"{item.nodeid}: make looks for tests that run alone in chaos only")
        if isinstance(item, pytest.Function) and (folder := folder_of(item)) and is_async_test(item):
            own = item.get_closest_marker("deadline_s")
            item.obj = _bounded(item.obj, own.args[0] if own else PROCESSES_S[folder])


def _bounded(test: Callable[..., Awaitable[None]], deadline_s: float) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def bounded(*args: object, **kwargs: object) -> None:
        async with asyncio.timeout(deadline_s):
            await test(*args, **kwargs)

    return bounded


# ── the loop ─────────────────────────────────────────────────────────────────────────────────────


class _Waits:
    """How long the threads of a process, ours at first, were kept waiting for a processor since this was
    made: other programs' doing, or, where ours is a virtual machine, others' (`steal`). Source: proc(5)."""

    def __init__(self, process: int | str = "self") -> None:
        self._process = process
        self._threads, self._stolen_s = _waits_ns(process), _stolen_s()

    @property
    def seconds(self) -> float:
        # Those that have ended take along what they waited for.
        waits = (total - self._threads.get(thread, 0) for thread, total in _waits_ns(self._process).items())
        return sum(waits) / 1e9 + _stolen_s() - self._stolen_s


def _waits_ns(process: int | str) -> dict[str, int]:
    """By thread."""
    waits = {}
    for path in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            waits[path.parent.name] = int(path.read_text().split()[1])
    return waits


def _stolen_s() -> float:
    with contextlib.suppress(OSError, IndexError, ValueError):
        stolen = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
        return stolen / os.sysconf("SC_CLK_TCK")
    return 0.0


class _SlowCallbacks(logging.Filter):
    """Collects what asyncio's debug mode reports about callbacks that took too long. Nobody else hears of it:
    some tests are about there being nothing in the log."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._waits = _Waits()
        self._excused_s = 0.0
        self._collecting_since: float | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if not (str(record.msg).startswith("Executing") and isinstance(record.args, tuple)):
            return True
        seconds = record.args[-1]
        # Of a thread that has just collected: it may be told to make room before it says so.
        collecting_s = time.perf_counter() - self._collecting_since if self._collecting_since else 0.0
        excused_s = self._excused_s + collecting_s + self._waits.seconds
        if isinstance(seconds, float) and seconds - excused_s > MAX_CALLBACK_S:
            self.found.append(f"{record.getMessage()} (of which {excused_s:.3f} are excused)")
        return False

    def on_garbage(self, phase: str, info: dict[str, int]) -> None:
        """The heap of a test run is large, and none of the tested code's business."""
        if phase == "start":
            self._collecting_since = time.perf_counter()
        elif self._collecting_since is not None:
            self._excused_s += time.perf_counter() - self._collecting_since
            self._collecting_since = None


@pytest.fixture
async def loop_errors() -> AsyncIterator[list[dict[str, Any]]]:
    """What reached the loop's exception handler. A test that expects it clears the list."""
    errors: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    yield errors
    loop.set_exception_handler(None)
    assert not errors, f"errors on the event loop: {errors}"


@pytest.fixture
async def watched_loop(loop_errors: list[dict[str, Any]]) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    slow = _SlowCallbacks()
    logging.getLogger("asyncio").addFilter(slow)
    gc.callbacks.append(slow.on_garbage)
    in_detail = loop.get_debug()
    loop.set_debug(True)
    if not in_detail:
        # Who asks for this keeps a stack with each future, task and callback, to tell where it was made: that
        # took half of the time of such tests. The loop, which does not ask, tells what is slow all the same.
        # With --asyncio-debug everybody is told the truth.
        loop.get_debug = lambda: False  # type: ignore[method-assign]
    loop.slow_callback_duration = MAX_CALLBACK_S
    yield
    left = await _tasks_left()
    loop.set_debug(False)
    logging.getLogger("asyncio").removeFilter(slow)
    gc.callbacks.remove(slow.on_garbage)
    assert not left, f"tasks left behind: {left}"
    assert not slow.found, f"the event loop was blocked: {slow.found}"


@pytest.fixture
async def clients_loop() -> AsyncIterator[None]:
    """Watched less closely: it is the clients' of a process, and they may be slow."""
    yield
    left = await _tasks_left()
    assert not left, f"tasks left behind: {left}"


async def _tasks_left() -> set[asyncio.Task[Any]]:
    await asyncio.sleep(0)  # what ends in this tick may
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


@pytest.fixture(autouse=True)
def _watch(request: pytest.FixtureRequest) -> None:
    if is_async_test(request.node):
        request.getfixturevalue("clients_loop" if folder_of(request.node) else "watched_loop")


class Clock:
    """Moves the loop's time, so that no test waits for a timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ahead_s = 0.0
        real = loop.time
        loop.time = lambda: real() + self._ahead_s  # type: ignore[method-assign]
        # A callback that moves the clock would look slow.
        loop.slow_callback_duration = float("inf")

    async def advance(self, seconds: float) -> None:
        """Let the timers of the next `seconds` run, and what follows from them."""
        self._ahead_s += seconds
        await settle()


async def settle(ticks: int = 20) -> None:
    """Let everything run that can run by itself."""
    for _ in range(ticks):
        await asyncio.sleep(0)


@pytest.fixture
async def clock(watched_loop: None) -> Clock:
    return Clock(asyncio.get_running_loop())


@pytest.fixture(name="settle", scope="session")
def _settle() -> Callable[[], Awaitable[None]]:
    return settle


@pytest.fixture
def eventually() -> "Eventually":
    """For what another thread or a timer brings about, and nothing announces."""
    return Eventually()


class Eventually:
    async def __call__(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not await condition():  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.002)


# ── processes ────────────────────────────────────────────────────────────────────────────────────

ROOT = Path(__file__).parents[1]
PROGRAM_S = 60.0
"""How long a program may take that ends by itself."""


class Child(Protocol):
    """A process of ours: as `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None:
        """Returns when it stands still."""


class StartProgram(Protocol):
    def __call__(
        self,
        words: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        stdout: IO[bytes],
        stderr: IO[bytes],
        stdin: IO[bytes] | None = None,
    ) -> Child:
        """Start `python WORDS` in the root folder, with `env` added to ours. Without `stdin` its input is
        empty."""


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """For a program of ours: nothing of whoever runs the tests reaches its configuration."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("SLUICE_")}
    return {**own, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "always::ResourceWarning", **(more or {})}


class _Fresh(subprocess.Popen[bytes]):
    """Implements Child: a Python that has just started."""

    def pause(self) -> None:
        self.send_signal(signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)


@pytest.fixture(scope="session")
def start_fresh() -> StartProgram:
    """Starts a program as a person does."""

    def start(
        words: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        stdout: IO[bytes],
        stderr: IO[bytes],
        stdin: IO[bytes] | None = None,
    ) -> Child:
        command, given = [sys.executable, *words], stdin or subprocess.DEVNULL
        return _Fresh(command, cwd=ROOT, env=environment(env), stdin=given, stdout=stdout, stderr=stderr)

    return start


class _Forked:
    """Implements Child: one from the nursery, which watches it and tells on `line` what becomes of it."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._line = line
        self._heard = b""
        self._stops = 0
        self._turn = threading.Lock()

    def poll(self) -> int | None:
        with self._turn:
            while self.returncode is None:
                try:
                    more = self._line.recv(256, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                assert more, f"nobody watches process {self.pid} any more"
                *told, self._heard = (self._heard + more).split(b"\n")
                self._stops += told.count(b"stopped")
                if told[-1:] not in ([], [b"stopped"]):
                    self.returncode = int(told[-1])
                    self._line.close()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        self._wait(lambda: self.returncode is not None, timeout)
        assert self.returncode is not None
        return self.returncode

    def _wait(self, condition: Callable[[], bool], timeout_s: float | None) -> None:
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self.poll() is None and not condition():
            left_s = None if until_s is None else until_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise subprocess.TimeoutExpired(str(self.pid), timeout_s or 0.0)
            # Another thread may be the one that hears it.
            with contextlib.suppress(OSError, ValueError):
                select.select([self._line], [], [], 0.1 if left_s is None else min(left_s, 0.1))

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def pause(self) -> None:
        """Returns when it stands still."""
        self.poll()
        stops = self._stops
        self.send_signal(signal.SIGSTOP)
        self._wait(lambda: self._stops > stops, PATIENCE_S)


class _Nursery:
    """`programs/nursery.py`, running."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "test/programs/nursery.py"), str(theirs.fileno())],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        assert self._orders.recv(1), "it cannot load our programs"

    def start(
        self,
        words: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        stdout: IO[bytes],
        stderr: IO[bytes],
        stdin: IO[bytes] | None = None,
    ) -> Child:
        assert not any(name.startswith("PYTHON") for name in env or {}), "it has read them: start a fresh one"
        line, theirs = socket.socketpair()
        with theirs, open(os.devnull, "rb") as nothing:
            passed = [(stdin or nothing).fileno(), stdout.fileno(), stderr.fileno(), theirs.fileno()]
            socket.send_fds(self._orders, [b"!"], passed)
        order = {"words": words, "environment": environment(env)}
        line.sendall(json.dumps(order).encode() + b"\n")
        with line.makefile("rb", buffering=0) as reading:
            return _Forked(int(reading.readline()), line)

    def close(self) -> None:
        self._orders.close()
        assert self._process.wait(PATIENCE_S) == 0


@pytest.fixture(scope="session")
def start_program() -> Iterator[StartProgram]:
    """Starts a program in milliseconds: by a fork of a process that has loaded all of it."""
    nursery = _Nursery()
    yield nursery.start
    nursery.close()


class Ended(NamedTuple):
    status: int
    output: str
    errors: str


class RunProgram(Protocol):
    def __call__(
        self, *words: str, env: Mapping[str, str] | None = None, stdin: bytes = b"", fresh: bool = False
    ) -> Ended:
        """Run `python WORDS` to its end, with `env` added to ours. `fresh`: see `start_fresh`."""


@pytest.fixture(scope="session")
def run_program(start_program: StartProgram, start_fresh: StartProgram) -> RunProgram:
    def run(
        *words: str, env: Mapping[str, str] | None = None, stdin: bytes = b"", fresh: bool = False
    ) -> Ended:
        start = start_fresh if fresh else start_program
        with TemporaryFile() as given, TemporaryFile() as output, TemporaryFile() as errors:
            given.write(stdin)
            given.seek(0)
            program = start(words, env, stdin=given, stdout=output, stderr=errors)
            try:
                status = program.wait(PROGRAM_S)
            finally:
                program.kill()
                program.wait()
            output.seek(0)
            errors.seek(0)
            return Ended(status, output.read().decode(), errors.read().decode())

    return run


# ── the server ───────────────────────────────────────────────────────────────────────────────────

PROGRAM = ("-m", "cmd.server")
STEP_DEADLINE_S = 15.0
"""What a single step of a test that talks to a server may take on a busy machine."""
START_DEADLINE_S = 60.0

JSON = dict[str, Any]
ALARMS = re.compile(
    r"Traceback|Task was destroyed|never retrieved|never awaited|Warning:|Fatal|CRITICAL|ERROR|Exception|"
    r"Unhandled|took \d+\.\d+ seconds"
)


class Reply(NamedTuple):
    """What a plain HTTP request was answered with."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(slots=True)
class Server:
    """A running `python -m cmd.server`. Killed, it may be started again in the same place."""

    process: Child
    port: int
    config_file: Path
    log_file: Path
    output_file: Path
    start_process: Callable[[], Child]
    expected_status: int = 0
    expected_alarm: str = "(?!)"
    """A pattern of what it may log although that is alarming; nothing matches this one."""

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def ws(self, path: str = "/ws") -> str:
        return f"ws://127.0.0.1:{self.port}{path}"

    def http(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def get(
        self,
        path: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: object = None,
        source: str = "127.0.0.1",
    ) -> Reply:
        """`body` is sent as JSON, unless it is None; `source`: the address that this comes from."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=STEP_DEADLINE_S, source_address=(source, 0)
        )
        sent, data = dict(headers or {}), None
        if body is not None:
            sent["Content-Type"], data = "application/json", json.dumps(body)
        with contextlib.closing(connection):
            connection.connect()
            if connection.sock.getsockname() == connection.sock.getpeername():
                # Nobody listened, and the kernel took the very port to come from.
                raise ConnectionRefusedError
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read().decode())

    async def fetch(
        self,
        path: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: object = None,
        source: str = "127.0.0.1",
    ) -> Reply:
        """`get` for asynchronous tests."""
        return await asyncio.to_thread(self.get, path, method, headers, body, source)

    async def metrics(self) -> "Metrics":
        return Metrics((await self.fetch("/metrics")).text)

    async def metric_becomes(self, name: str, value: float, **labels: str) -> None:
        """Wait until a sample has this value."""
        seen = None
        try:
            async with asyncio.timeout(STEP_DEADLINE_S):
                while (seen := (await self.metrics()).value(name, **labels)) != value:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(f"{name}{labels} is {seen}, and did not become {value}")

    def resident_bytes(self) -> int:
        rss: int = psutil.Process(self.process.pid).memory_info().rss
        return rss

    def waits(self) -> _Waits:
        """Of its threads, from now on."""
        return _Waits(self.process.pid)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = STEP_DEADLINE_S) -> int:
        """The exit status."""
        return self.process.wait(timeout_s)

    async def exit_status(self, timeout_s: float = STEP_DEADLINE_S) -> int:
        return await asyncio.to_thread(self.wait, timeout_s)

    def wait_until_ready(self, deadline_s: float = START_DEADLINE_S) -> None:
        until = time.monotonic() + deadline_s
        while True:
            if self.process.poll() is not None:
                pytest.fail(f"the server ended with {self.process.returncode}:\n{self.log}")
            with contextlib.suppress(OSError):
                if self.get("/readyz").status == 200:
                    return
            if time.monotonic() > until:
                pytest.fail(f"the server was not ready in time:\n{self.log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it as an operator does; it must have gone quietly, with `expected_status`."""
        if self.process.poll() is None:
            self.signal()
        try:
            status = self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the server did not stop on SIGTERM:\n{self.log}")
        assert status == self.expected_status, self.log
        assert not ALARMS.search(re.sub(self.expected_alarm, "", self.log)), self.log

    def kill(self) -> None:
        """As a crash does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def start_again(self) -> None:
        """With the same configuration, and on the same port. Blocks until it is ready."""
        assert self.process.poll() is not None, "it runs"
        self.process = self.start_process()
        self.wait_until_ready()


class RunServer(Protocol):
    def __call__(
        self,
        config: JSON,
        *,
        env: Mapping[str, str] | None = None,
        ready: bool = True,
        program: Sequence[str] = PROGRAM,
        fresh: bool = False,
    ) -> AbstractContextManager[Server]:
        """Run a server with `config`; its address is chosen here. It is stopped, and checked, at the end.
        `fresh`: in a Python that has just started, as an operator does."""


@pytest.fixture(scope="session")
def run_server(
    tmp_path_factory: pytest.TempPathFactory, start_program: StartProgram, start_fresh: StartProgram
) -> RunServer:
    @contextlib.contextmanager
    def run(
        config: JSON,
        *,
        env: Mapping[str, str] | None = None,
        ready: bool = True,
        program: Sequence[str] = PROGRAM,
        fresh: bool = False,
    ) -> Iterator[Server]:
        folder = tmp_path_factory.mktemp("server")
        port = free_port()
        http_section = {"addr": f"127.0.0.1:{port}"}
        sections = {
            **config,
            "server": {"http": http_section, **config.get("server", {})},
            "storage": {"url": f"sqlite:///{folder}/sluice.db", **config.get("storage", {})},
            "files": {"folder": str(folder / "files"), **config.get("files", {})},
            "auth": {"secret_file": str(folder / "secret.key"), **config.get("auth", {})},
        }
        conf = folder / "config.yaml"
        conf.write_text(yaml.safe_dump(sections))
        words = [*program, "-conf", str(conf)]
        start = start_fresh if fresh else start_program

        def start_process() -> Child:
            with (folder / "log").open("ab") as log, (folder / "output").open("ab") as output:
                return start(words, env, stdout=output, stderr=log)

        server = Server(start_process(), port, conf, folder / "log", folder / "output", start_process)
        try:
            if ready:
                server.wait_until_ready()
            yield server
        except BaseException:
            server.kill()
            raise
        server.stop()

    return run


@dataclass(slots=True)
class Metrics:
    """A scrape of `/metrics`, parsed as Prometheus would."""

    text: str
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for family in text_string_to_metric_families(self.text):
            self.types[family.name] = family.type
            for sample in family.samples:
                self.samples[sample.name, frozenset(sample.labels.items())] = sample.value

    def value(self, name: str, **labels: str) -> float:
        return self.samples.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture(scope="session")
def parse_metrics() -> type[Metrics]:
    return Metrics


# ── Redis ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def redis_program() -> Path:
    try:
        return local_redis.find_server()
    except SluiceError as error:
        pytest.fail(error.message)


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that all tests share: each keeps to its `redis_prefix`. TEST_REDIS_URL names another one."""
    if url := os.environ.get("TEST_REDIS_URL"):
        yield url
        return
    program = request.getfixturevalue("redis_program")
    with LocalRedis(program, tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def redis_prefix(redis_url: str) -> Iterator[str]:
    """How the test's keys begin, or their hash tags. They are deleted when it ends."""
    prefix = f"test-{secrets.token_hex(6)}"
    yield prefix
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(f"*{prefix}*", count=1000):
            client.unlink(key)


@pytest.fixture(scope="session")
def redis_cluster(redis_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a cluster of one, which has all slots. It takes two seconds to trust itself."""
    slots = 16384
    with LocalRedis(redis_program, tmp_path_factory.mktemp("cluster"), cluster=True) as server:
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("CLUSTER ADDSLOTS", *range(slots))
            deadline = time.monotonic() + PATIENCE_S * 2
            while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                assert time.monotonic() < deadline, server.log
                time.sleep(0.01)
        yield server.url


@pytest.fixture
def redis_cluster_url(redis_cluster: str) -> Iterator[str]:
    """For an ordinary client: what a script touches must share a slot. The test's end empties it."""
    yield redis_cluster
    with redis.Redis.from_url(redis_cluster) as client:
        client.flushall()


class _OwnServer:
    """A server of the test's own, to be treated badly: the methods of a local one, off the event loop."""

    def __init__(self, server: LocalRedis | LocalPostgres) -> None:
        self._server = server

    @property
    def url(self) -> str:
        return self._server.url

    async def start(self, *, empty: bool = False) -> None:
        await asyncio.to_thread(self._server.start, empty=empty)

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.stop)

    async def kill(self) -> None:
        await asyncio.to_thread(self._server.kill)

    async def restart(self, *, empty: bool = False) -> None:
        await self.stop()
        await self.start(empty=empty)

    async def pause(self) -> None:
        await asyncio.to_thread(self._server.pause)

    async def resume(self) -> None:
        await asyncio.to_thread(self._server.resume)


class OwnRedis(_OwnServer):
    """A Redis."""


@pytest.fixture
def own_redis(redis_program: Path, tmp_path: Path) -> Iterator[OwnRedis]:
    """It runs when the test starts, and loses nothing when it is killed or restarted."""
    with LocalRedis(redis_program, tmp_path / "redis", append_only=True) as server:
        yield OwnRedis(server)


# ── PostgreSQL ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def postgres_program() -> Path:
    try:
        return local_postgres.find_server()
    except SluiceError as error:
        pytest.fail(error.message)


@pytest.fixture(scope="session")
def postgres_driver() -> None:
    """Imports it ahead: on the event loop that would take too long."""
    create_async_engine("postgresql+asyncpg://")


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest, postgres_driver: None) -> Iterator[str]:
    """A server that all tests share: each keeps to its `postgres_database`. Its user may create databases.

    TEST_PG_DSN names another one, `postgresql://USER:PASSWORD@HOST/DATABASE`.
    """
    if dsn := os.environ.get("TEST_PG_DSN"):
        yield make_url(dsn).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
        return
    with LocalPostgres(request.getfixturevalue("postgres_program")) as server:
        yield server.url


@pytest.fixture
async def postgres_database(postgres_url: str) -> AsyncIterator[str]:
    """The URL of a database of the test's own, empty at first. It goes with the test, even when in use."""
    name = f"test_{secrets.token_hex(6)}"
    engine = create_async_engine(postgres_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        # Nobody can be connected to template0, and nobody has left anything there.
        await connection.execute(text(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0"))
        yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


# ── both databases ───────────────────────────────────────────────────────────────────────────────


def _elsewhere(work: Coroutine[Any, Any, Any]) -> None:
    """Run it on a thread: this one has an event loop already."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


@pytest.fixture(scope="session")
def sqlite_with_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    _elsewhere(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def postgres_with_tables(postgres_url: str) -> Iterator[str]:
    """The URL of a database that tests have one after the other: to make one takes a quarter of a second."""
    name = f"tables_{secrets.token_hex(6)}"
    _on_postgres(postgres_url, f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
    url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    _elsewhere(migrate(url))
    yield url
    _on_postgres(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def empty_postgres(postgres_url: str) -> Iterator[str]:
    """The URL of a database of the module's own, empty at first."""
    name = f"module_{secrets.token_hex(6)}"
    _on_postgres(postgres_url, f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
    yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    _on_postgres(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def _on_postgres(url: str, *statements: str) -> None:
    async def run() -> None:
        engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            for statement in statements:
                await connection.execute(text(statement))

    _elsewhere(run())


@pytest.fixture
def sqlite_storage(sqlite_with_tables: Path, tmp_path: Path) -> str:
    path = tmp_path / "sluice.db"
    shutil.copy(sqlite_with_tables, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def empty_tables(postgres_with_tables: str) -> Iterator[Callable[[], None]]:
    """Deletes all rows, over a connection that stays open: to connect takes longer than all else."""
    url = make_url(postgres_with_tables).set(drivername="postgresql").render_as_string(hide_password=False)
    deleting = "; ".join(f"DELETE FROM {table}" for table in metadata.tables)
    with asyncio.Runner() as runner, ThreadPoolExecutor(1) as thread:

        def run(work: Coroutine[Any, Any, Any]) -> Any:
            # On a thread: the test's has an event loop already.
            return thread.submit(runner.run, work).result()

        connection = run(asyncpg.connect(url))
        yield lambda: run(connection.execute(deleting))
        run(connection.close())


@pytest.fixture
def postgresql_storage(postgres_with_tables: str, empty_tables: Callable[[], None]) -> str:
    empty_tables()
    return postgres_with_tables


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest) -> str:
    """A database with tables and without rows: a file, and one on a PostgreSQL."""
    url: str = request.getfixturevalue(f"{request.param}_storage")
    return url


@pytest.fixture
async def database(watched_loop: None, storage_url: str) -> AsyncIterator[Database]:
    """It runs."""
    async with running(storage_url) as it:
        yield it


OpenDatabase = Callable[[str], AbstractAsyncContextManager[Database]]


@pytest.fixture(scope="session")
def open_database() -> OpenDatabase:
    return running


@asynccontextmanager
async def running(url: str) -> AsyncIterator[Database]:
    """The database at `url`, which writes."""
    database = Database(url)
    writing = asyncio.create_task(database.run())
    try:
        yield database
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await database.close()


class OwnPostgres(_OwnServer):
    """A PostgreSQL."""


@pytest.fixture
def own_postgres(postgres_program: Path, postgres_driver: None) -> Iterator[OwnPostgres]:
    """It runs when the test starts, and loses nothing when it is killed or restarted."""
    with LocalPostgres(postgres_program) as server:
        yield OwnPostgres(server)


# ── values ───────────────────────────────────────────────────────────────────────────────────────


class RequestFactory:
    """Makes requests with ids of their own."""

    def __init__(self) -> None:
        self._made = 0

    def __call__(
        self,
        *turn: str,
        user: str = "ada",
        model: str = "m",
        response_id: str | None = None,
        created_at: float | None = None,
        settings: Settings | None = None,
    ) -> Request:
        self._made += 1
        return Request(
            response_id or f"resp_{self._made}",
            model,
            user,
            time.time() if created_at is None else created_at,
            tuple(Message(Role.USER, text) for text in turn or ("hello",)),
            settings or Settings(),
        )


@pytest.fixture
def make_request() -> RequestFactory:
    return RequestFactory()


@pytest.fixture(scope="session")
def request_factory() -> type[RequestFactory]:
    """For tests that need a new one for every example."""
    return RequestFactory


class Reader:
    """A follower that reads to the end, and keeps what it was told."""

    def __init__(self) -> None:
        self.wakes = 0
        self.updates: list[QueueUpdate] = []
        self._news = asyncio.Event()

    def wake(self) -> None:
        self.wakes += 1
        self._news.set()

    def queue_update(self, cursor: Cursor, update: QueueUpdate) -> None:
        self.updates.append(update)
        self._news.set()

    async def news(self) -> None:
        """Wait until told something after the last call."""
        async with asyncio.timeout(PATIENCE_S):
            await self._news.wait()
        self._news.clear()

    async def read(self, cursor: Cursor) -> list[Event]:
        """Every event behind the cursor up to the end of the log."""
        events: list[Event] = []
        while True:
            events += cursor.take(1000, 1 << 20)
            if cursor.done:
                return events
            if not cursor.pending:
                await self.news()


@pytest.fixture
def make_reader() -> Callable[[], Reader]:
    return Reader


# ── engines ──────────────────────────────────────────────────────────────────────────────────────


class Sink:
    """Hands the steps of an engine's threads to the test."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._steps: queue.Queue[list[Chunk]] = queue.Queue()
        self._lost: queue.Queue[EngineLost] = queue.Queue()

    def put(self, step: list[Chunk]) -> None:
        self._steps.put(list(step))

    def give(self, step: list[Chunk]) -> bool:
        self.put(step)
        return False

    async def room(self) -> None:
        return

    def fail(self, error: EngineLost) -> None:
        self._steps.put([])
        self._lost.put(error)

    def forget(self) -> None:
        """What was said so far is not looked at."""
        self._steps = queue.Queue()

    async def lost(self) -> EngineLost:
        return await asyncio.to_thread(self._lost.get, True, self._patience_s)

    async def step(self) -> list[Chunk]:
        return await asyncio.to_thread(self._steps.get, True, self._patience_s)

    async def until_ended(self, *jobs: Job) -> list[list[Chunk]]:
        """All steps up to the end of `jobs`."""
        running = set(jobs)
        steps = []
        while running:
            step = await self.step()
            steps.append(step)
            running -= {job for job, output in step if isinstance(output, Finished)}
        return steps

    async def outputs(self, job: Job) -> list[Output]:
        """What the engine says of `job`, to its end."""
        steps = await self.until_ended(job)
        return [output for step in steps for one, output in step if one is job]


@pytest.fixture(scope="session")
def engine_patience_s() -> float:
    """How long a step of an engine may take."""
    return PATIENCE_S


@pytest.fixture
def sink(engine_patience_s: float) -> Sink:
    return Sink(engine_patience_s)
