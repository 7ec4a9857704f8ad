"""What an idle connection costs a real server, and whether thousands that arrive stall its event loop."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
CONF = """
server: {http: {addr: "127.0.0.1:0"}}
models: [{name: echo, generator: echo}]
storage: {url: "sqlite:///FOLDER/sluice.db"}
auth: {secret_file: FOLDER/secret.key}
"""
PER_SOURCE = 5000
"""Connections from one source address, well below the number of ephemeral ports."""
AT_ONCE = 64
UPGRADE = (
    "GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """`kib`: resident memory for each connection. `worst_lag_s`: upper bound of the event-loop lag."""

    count: int
    connects_per_s: float
    kib: float
    worst_lag_s: float


@contextlib.contextmanager
def _server() -> Iterator[tuple[int, psutil.Process]]:
    """A real server with the echo model; yields its port and process."""
    with tempfile.TemporaryDirectory() as folder:
        conf = Path(folder) / "bench.yaml"
        conf.write_text(CONF.replace("FOLDER", folder))
        command = [sys.executable, "-m", "cmd.server", "-conf", str(conf)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = psutil.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        try:
            for line in process.stdout:
                if match := re.search(r"ws://localhost:(\d+)/ws", line):
                    yield int(match[1]), psutil.Process(process.pid)
                    break
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


async def _connect(port: int, number: int, gate: asyncio.Semaphore) -> asyncio.StreamWriter:
    async with gate:
        source = f"127.0.0.{2 + number // PER_SOURCE}"
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        writer.write(UPGRADE.format(host=f"127.0.0.1:{port}").encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        return writer


def _worst_lag_s(port: int) -> float:
    """The smallest bucket bound that no observation exceeded."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    pattern = r'sluice_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)'
    buckets = [(float(bound), float(count)) for bound, count in re.findall(pattern, text)]
    return next(bound for bound, count in buckets if count == buckets[-1][1])


async def _arrive(port: int, process: psutil.Process, count: int) -> Arrival:
    before, began = process.memory_info().rss, time.monotonic()
    gate = asyncio.Semaphore(AT_ONCE)
    writers = await asyncio.gather(*(_connect(port, i, gate) for i in range(count)))
    seconds = time.monotonic() - began
    await asyncio.sleep(1)
    kib = (process.memory_info().rss - before) / 1024 / count
    lag = await asyncio.to_thread(_worst_lag_s, port)
    for writer in writers:
        writer.transport.abort()
    return Arrival(count, count / seconds, kib, lag)


def run(count: int) -> Arrival:
    """Open `count` connections, hold them, measure the server."""
    with _server() as (port, process):
        return asyncio.run(_arrive(port, process, count))
