"""`/ws`: bare text, with the echo model."""

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from test.e2e.conftest import HowClosed, OpenText, RunServer, Server

Chunks = Callable[..., list[str]]


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    models = [
        {"name": "echo", "generator": "echo", "options": {"interval": "10ms"}},
        {"name": "slow", "generator": "echo", "options": {"interval": "60ms"}},
        {"name": "short", "generator": "echo", "options": {"chunks": 2, "interval": "0"}},
    ]
    with run_server({"models": models}) as server:
        yield server


@pytest.mark.parametrize("message", ["hello", "two\nlines", "ünï €𝄞", " spaces ", "error: no", "x" * 100_000])
async def test_the_frames_are_the_numbered_chunks(
    server: "Server", text_socket: "OpenText", echo_chunks: Chunks, message: str
) -> None:
    async with text_socket(server) as socket:
        await socket.send(message)
        assert [await socket.recv() for _ in range(5)] == echo_chunks(message)
        await socket.close()
        with pytest.raises(ConnectionClosed):
            await socket.recv()


async def test_chunks_are_an_interval_apart(server: "Server", text_socket: "OpenText") -> None:
    async with text_socket(server, "/ws?model=slow") as socket:
        await socket.send("hello")
        came = []
        for _ in range(5):
            await socket.recv()
            came.append(time.monotonic())
    # After a late chunk the next may come sooner, but never in a burst.
    assert came[-1] - came[0] > 4 * 0.06 / 2


async def test_sessions_are_stepped_together(
    server: "Server", text_socket: "OpenText", echo_chunks: Chunks
) -> None:
    count = 30
    order: list[str] = []

    async def talk(name: int) -> None:
        async with text_socket(server, "/ws?model=slow") as socket:
            opened.release()
            await everybody.wait()
            await socket.send(f"hello {name}")
            for expected in echo_chunks(f"hello {name}"):
                assert await socket.recv() == expected
                order.append(expected[:7])

    opened, everybody = asyncio.Semaphore(0), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for name in range(count):
            tasks.create_task(talk(name))
        for _ in range(count):
            await opened.acquire()
        everybody.set()
    assert order.index("chunk 5") > max(i for i, chunk in enumerate(order) if chunk == "chunk 2")


async def test_messages_wait_their_turn(
    server: "Server", text_socket: "OpenText", echo_chunks: Chunks
) -> None:
    messages = [f"message {number}" for number in range(6)]
    async with text_socket(server) as socket:
        for message in messages:
            await socket.send(message)
        for message in messages:
            assert [await socket.recv() for _ in range(5)] == echo_chunks(message)


async def test_the_model_is_chosen_in_the_address(
    server: "Server", text_socket: "OpenText", echo_chunks: Chunks
) -> None:
    async with text_socket(server, "/ws?model=short") as socket:
        for message in ("hello", "again"):
            await socket.send(message)
            assert [await socket.recv() for _ in range(2)] == echo_chunks(message, 2)


async def test_an_unknown_model_is_told_why_and_closed(
    server: "Server", text_socket: "OpenText", how_closed: "HowClosed"
) -> None:
    async with text_socket(server, "/ws?model=gpt-9") as socket:
        code, reason = await how_closed(socket)
    assert (code, reason) == (4403, "there is no model 'gpt-9'; this server has: echo, slow, short")


async def test_a_client_s_close_is_answered_with_its_code(server: "Server", text_socket: "OpenText") -> None:
    async with text_socket(server) as socket:
        await socket.close(code=1000, reason="bye")
        assert socket.close_code == 1000
    async with text_socket(server) as socket:
        await socket.close(code=3999)
        assert socket.close_code == 3999


@pytest.mark.parametrize("path", ["/ws", "/v1/responses", "/ws?model=none"])
async def test_without_an_upgrade_it_says_how(server: "Server", path: str) -> None:
    reply = await server.fetch(path)
    assert reply.status == 426
    assert reply.headers["Upgrade"] == "websocket"
    assert reply.text.startswith("This is a WebSocket endpoint")
    assert "wscat" in reply.text


def wscat() -> str:
    here = Path(__file__).parents[2] / "node_modules/.bin/wscat"
    found = shutil.which("wscat") or (str(here) if here.exists() else None)
    if found is None:
        pytest.skip("wscat is not installed (npm install wscat)")
    return found


async def test_wscat_talks_to_it(server: "Server", echo_chunks: Chunks) -> None:
    await server.metric_becomes("sluice_sessions", 0)
    process = await asyncio.create_subprocess_exec(
        *(wscat(), "--no-color", "-c", server.ws()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # What is typed before it is connected is lost, and without a terminal it does not say when it is.
        await server.metric_becomes("sluice_sessions", 1)
        seen = ""
        for message in ("hello", "hello again"):
            process.stdin.write(f"{message}\n".encode())
            while f"chunk 5: {message}" not in seen:
                more = await process.stdout.read(4096)
                assert more, seen
                seen += more.decode()
        said = [line[line.index("chunk") :] for line in seen.splitlines() if "chunk" in line]
        assert said == echo_chunks("hello") + echo_chunks("hello again")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()
