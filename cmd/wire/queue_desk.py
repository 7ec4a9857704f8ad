"""What an operator works with on a queue on Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from cmd.wire import options
from cmd.wire.redis_seat import RedisSeat
from cmd.wire.settling import settling
from cmd.wire.storage import Storage
from internal.biz.chat import Chat
from internal.biz.limits import NoLimits
from internal.conf import settings as conf
from internal.data.redis.dead_letters import RedisDeadLetters
from internal.data.redis.endings import Endings
from internal.data.redis.link import RedisLink
from internal.data.redis.operator import RedisOperator
from internal.data.redis.queue import RedisQueue
from internal.metrics.instruments import Instruments


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


def build_desk(settings: conf.Settings) -> Desk:
    """What an operator needs. Must be called on the event loop that will run it."""
    instruments, storage = Instruments(), Storage(settings.storage)
    seat, names = RedisSeat(settings, instruments), [model.name for model in settings.models]
    settle = settling(storage.history, seat.limiter)
    # It only publishes: nothing is followed here.
    publisher = RedisQueue(seat.name, names, seat.link, seat.keys, seat.options, settle, instruments)
    endings = Endings(seat.link, seat.keys, seat.options.retain_ms, settle)
    return Desk(
        seat.link,
        storage,
        Chat(publisher, storage.history, NoLimits(), settle, options.chat_rules(settings)),
        RedisOperator(seat.name, seat.link, seat.keys, endings, settings.queue.lease),
        RedisDeadLetters(seat.link, seat.keys),
    )
