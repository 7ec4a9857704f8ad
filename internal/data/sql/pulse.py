"""Notices that a database has fallen silent: it keeps its connections, and answers nobody.

Knows time, not SQL.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

LATE_S = 0.5
"""A timer that comes later than this says more about us than about the database."""


class Pulse:
    """Judges by all questions together: that one takes long says nothing while others are answered."""

    def __init__(self, silence_s: float, doubt: Callable[[], None], fell_silent: Callable[[], None]) -> None:
        """Silent is who has answered nothing for `silence_s` (0: nobody is) although asked. Half way `doubt`
        is called, to ask what takes no time: the others may only take long, or wait for each other."""
        self.is_silent = False
        self._silence_s = silence_s
        self._doubt = doubt
        self._fell_silent = fell_silent
        self._asking: set[asyncio.Timeout] = set()
        self._heard_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Around a question. Raises TimeoutError when the database falls silent meanwhile; while it is, one
        at a time asks it, and all others get that error at once."""
        if not self._silence_s:
            yield
            return
        if self.is_silent and self._asking:
            raise TimeoutError("it does not answer")
        async with asyncio.timeout(None) as deadline:
            if not self._asking:
                self._heard_at_s = time.monotonic()
            self._asking.add(deadline)
            if self._timer is None:
                self._arm(self._silence_s / 2)
            try:
                yield
            finally:
                self._asking.discard(deadline)
        self._heard_at_s = time.monotonic()
        self.is_silent = False

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, after_s: float) -> None:
        due_s = self._heard_at_s + after_s
        wait_s = max(0.0, due_s - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look, due_s)

    def _look(self, due_s: float) -> None:
        self._timer = None
        if not self._asking:
            return
        now_s = time.monotonic()
        if now_s > due_s + LATE_S:
            self._heard_at_s = now_s  # it was our process that stood still, and has not read the answers yet
        unheard_s = now_s - self._heard_at_s
        if unheard_s < self._silence_s / 2:
            self._arm(self._silence_s / 2)
            return
        if unheard_s < self._silence_s:
            self._arm(self._silence_s)
            self._doubt()
            return
        self.is_silent = True
        for deadline in self._asking:
            deadline.reschedule(0.0)
        self._asking.clear()
        self._fell_silent()
