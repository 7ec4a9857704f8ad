"""Reads a response log as it grows, for whoever is no session: a request that waits, a title."""

import asyncio
from typing import Self

from internal.biz.events import Event, QueueUpdate
from internal.biz.log import Cursor

EVENTS_AT_ONCE = 4096
BYTES_AT_ONCE = 65536


class Subscription:
    """Implements Follower. Reads at its own pace; what it has not read stays in the log."""

    __slots__ = ("_news",)

    def __init__(self) -> None:
        self._news = asyncio.Event()

    def wake(self) -> None:
        self._news.set()

    def queue_update(self, cursor: Cursor, update: QueueUpdate) -> None:
        return

    def read(self, cursor: Cursor) -> "Reading":
        """All events behind the cursor up to the end of its log, which must have been followed with this
        subscription."""
        return Reading(cursor, self._news)


class Reading:
    """The events of one response, as they come: an asynchronous iterator. For one reader.

    Closes its cursor at the end of the log, or when it is closed (`contextlib.aclosing`). Who waits for
    events may be cancelled, by a timeout for example, and go on reading later: nothing is lost.
    """

    __slots__ = ("_cursor", "_news")

    def __init__(self, cursor: Cursor, news: asyncio.Event) -> None:
        self._cursor: Cursor | None = cursor
        self._news = news

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Event]:
        cursor = self._cursor
        if cursor is None or cursor.done:
            await self.aclose()
            raise StopAsyncIteration
        if cursor.pending:
            await asyncio.sleep(0)  # a long log is not read in one go while others wait
        while not cursor.pending:
            self._news.clear()
            await self._news.wait()
        return cursor.take(EVENTS_AT_ONCE, BYTES_AT_ONCE)

    async def aclose(self) -> None:
        """Stop following. Closing twice is harmless."""
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None
