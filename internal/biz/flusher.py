"""Writes each session that has news once per tick of the event loop, however often it was woken."""

import asyncio
import logging
from typing import Protocol

from internal.biz.close import CloseCode
from internal.biz.ports import Connection

log = logging.getLogger(__name__)


class Flushable(Protocol):
    connection: Connection

    def collect(self) -> bytes:
        """Everything that is ready, framed; empty when there is nothing to write now."""

    def lag(self) -> None:
        """The connection holds more than it should after a write."""


class Flusher:
    """The dirty list. Bound: each session adds itself at most once between two flushes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._dirty: list[Flushable] = []

    def add(self, session: Flushable) -> None:
        """Have `session` written after the callbacks of this tick."""
        if not self._dirty:
            self._loop.call_soon(self._flush)
        self._dirty.append(session)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        # All is encoded before anything is written: what the kernel does for a write pushes our code and
        # data out of the processor's caches, and encoding in between cost more than twice as much.
        ready = []
        for session in dirty:
            try:
                if frames := session.collect():
                    ready.append((session, frames))
            except Exception:
                # Our bug, and this session's end; the others keep what they have collected.
                log.exception("session failed")
                session.connection.close(CloseCode.INTERNAL_ERROR, "internal error")
        for session, frames in ready:
            try:
                if session.connection.write(frames):
                    session.lag()
            except Exception:
                log.exception("write failed")
                session.connection.abort()
