"""Work on a connection, away from the event loop: on the driver's own loop, or on a thread."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sqlalchemy.engine import Connection, Engine

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")
Work = Callable[[Connection], T]


class Runner(Protocol):
    async def run(self, work: Work[T]) -> T:
        """What `work` returns. Cancelling interrupts it, and may not wait until it has ended."""

    async def close(self) -> None:
        """Wait for what runs, and close all connections."""


class AsyncRunner:
    """Implements Runner for a driver that is asynchronous itself."""

    def __init__(self, engine: "AsyncEngine", *, transactions: bool) -> None:
        """`transactions`: all of `work` or nothing."""
        self._engine = engine
        self._open = engine.begin if transactions else engine.connect

    async def run(self, work: Work[T]) -> T:
        async with self._open() as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        await self._engine.dispose()


class ThreadRunner:
    """Implements Runner for SQLite. A thread of ours does all of `work` in one go: an asynchronous driver
    goes to its thread and back for each statement, each fetch and each cursor, and costs several times as
    much."""

    def __init__(self, engine: Engine, threads: int, *, transactions: bool) -> None:
        """`transactions`: all of `work` or nothing."""
        self._engine = engine
        self._open = engine.begin if transactions else engine.connect
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="storage")

    async def run(self, work: Work[T]) -> T:
        job = _Job()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, work, job)
        except asyncio.CancelledError:
            # Else a thread would go on with what nobody waits for any more.
            job.interrupt()
            raise

    def _run(self, work: Work[T], job: "_Job") -> T:
        with self._open() as connection, job.on(connection):
            return work(connection)

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._engine.dispose()


class _Job:
    """What a thread does, which another one may interrupt: this, and nothing that comes after it."""

    __slots__ = ("_connection", "_is_over", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Any = None
        self._is_over = False

    @contextmanager
    def on(self, connection: Connection) -> Iterator[None]:
        """Raises CancelledError at its begin and at its end when it has been interrupted: a transaction
        around it is rolled back, also when that came between two statements."""
        self._set(connection.connection.driver_connection)
        try:
            yield
        finally:
            self._set(None)

    def _set(self, connection: Any) -> None:
        with self._lock:
            self._connection = connection
            if self._is_over:
                self._connection = None
                raise CancelledError

    def interrupt(self) -> None:
        """Harmless before it begins and after it has ended."""
        with self._lock:
            self._is_over = True
            if self._connection is not None:
                self._connection.interrupt()
