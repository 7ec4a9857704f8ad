"""Where engines hand their steps to the event loop's reader: one wake-up for each step, or fewer."""

import asyncio
import threading

from internal.biz.errors import EngineLost
from internal.biz.generation import Chunk


class StepInbox:
    """A bounded inbox with one reading task, and any number of threads and tasks that write.

    Implements Sink. Bound: from `max_chunks` on the writing engine waits until the loop has caught up; the
    step that passes it is taken whole. Steps that arrive while the loop is busy are handed over together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, max_chunks: int = 4096) -> None:
        self._loop = loop
        self._max_chunks = max_chunks
        self._chunks: list[Chunk] = []
        self._room = threading.Condition()
        self._taken = asyncio.Event()
        """Somebody who writes on the loop may look for room again."""
        self._called = False
        self._closed = False
        self._lost: EngineLost | None = None
        self._reader: asyncio.Future[None] | None = None

    @property
    def is_lost(self) -> bool:
        """Whether its engine is: `take` raises, now or behind what was handed over before."""
        return self._lost is not None

    def put(self, step: list[Chunk]) -> None:
        """Hand over the chunks of one step. Dropped after `close`."""
        with self._room:
            while len(self._chunks) >= self._max_chunks and not self._closed:
                self._room.wait()
            self._add(step)

    def give(self, step: list[Chunk]) -> bool:
        """The same on the event loop, which must not wait here: the reader runs on it. However full the inbox
        is, the step is taken. True when it is full now."""
        with self._room:
            self._add(step)
            return len(self._chunks) >= self._max_chunks

    async def room(self) -> None:
        """Return when there is room for another step."""
        while len(self._chunks) >= self._max_chunks and not self._closed:
            self._taken.clear()
            await self._taken.wait()

    def fail(self, error: EngineLost) -> None:
        """Whoever takes is told, behind what was handed over before; what comes later is dropped."""
        with self._room:
            if self._closed:
                return
            self._closed = True
            self._lost = error
            self._room.notify_all()
            self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        self._taken.set()
        self._wake()

    def _add(self, step: list[Chunk]) -> None:
        if self._closed:
            return
        self._chunks += step
        if self._called:
            return
        self._called = True
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def take(self) -> list[Chunk]:
        """Everything that was handed over since the last call; waits when there is nothing. Raises EngineLost
        when there is no more to come."""
        while not self._chunks:
            if self._lost is not None:
                raise self._lost
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        with self._room:
            chunks, self._chunks = self._chunks, []
            self._called = False
            self._room.notify_all()
        self._taken.set()
        return chunks

    def close(self) -> None:
        """Let waiting engines go; what they hand over from now on is dropped."""
        with self._room:
            self._closed = True
            self._room.notify_all()
        self._taken.set()
