"""A connection whose peer is slow, over a real socket."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest
from aiohttp import web

from internal.metrics.instruments import Traffic
from internal.server.websocket import WebSocketConnection

BUFFER_BYTES = 65536
DEADLINE_S = 5.0
SILENCE_S = 0.05


@dataclass
class Slow:
    """A peer that reads nothing before it is told to, and the server's end of its connection."""

    socket: aiohttp.ClientWebSocketResponse
    connection: WebSocketConnection
    unread: int = 0

    async def congest(self) -> None:
        """Write until neither the peer nor anything on the way takes more. Waits for room in vain then."""
        frames = self.connection.frame([b"x" * BUFFER_BYTES])
        in_vain = 0
        while in_vain < 3:  # a machine that is busy elsewhere looks the same, once
            if not in_vain:
                self.unread += 1
                if not self.connection.write(frames):
                    continue
            try:
                async with asyncio.timeout(SILENCE_S):
                    await self.connection.drain()
                in_vain = 0
            except TimeoutError:
                in_vain += 1

    async def read_all(self) -> None:
        for _ in range(self.unread):
            await self.socket.receive(DEADLINE_S)
        self.unread = 0


@pytest.fixture
async def slow() -> AsyncIterator[Slow]:
    opened: asyncio.Queue[WebSocketConnection] = asyncio.Queue(1)
    over = asyncio.Event()

    async def serve(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(compress=False)
        stream = await ws.prepare(request)
        opened.put_nowait(WebSocketConnection(request, stream, Traffic(), BUFFER_BYTES, "127.0.0.1"))
        await over.wait()
        return ws

    app = web.Application()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/") as socket,
    ):
        connection = await opened.get()
        yield Slow(socket, connection)
        connection.finish()
        over.set()
    await runner.cleanup()


async def test_who_waited_for_room_in_vain_may_wait_again(slow: Slow) -> None:
    for _ in range(2):
        await slow.congest()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SILENCE_S):
                await slow.connection.drain()
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(slow.read_all())
            await slow.connection.drain()
