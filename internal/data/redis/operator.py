"""What an operator asks about a queue, and does to it, without being a server or a worker."""

import asyncio
import re
from collections.abc import Iterable, Sequence

from internal.biz.errors import GenerationFailed
from internal.biz.generation import Finished, FinishReason
from internal.biz.models import Backlog, WorkerInfo
from internal.data.redis.endings import Endings, Taken
from internal.data.redis.keys import Keys
from internal.data.redis.link import RedisLink
from internal.data.redis.overview import read_backlog, read_workers

AT_ONCE = 100
"""Requests that are taken out of the line together."""
KEYS_AT_ONCE = 1000
EVERYTHING = -1
"""In the place of an age."""


class RedisOperator:
    """Every call raises Unavailable while Redis cannot be reached."""

    def __init__(self, name: str, link: RedisLink, keys: Keys, endings: Endings, lease_s: float) -> None:
        """What `name` takes out of the line and does not end within `lease_s` goes to the workers again."""
        self._name = name
        self._link = link
        self._keys = keys
        self._endings = endings
        self._lease_ms = int(lease_s * 1000)

    async def models(self, known: Iterable[str]) -> list[str]:
        """The known ones, and behind them those that have keys all the same. Looks at all keys that there
        are: a second for each million."""
        # Neither logs nor metas nor lines nor last workers, which may be many.
        pattern = f"{{{self._keys.prefix}:*}}:[^lm]*"
        key = re.compile(
            rf"\{{{re.escape(self._keys.prefix)}:([^{{}}]+)\}}:(?:waiting|running|workers|resting|dead)"
        )
        known = list(known)
        others = set()
        position = None
        while position != 0:
            position, names = await self._link.command(
                "SCAN", position or 0, "MATCH", pattern, "COUNT", KEYS_AT_ONCE
            )
            for name in names:
                if match := key.fullmatch(name.decode(errors="replace")):
                    others.add(match[1])
        return known + sorted(others.difference(known))

    async def backlog(self, model: str) -> Backlog:
        """What a model has to do."""
        return await read_backlog(self._link, self._keys.base(model))

    async def workers(self, model: str) -> Sequence[WorkerInfo]:
        """The workers of a model that live."""
        return await read_workers(self._link, self._keys.base(model))

    async def purge(self, model: str) -> int:
        """End what waits for a model; returns how much it was.

        What comes meanwhile stays: as many are ended as wait at the beginning, the oldest first.
        """
        ended = 0
        removed = GenerationFailed("an operator emptied the queue; ask again", code="purged")
        end = Finished(FinishReason.ERROR, error=removed)
        waiting = (await self.backlog(model)).waiting
        for start in range(0, waiting, AT_ONCE):
            args = (self._name, self._lease_ms, EVERYTHING, min(AT_ONCE, waiting - start))
            found = await self._link.call("withdraw", self._keys.base(model), *args)
            await asyncio.gather(*(self._endings.end(Taken(model, fields), end) for fields in found))
            ended += len(found)
        return ended
