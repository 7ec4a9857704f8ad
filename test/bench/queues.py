"""The memory queue and the one on Redis beside each other: what a frame costs in each process, and how long
the first chunk takes; and what idle connections take that several server processes hold."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from cmd.local_redis import LocalRedis, find_server

ROOT = Path(__file__).resolve().parents[2]
STREAMS = 500
CHUNKS = 250
INTERVAL_MS = 20
FIRST_ROUNDS = 300
PER_SOURCE = 5000
"""Connections from one source address, well below the number of ephemeral ports."""
PER_HOLDER = 15_000
"""Connections that one client process holds."""
MODELS = [
    {"name": "echo", "generator": "echo", "options": {"chunks": CHUNKS, "interval": f"{INTERVAL_MS}ms"}},
    {"name": "instant", "generator": "echo", "options": {"chunks": 1, "interval": 0}},
]


@dataclass(slots=True)
class Site:
    """Servers, workers and a Redis that run, by part."""

    port: int = 0
    parts: dict[str, list[psutil.Process]] = field(default_factory=dict)

    def cpu_s(self, part: str) -> float:
        """Processor time that a part has used, its children included."""
        total = 0.0
        for root in self.parts.get(part, []):
            for process in (root, *root.children(recursive=True)):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def resident_bytes(self, part: str) -> int:
        return sum(
            process.memory_info().rss
            for root in self.parts.get(part, [])
            for process in (root, *root.children(recursive=True))
        )


@contextlib.contextmanager
def site(driver: str, processes: int = 1) -> Iterator[Site]:
    """A server on a free port; with Redis also a worker and a Redis."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = Site()
        queue = {"driver": driver, "max_pending": 0}
        if driver == "redis":
            server = stack.enter_context(LocalRedis(find_server(), folder))
            queue["url"] = server.url
            found.parts["redis"] = [psutil.Process(server.pid)]
        http = {"addr": "127.0.0.1:0"}
        tree = {
            "server": {"http": http, "processes": processes},
            "queue": queue,
            "models": MODELS,
            "storage": {"url": f"sqlite:///{folder}/sluice.db"},
            "auth": {"secret_file": f"{folder}/secret.key"},
        }
        conf = folder / "bench.yaml"
        conf.write_text(yaml.safe_dump(tree))
        if driver == "redis":
            found.parts["worker"] = [stack.enter_context(_program("cmd.worker", conf, r"is ready: ()"))[0]]
        process, port = stack.enter_context(_program("cmd.server", conf, r"ws://localhost:(\d+)/ws"))
        found.parts["server"] = [process]
        found.port = int(port)
        yield found


@contextlib.contextmanager
def _program(name: str, conf: Path, ready: str) -> Iterator[tuple[psutil.Process, str]]:
    """Run a program until its output matches `ready`; gives the process and what the group matched."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", name, "-conf", str(conf)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if match := re.search(ready, line):
                yield psutil.Process(process.pid), match[1]
                return
        raise SystemExit(f"{name} did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


def _loadtest(port: int, *options: str) -> str:
    command = [sys.executable, "-m", "cmd.loadtest", "-url", f"ws://127.0.0.1:{port}/ws", *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True, slots=True)
class Cost:
    """`us_per_frame` by part, microseconds of processor time; `first_ms`: median time to the first chunk."""

    us_per_frame: dict[str, float]
    first_ms: float


def measure(driver: str) -> Cost:
    """One round."""
    with site(driver) as found:
        before = {part: found.cpu_s(part) for part in found.parts}
        told = _loadtest(found.port, "-connections", str(STREAMS), "-chunks", str(CHUNKS), "-ramp", "0")
        frames = int(re.search(r"^frames +([\d,]+)", told, re.MULTILINE)[1].replace(",", ""))  # type: ignore[index]
        costs = {part: (found.cpu_s(part) - used) * 1e6 / frames for part, used in before.items()}
        told = _loadtest(
            found.port,
            *("-connections", "1", "-rounds", str(FIRST_ROUNDS), "-dialect", "responses"),
            *("-model", "instant", "-chunks", "1"),
        )
        first_ms = float(re.search(r"^time to first chunk +([\d.]+)", told, re.MULTILINE)[1])  # type: ignore[index]
        return Cost(costs, first_ms)


def run(rounds: int) -> dict[str, Cost]:
    """Medians of `rounds` interleaved rounds, by driver."""
    drivers = ("memory", "redis")
    samples: dict[str, list[Cost]] = {driver: [] for driver in drivers}
    for _ in range(rounds):
        for driver in drivers:
            samples[driver].append(measure(driver))
    return {
        driver: Cost(
            {part: _median([cost.us_per_frame[part] for cost in costs]) for part in costs[0].us_per_frame},
            _median([cost.first_ms for cost in costs]),
        )
        for driver, costs in samples.items()
    }


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@dataclass(frozen=True, slots=True)
class Idle:
    """What `count` idle connections take in `processes` server processes."""

    count: int
    processes: int
    seconds: float
    kib: float


def hold_idle(count: int, processes: int) -> Idle:
    """Open `count` connections from several client processes, hold them, measure the servers."""
    with site("redis", processes) as found, contextlib.ExitStack() as holders:
        before, began = found.resident_bytes("server"), time.monotonic()
        started = [
            holders.enter_context(_holder(found.port, first, min(PER_HOLDER, count - first)))
            for first in range(0, count, PER_HOLDER)
        ]
        for holder in started:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
        seconds = time.monotonic() - began
        time.sleep(2)
        kib = (found.resident_bytes("server") - before) / 1024 / count
        return Idle(count, processes, seconds, kib)


@contextlib.contextmanager
def _holder(port: int, first: int, count: int) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(Path(__file__).resolve()), str(port), str(first), str(count)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


async def _hold(port: int, first: int, count: int) -> None:
    """Be a client process: hold connections until the standard input ends."""
    gate = asyncio.Semaphore(64)
    upgrade = (
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()

    async def connect(number: int) -> asyncio.StreamWriter:
        async with gate:
            source = f"127.0.0.{2 + number // PER_SOURCE}"
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=(source, 0), limit=1024
            )
            writer.write(upgrade)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 101 "), answer
            return writer

    writers = await asyncio.gather(*(connect(first + i) for i in range(count)))
    print("held", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for writer in writers:
        writer.transport.abort()


if __name__ == "__main__":
    from internal.server.listen import raise_descriptor_limit

    raise_descriptor_limit()
    asyncio.run(_hold(*map(int, sys.argv[1:4])))
