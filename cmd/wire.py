"""Builds a server, a worker, or an operator's desk, from the settings. The only place that knows the concrete
classes."""

import asyncio
import contextlib
import functools
import os
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from internal.biz.chat import Chat
from internal.biz.flusher import Flusher
from internal.biz.heartbeat import Heartbeat
from internal.biz.models import Response
from internal.biz.ports import Generator, History, Meter, Queue
from internal.biz.session import SessionLimits
from internal.biz.session_manager import ManagerLimits, SessionManager
from internal.biz.worker import Worker
from internal.conf import settings as conf
from internal.data.memory_history import MemoryHistory
from internal.data.memory_queue import MemoryQueue, QueueLimits
from internal.data.redis.dead_letters import RedisDeadLetters
from internal.data.redis.endings import Endings
from internal.data.redis.history import RedisHistory
from internal.data.redis.keys import Keys
from internal.data.redis.link import RedisLink
from internal.data.redis.operator import RedisOperator
from internal.data.redis.queue import RedisQueue, RedisQueueOptions
from internal.data.redis.work_queue import RedisWorkQueue
from internal.generator.echo import EchoGenerator
from internal.generator.llamacpp import LlamaCppGenerator, LlamaCppOptions
from internal.metrics.instruments import Instruments
from internal.metrics.loop_lag import watch_loop_lag
from internal.server.app import App, AppOptions
from internal.server.readiness import Readiness
from internal.server.websocket import WebSocketServer


class Service(Protocol):
    """Something that works in the background until it is cancelled."""

    async def run(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Sluice:
    """Everything that runs in a server process; `cmd.server` gives it an address and a life."""

    application: web.Application
    sessions: SessionManager
    readiness: Readiness
    instruments: Instruments
    link: RedisLink | None
    services: Sequence[Service]
    workers: Sequence[Worker]

    async def connect(self) -> None:
        """Reach for the queue, once, where it is another process's. Raises SluiceError when it never will be
        reached."""
        if self.link is not None:
            await self.link.connect()

    async def work(self, progress: Callable[[str, float], None], ready: Callable[[], None]) -> None:
        """Run the workers and the housekeeping until cancelled.

        `progress` is told (model, 0 to 1) by the workers; `ready` is called when there are none to load.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch_loop_lag(self.instruments.loop_lag))
            for service in self.services:
                tasks.create_task(service.run())
            for worker in self.workers:
                tasks.create_task(worker.run(functools.partial(progress, worker.model)))
            if self.link is not None:
                await self.link.wait_heard()
                ready()


@dataclass(frozen=True, slots=True)
class Crew:
    """Everything that runs in a worker process."""

    name: str
    instruments: Instruments
    link: RedisLink
    queue: RedisWorkQueue
    workers: Sequence[Worker]

    async def work(self, progress: Callable[[str, float], None]) -> None:
        """Run the workers until cancelled. `progress` is told (model, 0 to 1)."""
        await self.link.connect()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch_loop_lag(self.instruments.loop_lag))
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
    chat: Chat
    operator: RedisOperator
    dead_letters: RedisDeadLetters

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Raises SluiceError, with the reason, when Redis cannot be reached."""
        await self.link.reach()
        running = asyncio.create_task(self.link.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def models(self) -> list[str]:
        """Those of the configuration, then those that Redis knows all the same."""
        return await self.operator.models(self.chat.models)


def build(settings: conf.Settings) -> Sluice:
    """A server. Must be called on the event loop that will run it."""
    loop = asyncio.get_running_loop()
    names = [model.name for model in settings.models]
    instruments = Instruments()
    link: RedisLink | None = None
    queue: Queue
    history: History
    services: list[Service]
    workers: list[Worker] = []
    if settings.queue.driver == "redis":
        node, keys = _process_name(), Keys(settings.queue.prefix)
        link = RedisLink(settings.queue.url.get_secret_value(), keys.tick(node), instruments)
        history = RedisHistory(link, settings.queue.prefix)
        redis_queue = RedisQueue(
            node,
            names,
            link,
            keys,
            _redis_options(settings.queue),
            _settle(history, instruments),
            instruments,
        )
        queue, services = redis_queue, [link, redis_queue]
    else:
        history = MemoryHistory()
        memory_queue = MemoryQueue(_queue_limits(settings.queue), _settle(history, instruments))
        workers = [
            Worker(model.name, _generator(model), memory_queue, history, instruments)
            for model in settings.models
        ]
        queue, services = memory_queue, [memory_queue]
    chat = Chat(queue, history, names)
    sessions = SessionManager(
        chat,
        Flusher(loop),
        Heartbeat(loop, settings.session.ping_interval, settings.session.pong_timeout),
        instruments,
        _manager_limits(settings.session),
        SessionLimits(settings.session.max_in_flight, settings.session.write_timeout),
    )
    websockets = WebSocketServer(
        sessions,
        instruments.traffic,
        settings.session.max_message_bytes,
        settings.session.write_buffer_bytes,
    )
    readiness = Readiness([worker.model for worker in workers])
    options = AppOptions(settings.server.allowed_origins, settings.server.http.timeout)
    app = App(chat, websockets, readiness, instruments, options)
    return Sluice(app.build(), sessions, readiness, instruments, link, services, workers)


def build_crew(settings: conf.Settings, models: Sequence[conf.Model]) -> Crew:
    """A worker process for `models`. Must be called on the event loop that will run it."""
    instruments, name, keys = Instruments(), _process_name(), Keys(settings.queue.prefix)
    link = RedisLink(settings.queue.url.get_secret_value(), keys.tick(name), instruments)
    history = RedisHistory(link, settings.queue.prefix)
    queue = RedisWorkQueue(
        name,
        [model.name for model in models],
        link,
        keys,
        _redis_options(settings.queue),
        _settle(history, instruments),
        instruments,
    )
    workers = [Worker(model.name, _generator(model), queue, history, instruments) for model in models]
    return Crew(name, instruments, link, queue, workers)


def build_desk(settings: conf.Settings) -> Desk:
    """What an operator needs. Must be called on the event loop that will run it."""
    queue, names = settings.queue, [model.name for model in settings.models]
    instruments, name, keys = Instruments(), _process_name(), Keys(queue.prefix)
    link = RedisLink(queue.url.get_secret_value(), keys.tick(name), instruments)
    history = RedisHistory(link, queue.prefix)
    # It only publishes: nothing is followed here.
    options = _redis_options(queue)
    publisher = RedisQueue(name, names, link, keys, options, history.finish, instruments)
    endings = Endings(link, keys, options.retain_ms, history.finish)
    return Desk(
        link,
        Chat(publisher, history, names),
        RedisOperator(name, link, keys, endings, queue.lease),
        RedisDeadLetters(link, keys),
    )


def _process_name() -> str:
    """Tells this process from all others, on all machines and at all times."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


def _settle(history: History, meter: Meter) -> Callable[[Sequence[Response]], Awaitable[None]]:
    """What becomes of responses that end in the queue, where no worker stores and counts them."""

    async def settle(responses: Sequence[Response]) -> None:
        await history.finish(responses)
        for response in responses:
            seconds = time.time() - response.created_at
            meter.response_ended(response.model, response.status, seconds)

    return settle


def _queue_limits(queue: conf.Queue) -> QueueLimits:
    return QueueLimits(
        retain_s=queue.retain,
        max_pending=queue.max_pending,
        max_age_s=queue.max_age,
        max_attempts=queue.max_attempts,
    )


def _redis_options(queue: conf.Queue) -> RedisQueueOptions:
    return RedisQueueOptions(
        retain_s=queue.retain,
        max_pending=queue.max_pending,
        max_age_s=queue.max_age,
        max_attempts=queue.max_attempts,
        lease_s=queue.lease,
    )


def _manager_limits(session: conf.Session) -> ManagerLimits:
    return ManagerLimits(
        session.max_connections,
        session.max_connections_per_ip,
        cancel_on_disconnect=session.on_disconnect == "cancel",
        grace_s=session.grace,
    )


def _generator(model: conf.Model) -> Generator:
    match model:
        case conf.EchoModel(options=echo):
            return EchoGenerator(echo.chunks, echo.interval, echo.slots)
        case conf.LlamaCppModel(options=llama):
            return LlamaCppGenerator(LlamaCppOptions(**dict(llama)))
