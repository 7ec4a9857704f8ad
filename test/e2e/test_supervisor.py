"""Several processes behind one address: one is replaced when it dies, and all end together."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil
import pytest

if TYPE_CHECKING:
    from test.e2e.conftest import JSON, HowClosed, Metrics, OpenText, RunServer, Server

PROGRAMS = Path(__file__).parent / "programs"
COUNT = 40
DEADLINE_S = 15.0
SETTINGS: "JSON" = {
    "queue": {"driver": "redis"},
    "models": [{"name": "slow", "generator": "echo", "options": {"chunks": COUNT, "interval": "20ms"}}],
    "shutdown": {"timeout": "10s"},
}


def config(port: int = 0, **shutdown: str) -> "JSON":
    """For two processes, at a free port that their banner tells."""
    server = {"http": {"addr": f"127.0.0.1:{port}"}, "processes": 2}
    return {**SETTINGS, "server": server, "shutdown": {**SETTINGS["shutdown"], **shutdown}}


def of(*child: str, margin_s: float = 10.0) -> tuple[str, ...]:
    return (str(PROGRAMS / "supervise.py"), str(margin_s), *child)


STUBS = of("stub.py", "serve")
REAL = of("real.py")


# ── helpers ──────────────────────────────────────────────────────────────────────────────────────


def until(condition: Callable[[], object], server: "Server") -> None:
    """Wait for what other processes bring about, and nothing announces."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, server.log
        time.sleep(0.005)


def until_ready(server: "Server") -> None:
    """Wait for the banner, and connect where it says."""
    until(lambda: server.output.endswith("/metrics\n\n"), server)
    banner = re.search(r"ws://localhost:(\d+)/ws", server.output)
    assert banner
    server.port = int(banner[1])


def children(server: "Server") -> list[psutil.Process]:
    """The processes, by number."""
    found = psutil.Process(server.process.pid).children()
    return sorted(found, key=lambda child: child.cmdline()[-3])


def has_ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class Who(NamedTuple):
    number: int
    pid: int


def ask(server: "Server") -> Who:
    """Which stub answers a new connection."""
    return Who(**server.get("/").json)


class Waiting:
    """Requests that were sent, and not yet answered."""

    def __init__(self, server: "Server", count: int) -> None:
        self._open = contextlib.ExitStack()
        self._requests = []
        for _ in range(count):
            request = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
            self._open.enter_context(contextlib.closing(request))
            request.request("GET", "/")
            self._requests.append(request)

    def answers(self) -> list[Who]:
        with self._open:
            return [Who(**json.loads(request.getresponse().read())) for request in self._requests]


@pytest.fixture
def stubs(run_server: "RunServer") -> Iterator["Server"]:
    with run_server(config(), program=STUBS, ready=False) as server:
        until_ready(server)
        yield server


# ── life ─────────────────────────────────────────────────────────────────────────────────────────


def test_processes_share_a_free_port_and_are_announced_once(stubs: "Server") -> None:
    seen: set[Who] = set()

    def both_have_answered() -> bool:
        seen.add(ask(stubs))
        return len(seen) == 2

    until(both_have_answered, stubs)
    assert seen == {Who(number, child.pid) for number, child in enumerate(children(stubs))}
    assert stubs.output.count("Sluice is ready") == 1


def test_processes_are_not_in_the_group_that_a_terminal_interrupts(stubs: "Server") -> None:
    groups = {os.getpgid(pid) for pid in (stubs.process.pid, *(child.pid for child in children(stubs)))}
    assert len(groups) == 3


def test_a_killed_process_is_replaced_and_who_connected_meanwhile_is_served(stubs: "Server") -> None:
    first, second = children(stubs)
    stubs.signal(signal.SIGSTOP)  # so that nothing is replaced before all have connected
    first.kill()
    until(lambda: has_ended(first), stubs)
    meanwhile = Waiting(stubs, 24)
    stubs.signal(signal.SIGCONT)
    answers = meanwhile.answers()
    replacement, same = children(stubs)
    assert same == second
    assert set(answers) == {Who(0, replacement.pid), Who(1, second.pid)}
    assert f"starting another number=0 status={-signal.SIGKILL}" in stubs.log
    assert stubs.output.count("Sluice is ready") == 1


def test_a_process_that_was_told_to_end_is_replaced_too(stubs: "Server") -> None:
    first, _ = children(stubs)
    first.terminate()
    until(lambda: stubs.log.count("a process is ready number=0") == 2, stubs)
    assert "starting another number=0 status=0" in stubs.log


def test_processes_that_fail_are_started_again_while_others_serve(run_server: "RunServer") -> None:
    with run_server(config(), program=of("stub.py", "lame"), ready=False) as server:
        until(lambda: server.log.count("starting another number=1 status=1") > 3, server)
        delays = re.findall(r"delay_s=(\S+)", server.log)
        assert delays[:4] == ["0.1", "0.2", "0.4", "0.8"]
        assert "Sluice is ready" not in server.output


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_and_leaves_nothing(stubs: "Server", number: signal.Signals) -> None:
    ours = children(stubs)
    folder = Path(ours[0].cmdline()[-1])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    stubs.signal(number)
    assert stubs.wait() == 0
    assert all(has_ended(child) for child in ours)
    assert not folder.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", stubs.port), timeout=5)


def test_a_second_signal_ends_all_at_once(run_server: "RunServer") -> None:
    with run_server(config(), program=of("stub.py", "stubborn"), ready=False) as server:
        until_ready(server)
        ours = children(server)
        server.signal()
        until(lambda: "stopping" in server.log, server)
        server.signal()
        assert server.wait() == 1
        assert all(has_ended(child) for child in ours)
        server.expected_status = 1


def test_a_process_that_does_not_end_in_time_is_killed(run_server: "RunServer") -> None:
    stubborn = of("stub.py", "stubborn", margin_s=0.1)
    with run_server(config(timeout="100ms"), program=stubborn, ready=False) as server:
        until_ready(server)
        ours = children(server)
        server.signal()
        assert server.wait() == 1
        assert all(has_ended(child) for child in ours)
        assert server.log.count(f"status={-signal.SIGKILL}") == 2
        server.expected_status = 1


@pytest.mark.parametrize("status", [1, 2])
def test_processes_that_cannot_start_end_it_with_their_status(run_server: "RunServer", status: int) -> None:
    with run_server(config(), program=of("stub.py", str(status)), ready=False) as server:
        assert server.wait() == status
        assert "giving up number=" in server.log
        assert "Sluice is ready" not in server.output
        server.expected_status = status


def test_the_only_process_says_once_why_it_cannot_start(run_server: "RunServer") -> None:
    alone = config()
    alone["server"]["processes"] = 1
    with run_server(alone, program=of("stub.py", "1"), ready=False) as server:
        assert server.wait() == 1
        assert "starting another" not in server.log
        server.expected_status = 1


def test_processes_do_not_outlive_a_supervisor_that_was_killed(stubs: "Server") -> None:
    ours = children(stubs)
    stubs.signal(signal.SIGKILL)
    until(lambda: all(has_ended(child) for child in ours), stubs)
    stubs.wait()
    stubs.expected_status = -signal.SIGKILL


# ── real server processes ────────────────────────────────────────────────────────────────────────


async def test_orphaned_servers_finish_their_answers_and_tidy_up(
    run_server: "RunServer",
    text_socket: "OpenText",
    how_closed: "HowClosed",
    echo_chunks: Callable[..., list[str]],
) -> None:
    with run_server(config(), program=REAL, ready=False) as server:
        await asyncio.to_thread(until_ready, server)
        ours = children(server)
        folder = Path(ours[0].cmdline()[-1])
        async with text_socket(server) as text:
            await text.send("hello")
            frames = [await text.recv()]
            server.signal(signal.SIGKILL)
            frames += [await text.recv() for _ in range(COUNT - 1)]
            assert frames == echo_chunks("hello", COUNT)
            assert (await how_closed(text)).code == 1012
        await asyncio.to_thread(until, lambda: all(has_ended(child) for child in ours), server)
        assert not await asyncio.to_thread(folder.exists)
        assert await server.exit_status() == -signal.SIGKILL
        server.expected_status = -signal.SIGKILL


async def test_metrics_of_all_come_from_any_but_not_of_one_that_hangs(
    run_server: "RunServer", text_socket: "OpenText", parse_metrics: "type[Metrics]"
) -> None:
    with run_server(config(), program=REAL, ready=False) as server:
        await asyncio.to_thread(until_ready, server)
        async with contextlib.AsyncExitStack() as sockets:
            for _ in range(24):
                await sockets.enter_async_context(text_socket(server))
            metrics = await server.metrics()
            assert metrics.types["sluice_sessions"] == "gauge"
            here, there = (metrics.value("sluice_sessions", process=number) for number in "01")
            assert here + there == 24
            assert min(here, there) > 0

            first, second = children(server)
            with connection_to(second, server) as connection, stopped(first):
                connection.request("GET", "/metrics")
                left = parse_metrics(connection.getresponse().read().decode())
            assert left.value("sluice_sessions", process="1") == there
            assert ("sluice_sessions", frozenset({("process", "0")})) not in left.samples


@contextlib.contextmanager
def connection_to(process: psutil.Process, server: "Server") -> Iterator[http.client.HTTPConnection]:
    """A connection that `process` has accepted."""
    with contextlib.ExitStack() as others:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
            others.enter_context(contextlib.closing(connection))
            connection.request("GET", "/livez")
            connection.getresponse().read()
            ours = connection.sock.getsockname()
            if any(one.raddr == ours for one in process.net_connections("tcp")):
                yield connection
                return
    pytest.fail("no connection reached the process")


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        process.resume()
