"""A server process's side of its supervisor: what it was started with, what it tells, and when it must end.

Its standard input is one end of a socket pair. A line from it says that the process is ready; the end of the
stream, that the supervisor is gone, however that came about.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from cmd.wire.server import Sluice
from internal.server.app import SCRAPE
from internal.server.siblings import Siblings


@dataclass(frozen=True, slots=True)
class Place:
    """The place of one process among `count`. The supervisor has its listening socket too, which so outlives
    the process. In `folder` the processes find each other."""

    number: int
    count: int
    listener: socket.socket
    folder: Path


class _Lifeline(asyncio.Protocol):
    def __init__(self, lost: asyncio.Event) -> None:
        self._lost = lost

    def eof_received(self) -> None:
        self._lost.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()


@contextlib.asynccontextmanager
async def attached(place: Place, sluice: Sluice, stop: asyncio.Event) -> AsyncIterator[Callable[[], None]]:
    """Be one of several: answer scrapes for all, and set `stop` when the supervisor is gone.

    Gives what tells the supervisor, from any thread, that this process is ready.
    """
    loop = asyncio.get_running_loop()
    siblings = Siblings(place.folder, place.number, place.count, sluice.instruments.scrape)
    sluice.application[SCRAPE] = siblings.scrape
    # A copy: the descriptor 0 must stay taken.
    end = socket.socket(fileno=os.dup(0))
    end.setblocking(False)
    transport, _ = await loop.create_unix_connection(lambda: _Lifeline(stop), sock=end)
    try:
        async with siblings:
            yield lambda: _tell_ready(loop, transport)
    finally:
        orphaned = transport.is_closing()
        transport.close()
        if orphaned:
            # The last one to leave; before that it is not empty.
            with contextlib.suppress(OSError):
                place.folder.rmdir()


def _tell_ready(loop: asyncio.AbstractEventLoop, transport: asyncio.WriteTransport) -> None:
    loop.call_soon_threadsafe(transport.write, b"ready\n")
