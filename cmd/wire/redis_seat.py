"""What every process needs that works over Redis."""

import os
import re
import secrets
import socket

from cmd.wire import options
from internal.conf import settings as conf
from internal.data.redis.keys import Keys
from internal.data.redis.limiter import RedisLimiter
from internal.data.redis.link import RedisLink
from internal.data.redis.queue import RedisQueueOptions
from internal.metrics.instruments import Instruments


class RedisSeat:
    """A name that no other process has, a link, the limiter; and what is to be with the queue."""

    def __init__(self, settings: conf.Settings, instruments: Instruments) -> None:
        self.options = _options(settings.queue)
        self.name = _process_name()
        self.keys = Keys(settings.queue.prefix)
        url = settings.queue.url.get_secret_value()
        self.link = RedisLink(url, self.keys.tick(self.name), instruments)
        self.limiter = RedisLimiter(self.link, self.keys, options.limits(settings.limits), instruments)


def _options(queue: conf.Queue) -> RedisQueueOptions:
    return RedisQueueOptions(
        retain_s=queue.retain,
        max_pending=queue.max_pending,
        max_age_s=queue.max_age,
        max_attempts=queue.max_attempts,
        lease_s=queue.lease,
    )


def _process_name() -> str:
    """Tells this process from all others, on all machines and at all times."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
