"""How many connections there may be, in all and from one address: sockets, and requests that wait."""

from collections import Counter

from internal.biz.errors import TooManyRequests, Unavailable
from internal.biz.limits import site_of


class Turnstile:
    """One per process. `max_all` and `max_per_site` (a site is an address, or an IPv6 /64); 0: no limit."""

    def __init__(self, max_all: int = 0, max_per_site: int = 0) -> None:
        self._max_all = max_all
        self._max_per_site = max_per_site
        self._count = 0
        self._per_site: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._count

    def enter(self, address: str) -> None:
        """Count somebody, who has to `leave` again. Raises Unavailable or TooManyRequests."""
        site = self._site(address)
        if self._max_all and self._count >= self._max_all:
            raise Unavailable("the server has as many connections as it takes; try again later")
        if self._max_per_site and self._per_site[site] >= self._max_per_site:
            raise TooManyRequests("too many connections from your address")
        self._count += 1
        self._per_site[site] += 1

    def leave(self, address: str) -> None:
        site = self._site(address)
        self._count -= 1
        self._per_site[site] -= 1
        if not self._per_site[site]:
            del self._per_site[site]

    def _site(self, address: str) -> str:
        """Who an address counts as; where that does not matter, nobody."""
        return site_of(address) if self._max_per_site else ""
