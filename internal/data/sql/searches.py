"""Turns at searching, which is expensive, so that it does not take all of a database from everybody else."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from internal.biz.errors import TooManyRequests, Unavailable

AT_ONCE = 2
MAX_WAITING = 20
MAX_OF_USER = 5
"""Of one user: one that works, and those behind it."""


class Searches:
    """AT_ONCE are under way at a time, of each user one; MAX_WAITING others wait. One per process."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)
        self._users: Counter[str] = Counter()
        self._locks: dict[str, asyncio.Lock] = {}
        """Of those users that are counted."""

    @asynccontextmanager
    async def turn(self, user: str) -> AsyncIterator[None]:
        """Wait for the turn of the user, and have it. Raises TooManyRequests, and Unavailable when too many
        wait already."""
        if self._users[user] >= MAX_OF_USER:
            raise TooManyRequests(
                f"one user may have {MAX_OF_USER} searches at a time; wait for one to end",
                code="too_many_searches",
            )
        if self._users.total() >= AT_ONCE + MAX_WAITING:
            raise Unavailable("there are too many searches at the moment; try again", code="search_busy")
        self._users[user] += 1
        try:
            async with self._locks.setdefault(user, asyncio.Lock()), self._places:
                yield
        finally:
            self._users[user] -= 1
            if not self._users[user]:
                del self._users[user], self._locks[user]
