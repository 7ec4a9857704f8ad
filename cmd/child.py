"""A server process's side of its supervisor: what it was started with, and how it is one of several."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from cmd import lifeline
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

    @property
    def is_shared(self) -> bool:
        """Whether there are others."""
        return self.count > 1


@contextlib.asynccontextmanager
async def attached(
    place: Place, sluice: Sluice, stop: asyncio.Event, patience_s: float
) -> AsyncIterator[Callable[[], None]]:
    """Answer scrapes for all processes, where there are several, and set `stop` when the supervisor is gone;
    `patience_s` as for a lifeline.

    Gives what tells the supervisor, from any thread, that this process is ready.
    """
    async with lifeline.held(stop, patience_s) as line:
        try:
            async with contextlib.AsyncExitStack() as around:
                if place.is_shared:
                    own = sluice.instruments.scrape
                    siblings = Siblings(place.folder, place.number, place.count, own)
                    sluice.application[SCRAPE] = siblings.scrape
                    await around.enter_async_context(siblings)
                yield line.tell_ready
        finally:
            if line.is_cut:
                # The last one to leave; before that it is not empty.
                with contextlib.suppress(OSError):
                    place.folder.rmdir()
