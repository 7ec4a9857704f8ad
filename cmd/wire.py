"""Builds a server from its settings. The only place that knows the concrete classes."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiohttp import web

from internal.biz.chat import Chat
from internal.biz.flusher import Flusher
from internal.biz.heartbeat import Heartbeat
from internal.biz.models import Response
from internal.biz.ports import Generator, History, Meter
from internal.biz.session import SessionLimits
from internal.biz.session_manager import ManagerLimits, SessionManager
from internal.biz.worker import Worker
from internal.conf import settings as conf
from internal.data.memory_history import MemoryHistory
from internal.data.memory_queue import MemoryQueue, QueueLimits
from internal.generator.echo import EchoGenerator
from internal.generator.llamacpp import LlamaCppGenerator, LlamaCppOptions
from internal.metrics.instruments import Instruments
from internal.metrics.loop_lag import watch_loop_lag
from internal.server.app import App, AppOptions
from internal.server.readiness import Readiness
from internal.server.websocket import WebSocketServer


@dataclass(frozen=True, slots=True)
class Sluice:
    """Everything that runs in one process; `cmd.server` gives it an address and a life."""

    application: web.Application
    sessions: SessionManager
    readiness: Readiness
    queue: MemoryQueue
    workers: list[Worker]
    instruments: Instruments

    async def work(self, progress: Callable[[str, float], None]) -> None:
        """Run the workers and the housekeeping until cancelled. `progress` is told (model, 0 to 1)."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.queue.run())
            tasks.create_task(watch_loop_lag(self.instruments.loop_lag))
            for worker in self.workers:
                tasks.create_task(worker.run(functools.partial(progress, worker.model)))


def build(settings: conf.Settings) -> Sluice:
    """Must be called on the event loop that will run it."""
    loop = asyncio.get_running_loop()
    names = [model.name for model in settings.models]
    instruments = Instruments()
    history = MemoryHistory()
    queue = MemoryQueue(_queue_limits(settings.queue), _settle(history, instruments))
    workers = [
        Worker(model.name, _generator(model), queue, history, instruments) for model in settings.models
    ]
    for name in names:
        instruments.watch_queue(name, functools.partial(queue.depth, name))
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
    readiness = Readiness(names)
    options = AppOptions(settings.server.allowed_origins, settings.server.http.timeout)
    app = App(chat, websockets, readiness, instruments, options)
    return Sluice(app.build(), sessions, readiness, queue, workers, instruments)


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


def _manager_limits(session: conf.Session) -> ManagerLimits:
    return ManagerLimits(
        session.max_connections,
        session.max_connections_per_ip,
        cancel_on_disconnect=session.on_disconnect == "cancel",
        grace_s=session.grace,
    )


def _generator(model: conf.EchoModel | conf.LlamaCppModel) -> Generator:
    match model:
        case conf.EchoModel(options=echo):
            return EchoGenerator(echo.chunks, echo.interval, echo.slots)
        case conf.LlamaCppModel(options=llama):
            return LlamaCppGenerator(LlamaCppOptions(**dict(llama)))
