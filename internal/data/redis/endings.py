"""Responses that were taken out of the queue, and ends for those that no worker will end: cancelled while
they waited, too old, or dead letters."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from internal.biz.errors import InvalidRequest
from internal.biz.events import Event
from internal.biz.generation import Delivery, Finished, Transcript
from internal.biz.models import Request, Response, Settings
from internal.data.redis.entries import decode_log, encode, load_request
from internal.data.redis.keys import Keys
from internal.data.redis.link import RedisLink

FINAL = 1
MAY_BE_WRITTEN = 2
SPEAKS = 4
"""Flags of append.lua."""
NOT_AN_EVENT = -1
"""In the place of a number: news that does not stand in the log."""


def append_head(response_id: str, owner: str, number: int, flags: int, count: int) -> bytes:
    """The lines that stand before the entries of a response, for append.lua."""
    return f"{response_id}\n{owner}\n{number}\n{flags}\n{count}".encode()


class Taken:
    """A response that belongs to us now, as the scripts hand it over. What is in it may be undecodable."""

    __slots__ = (
        "attempt",
        "cancelled",
        "deaths",
        "emitted",
        "entries",
        "model",
        "owner",
        "problem",
        "request",
        "response_id",
        "silent",
    )

    def __init__(self, model: str, fields: list[Any]) -> None:
        response_id, attempt, owner, payload, cancelled, silent, entries, *deaths = fields
        self.model = model
        self.response_id: str = response_id.decode()
        self.attempt: int = attempt
        self.owner: str = owner.decode()
        self.cancelled = bool(cancelled)
        self.silent: int = silent
        """Attempts before this one whose worker died and that had said nothing; none of those before that."""
        self.entries: list[bytes] = entries
        self.deaths: int = deaths[0] if deaths else 0
        """How many of its workers have died, when it was taken over from one that has; else 0."""
        self.problem: InvalidRequest | None = None
        self.request = Request(self.response_id, model, "", time.time(), (), Settings())
        self.emitted: tuple[Event, ...] = ()
        try:
            self.request = load_request(payload)
            self.emitted = decode_log(self.request, entries)
        except InvalidRequest as error:
            self.problem = error

    def require_readable(self) -> None:
        """Raises InvalidRequest when the request or its log cannot be decoded."""
        if self.problem is not None:
            raise self.problem


class Endings:
    """Writes the last events in the place of a worker."""

    def __init__(
        self,
        link: RedisLink,
        keys: Keys,
        retain_ms: int,
        settle: Callable[[Sequence[Response]], Awaitable[None]],
    ) -> None:
        """`settle` stores how responses ended."""
        self._link = link
        self._keys = keys
        self._retain_ms = retain_ms
        self._settle = settle

    async def end(self, taken: Taken, end: Finished) -> None:
        """End a response that is ours.

        Raises Unavailable; then its lease runs out, and a worker or a server ends it later.
        """
        last = Transcript(Delivery(taken.request, taken.attempt, taken.emitted, None))
        last.number = len(taken.entries)
        response = last.finish(end)
        await self._settle([response])
        lines = [append_head(taken.response_id, taken.owner, last.number, FINAL, len(last.events))]
        lines += map(encode, last.events)
        base, step = self._keys.base(taken.model), b"\n".join(lines)
        await self._link.call("append", base, self._keys.nodes, self._retain_ms, step)
