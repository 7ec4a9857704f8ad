"""The queue, and what stands behind it: in memory with the workers in this process, or on Redis."""

import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cmd.wire import options
from cmd.wire.parts import Service
from internal.biz.errors import SluiceError
from internal.biz.limits import Limiter
from internal.biz.models import Response
from internal.biz.ports import History, Meter, Queue
from internal.biz.worker import Worker
from internal.conf import settings as conf
from internal.data.memory_limiter import MemoryLimiter
from internal.data.memory_queue import MemoryQueue
from internal.data.redis.keys import Keys
from internal.data.redis.limiter import RedisLimiter
from internal.data.redis.link import RedisLink
from internal.data.redis.queue import RedisQueue
from internal.metrics.instruments import Instruments

log = logging.getLogger(__name__)

Settle = Callable[[Sequence[Response]], Awaitable[None]]
"""What is done when responses end, before their logs say so."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A server's side of the queue. `services` keep it going; `workers` are those of this process."""

    queue: Queue
    limiter: Limiter
    settle: Settle
    services: Sequence[Service]
    workers: Sequence[Worker] = ()
    link: RedisLink | None = None


def backend(settings: conf.Settings, history: History, instruments: Instruments) -> Backend:
    """What the settings ask for."""
    if settings.queue.driver == "redis":
        return _on_redis(settings, history, instruments)
    return _in_memory(settings, history, instruments)


def _in_memory(settings: conf.Settings, history: History, instruments: Instruments) -> Backend:
    limiter = MemoryLimiter(options.limits(settings.limits))
    settle = settling(history, limiter)
    queue = MemoryQueue(options.queue_limits(settings.queue), metered(settle, instruments))
    workers = [
        Worker(
            model.name,
            options.generator(model, instruments),
            queue,
            history,
            settle,
            instruments,
            options.images(model, settings),
        )
        for model in settings.models
    ]
    return Backend(queue, limiter, settle, [queue], workers)


def _on_redis(settings: conf.Settings, history: History, instruments: Instruments) -> Backend:
    seat = RedisSeat(settings, instruments)
    settle = settling(history, seat.limiter)
    queue = RedisQueue(
        seat.name,
        [model.name for model in settings.models],
        seat.link,
        seat.keys,
        options.redis_options(settings.queue),
        metered(settle, instruments),
        instruments,
    )
    return Backend(queue, seat.limiter, settle, [seat.link, queue], link=seat.link)


class RedisSeat:
    """What every process needs that works over Redis: a name that no other has, a link, the limiter."""

    def __init__(self, settings: conf.Settings, instruments: Instruments) -> None:
        self.name = _process_name()
        self.keys = Keys(settings.queue.prefix)
        url = settings.queue.url.get_secret_value()
        self.link = RedisLink(url, self.keys.tick(self.name), instruments)
        self.limiter = RedisLimiter(self.link, self.keys, options.limits(settings.limits), instruments)


def _process_name() -> str:
    """Tells this process from all others, on all machines and at all times."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


def settling(history: History, limiter: Limiter) -> Settle:
    """Store how they ended, and take what they cost."""

    async def settle(responses: Sequence[Response]) -> None:
        try:
            await history.finish(responses)
        finally:
            # Also when the storage is away: else who is refused for that loses their places as well.
            await limiter.settle(responses)

    return settle


def metered(settle: Settle, meter: Meter) -> Settle:
    """The same for those that no worker ends, who would count them."""

    async def settle_and_count(responses: Sequence[Response]) -> None:
        try:
            await settle(responses)
        except SluiceError:
            raise
        except Exception:  # the queue must go on, and tell those who wait
            log.exception("ends cannot be stored", extra={"responses": len(responses)})
        for response in responses:
            seconds = time.time() - response.created_at
            meter.response_ended(response.model, response.status, seconds)

    return settle_and_count
