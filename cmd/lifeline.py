"""A process's side of its supervisor: what it tells, and when it must end.

Its standard input is one end of a socket pair. A line from it says that the process is ready; the end of the
stream, that the supervisor is gone, however that came about.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import cast


class Lifeline(asyncio.Protocol):
    """What joins a process with its supervisor, while it is held."""

    def __init__(self, lost: asyncio.Event) -> None:
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def eof_received(self) -> None:
        self._lost.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()

    @property
    def is_cut(self) -> bool:
        """Whether the supervisor is gone."""
        return self._transport is None or self._transport.is_closing()

    def tell_ready(self) -> None:
        """Tell that the process is ready. Called on any thread."""
        assert self._transport is not None
        self._loop.call_soon_threadsafe(self._transport.write, b"ready\n")

    def close(self) -> None:
        """Let go of it."""
        if self._transport is not None:
            self._transport.close()


@contextlib.asynccontextmanager
async def held(stop: asyncio.Event) -> AsyncIterator[Lifeline]:
    """Set `stop` when the supervisor is gone."""
    # A copy: the descriptor 0 must stay taken.
    end = socket.socket(fileno=os.dup(0))
    end.setblocking(False)
    loop = asyncio.get_running_loop()
    _, lifeline = await loop.create_unix_connection(lambda: Lifeline(stop), sock=end)
    try:
        yield lifeline
    finally:
        lifeline.close()
