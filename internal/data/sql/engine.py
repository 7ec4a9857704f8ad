"""How connections to SQLite, PostgreSQL and MySQL are opened. Knows drivers, not what is stored."""

import asyncio
import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import NullPool

from internal.data.sql.dialect import contains_folded
from internal.data.sql.faults import hide_values
from internal.data.sql.runner import AsyncRunner, Runner, ThreadRunner

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one process. `command_timeout_s`: what a statement may take, or wait for another writer of the same
    SQLite file, or a call for a connection, before the database counts as away. So it does for all when it
    has answered nobody for `silence_s`."""

    connect_timeout_s: float = 3.0
    command_timeout_s: float = 10.0
    silence_s: float = 3.0
    readers: int = 4
    writers: int = 2


BOUNDS = Bounds()

GOODBYE_S = 0.5
"""What a database may take to end a connection."""


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def open_reading(url: URL, bounds: Bounds) -> Runner:
    """Each statement sees what was committed when it began; there are no transactions."""
    options = _pool(url, bounds.readers, bounds)
    options |= {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}
    if not is_sqlite(url):
        return AsyncRunner(_async_engine(url, options), transactions=False)
    return ThreadRunner(_engine(url, options, _prepare_reader), bounds.readers, transactions=False)


def open_writing(url: URL, bounds: Bounds) -> Runner:
    """Runs transactions. One on SQLite has the lock for writing from its begin."""
    if not is_sqlite(url):
        return AsyncRunner(_async_engine(url, _pool(url, bounds.writers, bounds)), transactions=True)
    # It takes one writer at a time.
    engine = _engine(url, _pool(url, 1, bounds), _prepare_writer)
    event.listen(engine, "begin", _begin_immediate)
    return ThreadRunner(engine, 1, transactions=True)


def open_migrating(url: URL, bounds: Bounds) -> Runner:
    """Runs transactions of which a statement may take as long as it does. On SQLite a lock is not waited
    for."""
    options: dict[str, Any] = {"poolclass": NullPool, "hide_parameters": True}
    if not is_sqlite(url):
        if _is_asyncpg(url):
            options |= {"connect_args": _asyncpg(bounds.connect_timeout_s, None)}
        return AsyncRunner(_async_engine(url, options), transactions=True)
    engine = _engine(url, options | {"connect_args": {"timeout": 0}}, _prepare_migration)
    event.listen(engine, "begin", _begin_immediate)
    return ThreadRunner(engine, 1, transactions=True)


def _engine(url: URL, options: dict[str, Any], prepare: Callable[[Any, object], None]) -> Engine:
    engine = create_engine(url, **options)
    event.listen(engine, "handle_error", hide_values)
    event.listen(engine, "connect", prepare)
    return engine


def _async_engine(url: URL, options: dict[str, Any]) -> "AsyncEngine":
    # Brings all of SQLAlchemy's ORM along, which SQLite does without.
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url, **options)
    event.listen(engine.sync_engine, "handle_error", hide_values)
    return engine


def _is_asyncpg(url: URL) -> bool:
    return url.drivername == "postgresql+asyncpg"


def _pool(url: URL, size: int, bounds: Bounds) -> dict[str, Any]:
    options: dict[str, Any] = {
        "hide_parameters": True,  # an error that is logged shows no prompt and no hash
        "pool_size": size,
        "max_overflow": 0,
        "pool_timeout": bounds.command_timeout_s,
        "pool_use_lifo": True,
    }
    if is_sqlite(url):
        # A thread may close what another one has opened.
        arguments = {"timeout": bounds.command_timeout_s, "check_same_thread": False}
        return options | {"connect_args": arguments}
    if _is_asyncpg(url):
        return options | {"connect_args": _asyncpg(bounds.connect_timeout_s, bounds.command_timeout_s)}
    return options | {"pool_pre_ping": True, "pool_recycle": 3600}


def _asyncpg(connect_s: float, command_s: float | None) -> dict[str, Any]:
    return {"timeout": connect_s, "command_timeout": command_s, "async_creator_fn": _connect_to_the_end}


async def _connect_to_the_end(*arguments: Any, **options: Any) -> Any:
    """Connect. Cancelling waits for it, up to the timeout: asyncpg, cancelled on its way, leaves an exception
    that nobody has asked for."""
    import asyncpg  # type: ignore[import-untyped]

    options["connection_class"] = _quick_to_close()
    connecting = asyncio.ensure_future(asyncpg.connect(*arguments, **options))
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        await asyncio.wait([connecting])
        if not connecting.cancelled() and not connecting.exception():
            connecting.result().terminate()
        raise


@functools.cache
def _quick_to_close() -> type[Any]:
    """A connection that does not wait long for a goodbye: one to a database that does not answer would hold
    up who asked it, and the end of our process, for seconds."""
    import asyncpg

    class Connection(asyncpg.Connection):  # type: ignore[misc]
        __slots__ = ()

        async def close(self, *, timeout: float | None = None) -> None:
            """Who is cancelled meanwhile is so behind it: SQLAlchemy would take it for a failure."""
            closing = asyncio.ensure_future(super().close(timeout=GOODBYE_S))
            is_cancelled = False
            while not closing.done():
                try:
                    await asyncio.wait([closing])
                except asyncio.CancelledError:
                    is_cancelled = True
            # When the time is up it has been cut off.
            with contextlib.suppress(TimeoutError):
                closing.result()
            if is_cancelled and (task := asyncio.current_task()) is not None:
                task.cancel()

    return Connection


def _prepare_reader(connection: Any, _: object) -> None:
    connection.create_function("contains_folded", 2, contains_folded, deterministic=True)


def _prepare_writer(connection: Any, _: object) -> None:
    connection.isolation_level = None  # `_begin_immediate` begins, in the place of the driver
    # A process that dies loses nothing; a machine that does may lose its last transactions.
    # Source: https://sqlite.org/pragma.html#pragma_synchronous
    _run(connection, "PRAGMA synchronous = NORMAL", "PRAGMA foreign_keys = ON")


def _prepare_migration(connection: Any, _: object) -> None:
    connection.isolation_level = None
    # Stays with the file. Foreign keys are off: to change a table, its rows move to another one of its name.
    _run(connection, "PRAGMA journal_mode = WAL")


def _run(connection: Any, *statements: str) -> None:
    cursor = connection.cursor()
    for statement in statements:
        cursor.execute(statement)
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    """Take the lock at once: a transaction that reads first may not get it any more."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
