"""Reads, and writes of many callers in one transaction.

Knows SQLAlchemy, not what is stored.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import make_url, text
from sqlalchemy.engine import URL, Connection, Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.base import Executable

from internal.biz.errors import Unavailable
from internal.data.sql.engine import BOUNDS, Bounds, is_sqlite, open_reading, open_writing
from internal.data.sql.faults import explained, is_away, is_cut, is_undone, told
from internal.data.sql.pulse import Pulse
from internal.data.sql.runner import T, Work

log = logging.getLogger(__name__)

MAX_UNITS = 500
"""Of what one transaction takes in."""
MAX_WAITING = 20_000
"""Units that may wait for their transaction; what is more is refused."""
PROBE_INTERVAL_S = 0.5
"""Between two looks whether a database that fell silent is back."""
MAX_UNDONE = 5
"""Times that a transaction begins anew because others stood in its way."""
COMPLAINT_INTERVAL_S = 5.0
"""Between two log lines that say the same."""

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """A statement that is run with many rows at once. In a transaction those of lower `rank` come first."""

    rank: int
    statement: Executable


Part = tuple[Write, Sequence[Values]]


Confirmation = tuple[Executable, str]
"""A statement that selects those of `ids` that are there, and one of them."""


class _Unit:
    """What one caller wants to be written together, and who waits for it."""

    __slots__ = ("confirm", "done", "parts")

    def __init__(self, parts: Sequence[Part], confirm: Confirmation | None) -> None:
        self.parts = parts
        self.confirm = confirm
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def refuse(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Database:
    """Reads, and group commits. Every call raises Unavailable while the database cannot be reached.

    Group commit: what comes in while a transaction is being committed shares the next one, so that the price
    of a commit is paid by all that wait for it. Must be made on the event loop that runs it.

    Making one raises SluiceError when there is no driver for `url`.
    """

    def __init__(self, url: str, bounds: Bounds = BOUNDS, max_waiting: int = MAX_WAITING) -> None:
        self.url: URL = make_url(url)
        self.commits = 0
        try:
            self._reader = open_reading(self.url, bounds)
            self._writer = open_writing(self.url, bounds)
        except Exception as error:  # there is no such driver
            raise explained(error, self.url) from error
        # Within our process nobody waits for SQLite's lock: who does, sleeps, and up to 100 ms too long.
        self._turn = asyncio.Lock() if is_sqlite(self.url) else contextlib.nullcontext()
        # A file is silent while another process writes to it, and what may be read is read all the same.
        silence_s = 0 if is_sqlite(self.url) else bounds.silence_s
        self._pulse = Pulse(silence_s, self._begin_to_probe, self._fell_silent)
        self._max_waiting = max_waiting
        self._waiting: list[_Unit] = []
        self._probing: asyncio.Task[None] | None = None
        self._writing: list[_Unit] = []
        """Those of the transaction at hand."""
        self._news = asyncio.Event()
        self._closed = False
        self._disconnected = False
        self._is_busy = False
        self._complained_at = float("-inf")

    @property
    def dialect(self) -> str:
        """`sqlite`, `postgresql`, `mysql` or `mariadb`."""
        return self.url.get_backend_name()

    @property
    def is_busy(self) -> bool:
        """A transaction of `write` is under way."""
        return self._is_busy

    async def connect(self) -> None:
        """Return when the database answers. Raises SluiceError with what a person can do about it."""
        # The first of these opens the file; a number can be selected without.
        question = "PRAGMA schema_version" if is_sqlite(self.url) else "SELECT 1"
        try:
            await self._reader.run(lambda connection: connection.execute(text(question)).all())
        except Exception as error:
            raise explained(error, self.url) from error

    async def run(self) -> None:
        """Write until cancelled. What waits then is refused."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    self._writing, self._waiting = self._waiting[:MAX_UNITS], self._waiting[MAX_UNITS:]
                    self._is_busy = True
                    await self._settle(self._writing)
                self._is_busy = False
        finally:
            self._closed = True
            self._refuse_all(_stopping())

    def _fell_silent(self) -> None:
        self._complain("it does not answer")
        self._refuse_all(_away())
        self._begin_to_probe()

    def _begin_to_probe(self) -> None:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        """Ask until there is an answer: else of many who come when it is back, only one would find out."""
        while True:
            with contextlib.suppress(Unavailable):
                await self._read(text("SELECT 1"), None)
            if not self._pulse.is_silent:
                break
            await asyncio.sleep(PROBE_INTERVAL_S)

    def _refuse_all(self, error: Unavailable) -> None:
        waiting, self._waiting = self._waiting, []
        for unit in (*self._writing, *waiting):
            unit.refuse(error)

    async def close(self) -> None:
        """Close all connections. Who asks from then on is told that the server is stopping."""
        self._disconnected = True
        self._pulse.close()
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])
        await self._reader.close()
        await self._writer.close()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    async def write(self, *parts: Part, confirm: Confirmation | None = None) -> bool:
        """Write all parts in one transaction, with those of other callers; returns when it is committed, and
        whether the row to `confirm` was there then.

        Raises IntegrityError of SQLAlchemy for what breaks a rule of the tables; the others are written.
        When it is cancelled, or raises Unavailable, it may have been written.
        """
        if self._closed:
            raise _stopping()
        if self._pulse.is_silent and self._is_busy:
            raise _away()
        if len(self._waiting) >= self._max_waiting:
            raise Unavailable("the storage has more to write than it can; try again", code="storage_busy")
        unit = _Unit(parts, confirm)
        self._waiting.append(unit)
        self._news.set()
        return await unit.done

    async def _settle(self, units: Sequence[_Unit]) -> None:
        try:
            confirmed = await self._commit(units)
        except Unavailable as error:
            for unit in units:
                unit.refuse(error)
        except Exception as error:
            if len(units) == 1:
                units[0].refuse(error)
                return
            # One of them breaks a rule. It alone shall fail.
            half = len(units) // 2
            await self._settle(units[:half])
            await self._settle(units[half:])
        else:
            for unit in units:
                if not unit.done.done():
                    unit.done.set_result(unit.confirm is None or unit.confirm in confirmed)

    async def _commit(self, units: Sequence[_Unit]) -> set[Confirmation]:
        """Returns what was confirmed."""
        rows: dict[Write, list[Values]] = {}
        for unit in units:
            for write, values in unit.parts:
                rows.setdefault(write, []).extend(values)
        commit = _Commit(
            [(write, rows[write]) for write in sorted(rows, key=lambda it: it.rank) if rows[write]],
            [unit.confirm for unit in units if unit.confirm is not None],
        )
        try:
            await self.transact(commit)
        except Unavailable as error:
            # Once the commit is sent, nobody knows what became of it.
            if commit.is_sent or not _was_cut(error):
                raise
            await self.transact(commit)
        self.commits += 1
        return commit.confirmed

    async def transact(self, work: Work[T]) -> T:
        """What `work` returns, which has a transaction of its own. What it raises undoes all of it.

        Others wait for it, on SQLite all that write. `work` must do no more than ask the database: on SQLite
        it runs on a thread, on a server on the event loop; and when the database undid it, which is how it
        ends a deadlock, it is run again. Cancelling interrupts it; when it is cancelled, or Unavailable is
        raised, all of it may have been committed already.
        """
        async with self._turn, self._translated():
            for _ in range(MAX_UNDONE):
                try:
                    return await self._attempt(work)
                except DBAPIError as error:
                    if not is_undone(error):
                        raise
            return await self._attempt(work)

    async def _attempt(self, work: Work[T]) -> T:
        async with self._pulse.asking():
            return await self._writer.run(work)

    async def change(self, statement: Executable) -> int:
        """Run one statement in a transaction of its own. Returns the number of rows that it changed."""
        return await self.transact(lambda connection: connection.execute(statement).rowcount)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    async def read(self, statement: Executable, values: Values | None = None) -> Sequence[Row[Any]]:
        """All rows. A connection that broke while nobody used it is replaced."""
        try:
            return await self._read(statement, values)
        except Unavailable as error:
            if not _was_cut(error):
                raise
        return await self._read(statement, values)

    async def _read(self, statement: Executable, values: Values | None) -> Sequence[Row[Any]]:
        async with self._translated(), self._pulse.asking():
            return await self._reader.run(lambda connection: connection.execute(statement, values).all())

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """Whatever keeps us from the database becomes Unavailable; what is wrong with a statement stays."""
        if self._disconnected:
            raise _stopping()
        try:
            yield
        except Exception as error:
            if isinstance(error, Unavailable) or not is_away(error):
                raise
            self._complain(told(error))
            raise _away() from error

    def _complain(self, reason: str) -> None:
        if time.monotonic() - self._complained_at > COMPLAINT_INTERVAL_S:
            self._complained_at = time.monotonic()
            log.warning("the storage cannot be reached: %s", reason)


class _Commit:
    """All that one transaction does."""

    def __init__(self, work: Sequence[Part], confirming: Sequence[Confirmation]) -> None:
        self._work = work
        self._confirming = confirming
        self.confirmed: set[Confirmation] = set()
        self.is_sent = False

    def __call__(self, connection: Connection) -> None:
        self.is_sent = False
        for write, values in self._work:
            connection.execute(write.statement, values)
        asked: dict[Executable, list[str]] = {}
        for statement, row_id in self._confirming:
            asked.setdefault(statement, []).append(row_id)
        for statement, ids in asked.items():
            found = connection.execute(statement, {"ids": ids}).scalars()
            self.confirmed.update((statement, row_id) for row_id in found)
        self.is_sent = True


def _was_cut(error: Unavailable) -> bool:
    return isinstance(error.__cause__, Exception) and is_cut(error.__cause__)


def _away() -> Unavailable:
    return Unavailable("the storage cannot be reached; try again in a moment", code="storage_unavailable")


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping", code="restarting")
