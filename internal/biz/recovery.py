"""Ends responses that storage has as running, but that died with the process that had accepted them."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from internal.biz.errors import Unavailable
from internal.biz.models import Failure, Response, Status
from internal.biz.pause import pause
from internal.biz.ports import History, Meter, Queue

log = logging.getLogger(__name__)

AT_ONCE = 500
AGAIN_S = 0.5
"""Between two tries while the storage cannot be reached."""
MAX_LATE = 10_000
"""Ends that are kept until the storage is back. What is more is found later, by looking."""
_LOST = Failure("interrupted", "the server stopped before this answer was complete; ask again")


class Recovery:
    """Looks now and then for responses that nobody works on. One per server; several may look at a time."""

    def __init__(
        self,
        history: History,
        queue: Queue,
        settle: Callable[[Sequence[Response]], Awaitable[None]],
        meter: Meter,
        interval_s: float,
        patience_s: float,
        queue_made_at: float = 0.0,
    ) -> None:
        """`settle` stores how responses ended.

        A response counts as lost when the queue does not know it `patience_s` after it was stored: it is
        stored first and published then. Those that are older than a queue which dies with its process, and
        was made at `queue_made_at` (Unix seconds), are lost at once.
        """
        self._history = history
        self._queue = queue
        self._settle = settle
        self._meter = meter
        self._interval_s = interval_s
        self._patience_s = patience_s
        self._queue_made_at = queue_made_at
        self._late: list[Response] = []
        """What has ended while the storage could not be reached."""
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            pause_s = self._interval_s
            try:
                await self._end_late()
                await self.look()
            except Unavailable as error:
                log.debug("looking again: %s", error.message)
                pause_s = AGAIN_S
            except Exception:  # nobody's answers may end with this
                log.exception("cannot look for interrupted responses")
            self._news.clear()
            await pause(self._news, pause_s)

    async def look(self) -> None:
        """Fail what is lost. Raises Unavailable."""
        before, after_id = max(time.time() - self._patience_s, self._queue_made_at), ""
        while found := await self._history.unfinished(before, after_id, AT_ONCE):
            if lost := await self._queue.unknown(found):
                log.warning("responses were interrupted", extra={"responses": len(lost)})
                await self._fail([replace(one, status=Status.FAILED, failure=_LOST) for one in lost])
            after_id = found[-1].id

    async def _fail(self, lost: Sequence[Response]) -> None:
        await self._settle(lost)
        now = time.time()
        for one in lost:
            self._meter.response_ended(one.model, one.status, now - one.created_at)

    async def end(self, responses: Sequence[Response]) -> None:
        """Store how responses ended that were never published: now, or when the storage is back. It may have
        stored that they began, and their conversations would stay locked until somebody looks."""
        try:
            await self._settle(responses)
        except Unavailable as error:
            log.debug("storing later how responses ended: %s", error.message)
            self._late += responses[: MAX_LATE - len(self._late)]
            self._news.set()

    async def _end_late(self) -> None:
        while some := self._late[:AT_ONCE]:
            await self._settle(some)
            del self._late[: len(some)]
