"""The queue, and what stands behind it: in memory with the workers in this process, or on Redis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cmd.wire import options
from cmd.wire.settling import Settle, metered, settling
from cmd.wire.workers import workers
from internal.biz.limits import Limiter
from internal.biz.own_upstreams import OwnUpstreams
from internal.biz.ports import History, Queue
from internal.biz.worker import Worker
from internal.conf import settings as conf
from internal.data.memory_limiter import MemoryLimiter
from internal.data.memory_queue import MemoryQueue
from internal.metrics.instruments import Instruments

if TYPE_CHECKING:
    from internal.data.redis.link import RedisLink


class Service(Protocol):
    """Something that works in the background until it is cancelled."""

    async def run(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """A server's side of the queue. `services` keep it going; `workers` are those of this process."""

    queue: Queue
    limiter: Limiter
    settle: Settle
    services: Sequence[Service]
    workers: Sequence[Worker] = ()
    link: "RedisLink | None" = None


def backend(
    settings: conf.Settings, history: History, upstreams: OwnUpstreams | None, instruments: Instruments
) -> Backend:
    """What the settings ask for."""
    if settings.queue.driver == "redis":
        return _on_redis(settings, history, instruments)
    return _in_memory(settings, history, upstreams, instruments)


def _in_memory(
    settings: conf.Settings, history: History, upstreams: OwnUpstreams | None, instruments: Instruments
) -> Backend:
    limiter = MemoryLimiter(options.limits(settings.limits))
    settle = settling(history, limiter)
    queue = MemoryQueue(options.queue_limits(settings.queue), metered(settle, instruments))
    crew = workers(settings.models, settings, queue, history, settle, instruments, upstreams)
    return Backend(queue, limiter, settle, [queue], crew)


def _on_redis(settings: conf.Settings, history: History, instruments: Instruments) -> Backend:
    from cmd.wire.redis_seat import RedisSeat
    from internal.data.redis.queue import RedisQueue

    seat = RedisSeat(settings, instruments)
    settle = settling(history, seat.limiter)
    queue = RedisQueue(
        seat.name,
        [model.name for model in settings.models],
        seat.link,
        seat.keys,
        seat.options,
        metered(settle, instruments),
        instruments,
    )
    return Backend(queue, seat.limiter, settle, [seat.link, queue], link=seat.link)
