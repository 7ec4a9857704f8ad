"""Work on a connection, away from the event loop: on the driver's own loop, or on a thread."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")
Work = Callable[[Connection], T]


class Runner(Protocol):
    async def run(self, work: Work[T]) -> T:
        """What `work` returns. It may be run when the caller has been cancelled already."""

    async def close(self) -> None:
        """Wait for what runs, and close all connections."""


class AsyncRunner:
    """Implements Runner for a driver that is asynchronous itself."""

    def __init__(self, engine: AsyncEngine, *, transactions: bool) -> None:
        """`transactions`: all of `work` or nothing."""
        self._engine = engine
        self._transactions = transactions

    async def run(self, work: Work[T]) -> T:
        async with self._engine.begin() if self._transactions else self._engine.connect() as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        await self._engine.dispose()


class ThreadRunner:
    """Implements Runner for SQLite. A thread of ours does all of `work` in one go: an asynchronous driver
    goes to its thread and back for each statement, each fetch and each cursor, and costs several times as
    much."""

    def __init__(self, engine: Engine, threads: int, *, transactions: bool) -> None:
        self._engine = engine
        self._transactions = transactions
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="storage")

    async def run(self, work: Work[T]) -> T:
        if self._transactions:
            return await self._on_thread(self._run, work)
        reading = _Reading()
        try:
            return await self._on_thread(self._read, work, reading)
        except asyncio.CancelledError:
            # Else a thread would go on with what nobody waits for any more.
            reading.interrupt()
            raise

    async def _on_thread(self, run: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, run, *arguments)

    def _run(self, work: Work[T]) -> T:
        with self._engine.begin() as connection:
            return work(connection)

    def _read(self, work: Work[T], reading: "_Reading") -> T:
        with self._engine.connect() as connection, reading.of(connection):
            return work(connection)

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._engine.dispose()


class _Reading:
    """What a thread reads, which another one may interrupt: this, and nothing that comes after it."""

    __slots__ = ("_connection", "_is_over", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Any = None
        self._is_over = False

    @contextmanager
    def of(self, connection: Connection) -> Iterator[None]:
        with self._lock:
            if self._is_over:
                raise CancelledError
            self._connection = connection.connection.driver_connection
        try:
            yield
        finally:
            with self._lock:
                self._connection = None

    def interrupt(self) -> None:
        """Harmless before it begins and after it has ended."""
        with self._lock:
            self._is_over = True
            if self._connection is not None:
                self._connection.interrupt()
