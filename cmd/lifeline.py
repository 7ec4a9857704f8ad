"""A process's side of its supervisor: what it tells, and when it must end.

Its standard input is one end of a socket pair. A line from it says that the process is ready; the end of the
stream, that the supervisor is gone, however that came about. Then nobody else would end it if it hangs.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator
from typing import cast

log = logging.getLogger("sluice")


class Lifeline(asyncio.Protocol):
    """What joins a process with its supervisor, while it is held."""

    def __init__(self, lost: asyncio.Event, patience_s: float) -> None:
        """`lost` is set when the supervisor is gone, and `patience_s` later the process ends, whatever it
        does."""
        self._lost = lost
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._is_let_go = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def eof_received(self) -> None:
        self._cut()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cut()

    def _cut(self) -> None:
        self._lost.set()
        if self._deadline is None and not self._is_let_go:
            self._deadline = self._loop.call_later(self._patience_s, _give_up)

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
        self._is_let_go = True
        if self._deadline is not None:
            self._deadline.cancel()
        if self._transport is not None:
            self._transport.close()


def _give_up() -> None:
    log.error("the supervisor is gone, and what runs does not end: this process ends")
    logging.shutdown()
    os._exit(1)


@contextlib.asynccontextmanager
async def held(stop: asyncio.Event, patience_s: float) -> AsyncIterator[Lifeline]:
    """Set `stop` when the supervisor is gone; after `patience_s` more the process ends, if it is still in
    here."""
    # A copy: the descriptor 0 must stay taken.
    end = socket.socket(fileno=os.dup(0))
    end.setblocking(False)
    loop = asyncio.get_running_loop()
    _, lifeline = await loop.create_unix_connection(lambda: Lifeline(stop, patience_s), sock=end)
    try:
        yield lifeline
    finally:
        lifeline.close()
