"""How one model's queue stands, and who works for it."""

import logging

from pydantic import TypeAdapter, ValidationError

from internal.biz.models import Backlog, WorkerInfo
from internal.data.redis.link import RedisLink

log = logging.getLogger(__name__)

_WORKER = TypeAdapter(WorkerInfo)


async def read_backlog(link: RedisLink, base: str) -> Backlog:
    """Raises Unavailable."""
    waiting, running, oldest_ms, dead = await link.call("backlog", base)
    oldest_s = max(0.0, oldest_ms / 1000) if oldest_ms is not None else 0.0
    return Backlog(waiting, running, oldest_s, dead)


async def read_workers(link: RedisLink, base: str) -> list[WorkerInfo]:
    """Those that live. Raises Unavailable."""
    workers = []
    for info in await link.call("workers", base):
        try:
            workers.append(_WORKER.validate_json(info))
        except ValidationError as error:  # it is of another version of Sluice
            log.debug("a worker cannot be read: %s", error)
    return workers
