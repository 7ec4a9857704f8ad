"""Finds peers that are gone: pings every connection, drops those that do not answer.

One timer for all connections, because one each would cost 100,000 timers; every connection has the same
interval, so a queue in order of arrival is a queue in order of time.
"""

import asyncio
from collections import deque
from typing import Protocol


class Pingable(Protocol):
    closed: bool
    unanswered_ping: int
    """Number of the ping that waits for its pong; 0 when none does. A pong resets it."""

    def ping(self) -> bool:
        """Send a ping, unless the peer does not even take what was sent before (False)."""

    def lost(self) -> None:
        """The peer did not answer."""


class Heartbeat:
    """Pings each member every `interval_s`, and calls `lost` `timeout_s` after an unanswered ping.

    An interval of 0 switches it off, a timeout of 0 waits for ever. Neither `ping` nor `lost` may raise.
    Bound: two entries for each connection that was open within the last interval.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, interval_s: float, timeout_s: float) -> None:
        self._loop = loop
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._pings: deque[tuple[float, Pingable]] = deque()
        self._pongs: deque[tuple[float, Pingable, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._count = 0

    def add(self, member: Pingable) -> None:
        if self._interval_s:
            self._pings.append((self._loop.time() + self._interval_s, member))
            self._arm()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pings.clear()
        self._pongs.clear()

    def _arm(self) -> None:
        if self._timer is None and (heads := [queue[0][0] for queue in (self._pings, self._pongs) if queue]):
            self._timer = self._loop.call_at(min(heads), self._beat)

    def _beat(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._pongs and self._pongs[0][0] <= now:
            _, member, number = self._pongs.popleft()
            if not member.closed and member.unanswered_ping == number:
                member.lost()
        while self._pings and self._pings[0][0] <= now:
            _, member = self._pings.popleft()
            if member.closed:
                continue
            if not member.unanswered_ping and member.ping():
                self._count += 1
                member.unanswered_ping = self._count
                if self._timeout_s:
                    self._pongs.append((now + self._timeout_s, member, self._count))
            self._pings.append((now + self._interval_s, member))
        self._arm()
