"""What a process is made of, and how it lives: it connects, works, drains."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from internal.biz.batches import BatchStore
from internal.biz.chat import Chat
from internal.biz.ports import History
from internal.biz.responses import ResponseStore
from internal.biz.session_manager import SessionManager
from internal.biz.user_admin import UserAdmin
from internal.biz.worker import Worker
from internal.conf import settings as conf
from internal.data.memory_history import MemoryHistory
from internal.data.redis.dead_letters import RedisDeadLetters
from internal.data.redis.link import RedisLink
from internal.data.redis.operator import RedisOperator
from internal.data.redis.work_queue import RedisWorkQueue
from internal.data.sql.batches import SqlBatches
from internal.data.sql.database import Database
from internal.data.sql.history import SqlHistory
from internal.data.sql.migrate import migrate
from internal.data.sql.responses import SqlResponses
from internal.metrics.instruments import Instruments
from internal.metrics.loop_lag import watch_loop_lag
from internal.server.readiness import Readiness
from internal.server.streams import Streams

CUT_SHORT_S = 3.0
"""What engines and storage may take to end what still runs."""


class Service(Protocol):
    """Something that works in the background until it is cancelled."""

    async def run(self) -> None: ...


class Storage:
    """What was said, and who said it: in a database, or in memory where there is none."""

    def __init__(self, settings: conf.Storage) -> None:
        self._url = settings.url.get_secret_value()
        self.database = Database(self._url) if self._url else None
        self.history: History
        self.responses: ResponseStore
        self.batches: BatchStore
        if self.database is None:
            self.history = self.responses = self.batches = MemoryHistory()
        else:
            self.history, self.responses = SqlHistory(self.database), SqlResponses(self.database)
            self.batches = SqlBatches(self.database)

    async def connect(self) -> None:
        """Make or update the tables, once. Raises SluiceError when the database cannot be used."""
        if self.database is not None:
            await migrate(self._url)
            await self.database.connect()

    async def run(self) -> None:
        """Write what is to be stored, until cancelled."""
        if self.database is not None:
            try:
                await self.database.run()
            finally:
                await self.close()

    async def close(self) -> None:
        """Close all connections."""
        if self.database is not None:
            await self.database.close()


@dataclass(frozen=True, slots=True)
class Sluice:
    """Everything that runs in a server process; `cmd.server` gives it an address and a life."""

    application: web.Application
    sessions: SessionManager
    streams: Streams
    readiness: Readiness
    instruments: Instruments
    link: RedisLink | None
    storage: Storage
    services: Sequence[Service]
    workers: Sequence[Worker]

    async def connect(self) -> None:
        """Reach for the storage, and for the queue where it is another process's, once. Raises SluiceError
        when they never will be reached."""
        await self.storage.connect()
        if self.link is not None:
            await self.link.connect()

    async def work(self, progress: Callable[[str, float], None], ready: Callable[[], None]) -> None:
        """Run the workers and the housekeeping until cancelled.

        `progress` is told (model, 0 to 1) by the workers; `ready` is called when there are none to load.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch_loop_lag(self.instruments.loop_lag))
            tasks.create_task(self.storage.run())
            for service in self.services:
                tasks.create_task(service.run())
            for worker in self.workers:
                tasks.create_task(worker.run(functools.partial(progress, worker.model)))
            if self.link is not None:
                await self.link.wait_heard()
                ready()

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let running answers finish, close every session. What then still runs here ends
        where it is."""
        await asyncio.gather(
            self.sessions.drain(timeout_s),
            self.streams.drain(timeout_s),
            *(worker.finish_background(timeout_s) for worker in self.workers),
        )
        await asyncio.gather(*(worker.cut_short(CUT_SHORT_S) for worker in self.workers))


@dataclass(frozen=True, slots=True)
class Crew:
    """Everything that runs in a worker process."""

    name: str
    instruments: Instruments
    link: RedisLink
    storage: Storage
    queue: RedisWorkQueue
    workers: Sequence[Worker]

    async def work(self, progress: Callable[[str, float], None]) -> None:
        """Run the workers until cancelled. `progress` is told (model, 0 to 1)."""
        await self.storage.connect()
        await self.link.connect()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch_loop_lag(self.instruments.loop_lag))
            tasks.create_task(self.storage.run())
            tasks.create_task(self.link.run())
            tasks.create_task(self.queue.run())
            for worker in self.workers:
                tasks.create_task(worker.run(functools.partial(progress, worker.model)))

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, finish what runs, give the rest back."""
        await asyncio.gather(*(worker.drain(timeout_s) for worker in self.workers))
        await self.queue.finish()


@dataclass(frozen=True, slots=True)
class Desk:
    """What an operator's command works with, while it is `connected`."""

    link: RedisLink
    storage: Storage
    chat: Chat
    operator: RedisOperator
    dead_letters: RedisDeadLetters

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Raises SluiceError, with the reason, when Redis cannot be reached. The few commands that need the
        storage connect it."""
        await self.link.reach()
        running = [asyncio.create_task(service.run()) for service in (self.link, self.storage)]
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self.storage.close()  # a task that had not begun yet has closed nothing

    async def models(self) -> list[str]:
        """Those of the configuration, then those that Redis knows all the same."""
        return await self.operator.models(self.chat.models)


@dataclass(frozen=True, slots=True)
class UserDesk:
    """What an operator's command on users works with, while it is `connected`."""

    storage: Storage
    admin: UserAdmin

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Raises SluiceError, with the reason, when the database cannot be reached."""
        try:
            await self.storage.connect()
            yield
        finally:
            await self.storage.close()
