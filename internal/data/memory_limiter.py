"""Budgets in the memory of one process.

Bounds: a budget that is full again is forgotten; of more than `max_kept` others, and of as many responses
that were never settled, the oldest are.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from internal.biz.limits import (
    PLACE_S,
    WINDOW_S,
    Bucket,
    Budget,
    Limits,
    login_buckets,
    password_bucket,
    payer_of,
    request_buckets,
    require_possible,
    tightest,
    token_buckets,
    too_many_in_flight,
)
from internal.biz.models import Caller, Response

_ROUNDING_S = 1e-6
_LOOK_AT = 2
"""Entries that are looked at for each that is written: so they do not pile up, and nobody has to sweep."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A response that may run, who counts for it, and what its tokens are taken from."""

    payer: str
    until_s: float
    pays: Sequence[Bucket]


class MemoryLimiter:
    """Implements Limiter."""

    def __init__(
        self, limits: Limits, clock: Callable[[], float] = time.monotonic, max_kept: int = 100_000
    ) -> None:
        """`clock` tells seconds, and never goes back."""
        self._limits = limits
        self._clock = clock
        self._max_kept = max_kept
        # Ordered: of a plain dict that loses its first entries, the first one takes long to find.
        self._full_at_s: OrderedDict[str, float] = OrderedDict()
        """When a budget is full again; those that were not written or looked at for longest stand first."""
        self._places: OrderedDict[str, _Place] = OrderedDict()
        """By response, in the order of their deadlines."""
        self._in_flight: Counter[str] = Counter()

    async def admit(self, caller: Caller, *response_ids: str) -> Budget | None:
        now_s, limit, count = self._clock(), self._limits.user_in_flight, len(response_ids)
        takes, pays = request_buckets(self._limits, caller), token_buckets(self._limits, caller)
        require_possible(takes, limit, count)
        self._require([*((bucket, count) for bucket in takes), *((bucket, 1) for bucket in pays)], now_s)
        while self._places and next(iter(self._places.values())).until_s <= now_s:
            self._leave(next(iter(self._places)))
        payer = payer_of(caller)
        if limit and self._in_flight[payer] + count > limit:
            raise too_many_in_flight(limit)
        for bucket in takes:
            self._take(bucket, count, now_s)
        if limit or pays:
            for response_id in response_ids:
                self._enter(response_id, _Place(payer, now_s + PLACE_S, pays))
        told = takes or pays
        return tightest(told, [self._debt_s(bucket, now_s) for bucket in told])

    async def spend(self, caller: Caller) -> Budget | None:
        buckets, now_s = request_buckets(self._limits, caller), self._clock()
        self._take_one(buckets, now_s)
        return tightest(buckets, [self._debt_s(bucket, now_s) for bucket in buckets])

    async def settle(self, responses: Sequence[Response]) -> None:
        now_s = self._clock()
        for response in responses:
            place = self._leave(response.id)
            if place is not None and response.usage is not None:
                for bucket in place.pays:
                    self._take(bucket, response.usage.output_tokens, now_s)

    async def attempt_login(self, username: str, address: str) -> None:
        self._take_one(login_buckets(self._limits, username, address), self._clock())

    async def attempt_password(self, user_id: str) -> None:
        self._take_one([password_bucket(self._limits, user_id)], self._clock())

    # ── budgets ──────────────────────────────────────────────────────────────────────────────────

    def _debt_s(self, bucket: Bucket, now_s: float) -> float:
        return max(0.0, self._full_at_s.get(bucket.key, now_s) - now_s)

    def _require(self, buckets: Sequence[tuple[Bucket, int]], now_s: float) -> None:
        """Raise RateLimited, by the one that takes longest, unless each holds at least so many."""
        short = []
        for bucket, count in buckets:
            debt_s = self._debt_s(bucket, now_s)
            full_s = debt_s + count * bucket.unit_s
            if full_s > WINDOW_S + _ROUNDING_S:
                short.append((full_s, bucket.refusal(debt_s, count)))
        if short:
            raise max(short, key=lambda one: one[0])[1]

    def _take_one(self, buckets: Sequence[Bucket], now_s: float) -> None:
        """From each of them, or from none."""
        self._require([(bucket, 1) for bucket in buckets], now_s)
        for bucket in buckets:
            self._take(bucket, 1, now_s)

    def _take(self, bucket: Bucket, amount: int, now_s: float) -> None:
        key = bucket.key
        debt_s = self._debt_s(bucket, now_s) + amount * bucket.unit_s
        self._full_at_s.pop(key, None)
        for _ in range(min(_LOOK_AT, len(self._full_at_s))):
            oldest, full_at_s = self._full_at_s.popitem(last=False)
            if full_at_s > now_s:
                self._full_at_s[oldest] = full_at_s
        if debt_s:
            self._full_at_s[key] = now_s + debt_s
        if len(self._full_at_s) > self._max_kept:
            self._full_at_s.popitem(last=False)

    # ── places ───────────────────────────────────────────────────────────────────────────────────

    def _enter(self, response_id: str, place: _Place) -> None:
        self._leave(response_id)
        self._places[response_id] = place
        self._in_flight[place.payer] += 1
        if len(self._places) > self._max_kept:
            self._leave(next(iter(self._places)))

    def _leave(self, response_id: str) -> _Place | None:
        place = self._places.pop(response_id, None)
        if place is not None:
            self._in_flight[place.payer] -= 1
            if not self._in_flight[place.payer]:
                del self._in_flight[place.payer]
        return place
