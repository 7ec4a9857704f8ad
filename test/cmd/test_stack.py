"""The stack as a process, with small programs in the places of worker and server."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil
import pytest
import redis.asyncio

from cmd import stack, supervisor
from cmd.local_redis import free_port, process_behind
from cmd.stack import main, programs

if TYPE_CHECKING:
    from test.conftest import Eventually, OwnRedis

ROOT = Path(__file__).parents[2]
DEADLINE_S = 15.0

PART = """
import os, signal, sys, time
from cmd.local_redis import process_behind

name, port, manner = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def say(what):
    os.write(1, f"{name} {what}\\n".encode())  # at once: others write to the same pipe

def on_signal(number, frame):
    say(signal.Signals(number).name)
    if manner == "stubborn":
        return
    say("ends beside Redis" if process_behind(port) else "ends")
    sys.exit(4 if manner == "badly" else 0)

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, on_signal)
if manner == "supervisor":  # as cmd.supervisor: two signals, and its process is killed
    process = os.fork()
    if process == 0:
        os.setsid()
        signal.alarm(60)  # nothing else ends it when the test fails
        name, manner = "process", "stubborn"
    else:
        heard = []

        def on_signal(number, frame):
            say(signal.Signals(number).name)
            heard.append(number)
            if len(heard) == 2:
                os.kill(process, signal.SIGKILL)
                os.wait()
                sys.exit(1)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
if manner == "parent" and os.fork() == 0:
    name = "child"
say(f"runs as {os.getpid()}" + (" beside Redis" if process_behind(port) else ""))
while True:
    time.sleep(0.01)  # pause() would sleep through a signal that came just before it
"""

STACK = """
import sys
from pathlib import Path
from cmd import stack

stack.MARGIN_S = 0.3
conf, data, part, port, worker, server = sys.argv[1:]
parts = [
    stack.Program(name, [sys.executable, part, name, port, manner])
    for name, manner in (("worker", worker), ("server", server))
]
sys.exit(stack.main(["-conf", conf], parts, Path(data)))
"""


def ended(pid: int) -> bool:
    """Also when nobody has collected its exit status yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dataclass
class Running:
    """A stack, and what it and its parts have said so far."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)
    errors: str = ""

    @property
    def said(self) -> list[str]:
        """What worker and server said, without Redis."""
        return [line for line in self.lines if line.startswith(("server ", "worker "))]

    async def says(self, *words: str) -> str:
        """Wait for a line of the parts with all these words."""
        assert self.process.stdout
        async with asyncio.timeout(DEADLINE_S):
            while line := (await self.process.stdout.readline()).decode():
                self.lines.append(line.strip())
                if all(word in line for word in words):
                    return line.strip()
        pytest.fail(f"nobody said {words}: {self.lines} {self.errors}")

    async def up(self, parts: int = 2) -> dict[str, int]:
        """Wait until all run: their process ids."""
        started = [(await self.says(" runs as ")).split() for _ in range(parts)]
        return {words[0]: int(words[3]) for words in started}

    def interrupt(self) -> None:
        """As a terminal does for Ctrl-C: to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    async def status(self) -> int:
        assert self.process.stdout
        assert self.process.stderr
        async with asyncio.timeout(DEADLINE_S):
            status = await self.process.wait()
            self.lines += (await self.process.stdout.read()).decode().splitlines()
            self.errors += (await self.process.stderr.read()).decode()
        return status


class RunStack(Protocol):
    async def __call__(self, url: str, *, worker: str = "well", server: str = "well") -> Running: ...


@pytest.fixture
async def run_stack(tmp_path: Path) -> AsyncIterator[RunStack]:
    """Starts a stack whose worker and server behave as told. Whatever is left at the end is killed."""
    part, conf = tmp_path / "part.py", tmp_path / "redis.yaml"
    part.write_text(PART)
    started: list[asyncio.subprocess.Process] = []

    async def start(url: str, *, worker: str = "well", server: str = "well") -> Running:
        conf.write_text(f"{{queue: {{driver: redis, url: '{url}'}}, shutdown: {{timeout: 0}}}}")
        port = url.rpartition(":")[2].partition("/")[0]
        data = tmp_path / "data" / "redis"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", STACK, str(conf), str(data), str(part), port, worker, server),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return Running(process)

    yield start
    for process in started:
        if process.returncode is None:
            for left in psutil.Process(process.pid).children(recursive=True):
                left.kill()
            process.kill()
            await process.wait()
        # Of a stack that was killed, its programs had the pipes: nobody says any more that they have ended.
        process._transport.close()  # type: ignore[attr-defined]
    await asyncio.sleep(0)


@pytest.fixture
def url() -> str:
    """Of a Redis that is not there."""
    return f"redis://127.0.0.1:{free_port()}/0"


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


async def nothing_behind(url: str) -> bool:
    return not await asyncio.to_thread(process_behind, port_of(url))


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_the_server_then_the_worker_then_redis(
    run_stack: RunStack, url: str, number: signal.Signals
) -> None:
    running = await run_stack(url)
    pids = await running.up()
    if number == signal.SIGINT:
        running.interrupt()
    else:
        running.process.send_signal(number)
    assert await running.status() == 0, running.errors
    assert running.said[-4:] == [
        "server SIGTERM",
        "server ends beside Redis",
        "worker SIGTERM",
        "worker ends beside Redis",
    ]
    assert all(ended(pid) for pid in pids.values())
    assert await nothing_behind(url)


async def test_a_second_signal_ends_everything_at_once(
    run_stack: RunStack, url: str, eventually: "Eventually"
) -> None:
    running = await run_stack(url, server="stubborn")
    pids = await running.up()
    running.interrupt()
    await running.says("server", "SIGTERM")
    running.interrupt()
    assert await running.status() == 1
    for pid in pids.values():
        await eventually(lambda pid=pid: asyncio.to_thread(ended, pid))  # type: ignore[misc]
    await eventually(lambda: nothing_behind(url))


async def test_a_second_signal_reaches_the_process_of_a_supervisor(
    run_stack: RunStack, url: str, eventually: "Eventually"
) -> None:
    running = await run_stack(url, worker="supervisor", server="stubborn")
    pids = await running.up(3)
    assert os.getsid(pids["process"]) == pids["process"]
    running.interrupt()
    await running.says("server", "SIGTERM")
    running.interrupt()
    assert await running.status() == 1
    for pid in pids.values():
        await eventually(lambda pid=pid: asyncio.to_thread(ended, pid))  # type: ignore[misc]


def test_a_supervisor_has_the_time_to_end_its_process() -> None:
    assert stack.MARGIN_S > supervisor.CLOSE_MARGIN_S


async def test_a_program_that_does_not_stop_is_killed_and_the_others_stop_well(
    run_stack: RunStack, url: str
) -> None:
    running = await run_stack(url, server="stubborn")
    pids = await running.up()
    running.interrupt()
    assert await running.status() == 1
    assert "server did not stop within 0.3 seconds and was killed" in running.errors
    assert running.said[-3:] == ["server SIGTERM", "worker SIGTERM", "worker ends beside Redis"]
    assert all(ended(pid) for pid in pids.values())


async def test_a_program_that_stops_badly_is_told(run_stack: RunStack, url: str) -> None:
    running = await run_stack(url, worker="badly")
    await running.up()
    running.interrupt()
    assert await running.status() == 1
    assert "worker ended with status 4" in running.errors


async def test_a_stack_that_is_killed_leaves_nothing_behind(
    run_stack: RunStack, url: str, eventually: "Eventually"
) -> None:
    running = await run_stack(url)
    pids = await running.up()
    running.process.kill()
    for pid in pids.values():
        await eventually(lambda pid=pid: asyncio.to_thread(ended, pid))  # type: ignore[misc]
    await eventually(lambda: nothing_behind(url))


# ── dying ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("dying", "other"), [("server", "worker"), ("worker", "server")])
async def test_when_one_dies_the_others_are_stopped(
    run_stack: RunStack, url: str, dying: str, other: str
) -> None:
    running = await run_stack(url)
    pids = await running.up()
    os.kill(pids[dying], signal.SIGKILL)
    assert await running.status() == 1
    assert running.errors.count(f"{dying} ended by SIGKILL") == 1
    assert running.said[-2:] == [f"{other} SIGTERM", f"{other} ends beside Redis"]
    assert await nothing_behind(url)


async def test_when_its_redis_dies_the_others_are_stopped(run_stack: RunStack, url: str) -> None:
    running = await run_stack(url)
    await running.up()
    os.kill(await asyncio.to_thread(process_behind, port_of(url)), signal.SIGKILL)
    assert await running.status() == 1
    assert "Redis ended by SIGKILL; stopping" in running.errors
    assert running.said[-4:] == ["server SIGTERM", "server ends", "worker SIGTERM", "worker ends"]


async def test_processes_that_a_dead_program_left_go_too(
    run_stack: RunStack, url: str, eventually: "Eventually"
) -> None:
    running = await run_stack(url, server="parent")
    pids = await running.up(3)
    os.kill(pids["server"], signal.SIGKILL)
    assert await running.status() == 1
    await eventually(lambda: asyncio.to_thread(ended, pids["child"]))


# ── Redis ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_redis_that_was_started_keeps_its_data(run_stack: RunStack, url: str) -> None:
    for expected in (1, 2):
        running = await run_stack(url)
        await running.up()
        assert all("beside Redis" in line for line in running.said if " runs as " in line), (
            "it is ready before the others start"
        )
        async with redis.asyncio.Redis.from_url(url) as client:
            assert await client.incr("runs") == expected
        running.interrupt()
        assert await running.status() == 0, running.errors


@pytest.mark.parametrize("locked", [False, True], ids=["open", "wants a password"])
async def test_a_redis_that_answers_is_left_alone(
    run_stack: RunStack, own_redis: "OwnRedis", locked: bool
) -> None:
    async with redis.asyncio.Redis.from_url(own_redis.url) as client:
        if locked:
            await client.config_set("requirepass", "secret")
        running = await run_stack(own_redis.url)
        await running.up()
        running.interrupt()
        assert await running.status() == 0, running.errors
        assert "using the Redis that answers at 127.0.0.1" in running.errors
        assert await client.ping()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@127.0.0.1:1/0",
        "redis://localhost.invalid:1/0",
        "rediss://127.0.0.1:1/0",
        "unix:///no/sock",
    ],
)
async def test_a_redis_that_cannot_be_started_here_is_asked_for(run_stack: RunStack, url: str) -> None:
    running = await run_stack(url)
    assert await running.status() == 1
    assert "no Redis answers at" in running.errors
    assert "secret" not in running.errors
    assert running.said == []


async def test_a_taken_port_is_told(run_stack: RunStack, url: str) -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port_of(url)):
        running = await run_stack(url)
        assert await running.status() == 1
    assert "Redis ended with status 1; stopping" in running.errors
    assert "in use" in "".join(running.lines), "Redis says why"


# ── the command line ─────────────────────────────────────────────────────────────────────────────


def test_a_configuration_without_redis_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = tmp_path / "config.yaml"
    conf.write_text("queue: {driver: memory}")
    assert main(["-conf", str(conf)]) == 2
    assert "queue.driver is memory; a stack needs redis" in capsys.readouterr().err


def test_a_stack_is_a_worker_and_then_a_server() -> None:
    parts = programs(Path("a.yaml"))
    assert [part.name for part in parts] == ["worker", "server"]
    for part in parts:
        assert part.command == [sys.executable, "-m", f"cmd.{part.name}", "-conf", "a.yaml"]
