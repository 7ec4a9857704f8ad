"""Budgets in Redis, shared by all servers and workers.

    {p}:limits:full_at:BUDGET     string  when it is full again, ms by the clock of Redis; none: it is full
    {p}:limits:in_flight:USER     zset    a user's responses, by when they are taken to have ended unnoticed
    {p}:limits:admitted:RESPONSE  hash    its user, and the budgets that its tokens are taken from

A request takes from budgets of its user and of its address, from all or from none, so one script has to see
them together: all limits share the hash tag `{p}`, and on a cluster one node keeps them. That is one short
script for a request and one for the responses that end together, where an answer costs hundreds: no node will
feel it.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from internal.biz.errors import Unavailable
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
from internal.data.memory_limiter import MemoryLimiter
from internal.data.redis.keys import Keys
from internal.data.redis.link import RedisLink

MAX_UNSETTLED = 10_000
"""Responses that ended while Redis was away and are settled when it is back; of more the oldest keep their
places until those run out."""
_ADMITTED, _IN_FLIGHT = 0, -1


class LimiterMeter(Protocol):
    def limiter_failed(self) -> None: ...


class RedisLimiter:
    """Implements Limiter. While Redis is away requests pass, and tries with passwords are counted in this
    process alone."""

    def __init__(self, link: RedisLink, keys: Keys, limits: Limits, meter: LimiterMeter) -> None:
        self._link = link
        self._base = keys.limits
        self._limits = limits
        self._meter = meter
        self._alone = MemoryLimiter(limits)
        self._unsettled: dict[str, int] = {}
        """Tokens by response, from when it ends until Redis knows."""
        link.on_up.append(self._settle_again)

    async def admit(self, caller: Caller, *response_ids: str) -> Budget | None:
        takes, pays = request_buckets(self._limits, caller), token_buckets(self._limits, caller)
        require_possible(takes, self._limits.user_in_flight, len(response_ids))
        if not takes and not pays and not self._limits.user_in_flight:
            return None
        try:
            debts_s = await self._take(takes, pays, response_ids, payer_of(caller))
        except Unavailable:
            self._meter.limiter_failed()
            return None
        told = takes or pays
        return tightest(told, debts_s[: len(told)])

    async def spend(self, caller: Caller) -> Budget | None:
        if not (buckets := request_buckets(self._limits, caller)):
            return None
        try:
            return tightest(buckets, await self._take(buckets))
        except Unavailable:
            self._meter.limiter_failed()
            return None

    async def attempt_login(self, username: str, address: str) -> None:
        try:
            await self._take(login_buckets(self._limits, username, address))
        except Unavailable:
            self._meter.limiter_failed()
            await self._alone.attempt_login(username, address)

    async def attempt_password(self, user_id: str) -> None:
        try:
            await self._take([password_bucket(self._limits, user_id)])
        except Unavailable:
            self._meter.limiter_failed()
            await self._alone.attempt_password(user_id)

    async def _take(
        self,
        takes: Sequence[Bucket],
        pays: Sequence[Bucket] = (),
        response_ids: Sequence[str] = (),
        user: str = "",
    ) -> list[float]:
        """Take one for each response from each of `takes`; without responses, one. Returns the debts of all
        budgets, those that were taken from first.

        Raises RateLimited, TooManyRequests, or Unavailable; then it may have been taken all the same.
        """
        in_flight, buckets = self._limits.user_in_flight if response_ids else 0, [*takes, *pays]
        arguments: list[object] = [
            ",".join(response_ids),
            user,
            in_flight,
            int(PLACE_S * 1000),
            int(WINDOW_S * 1000),
        ]
        for number, bucket in enumerate(buckets):
            arguments += (bucket.key, bucket.unit_s * 1000, int(number < len(takes)))
        verdict, *debts_ms = await self._link.call("admit", self._base, *arguments)
        debts_s = [float(debt_ms) / 1000 for debt_ms in debts_ms]
        if verdict == _IN_FLIGHT:
            raise too_many_in_flight(in_flight)
        if verdict != _ADMITTED:
            count = max(1, len(response_ids)) if verdict <= len(takes) else 1
            raise buckets[verdict - 1].refusal(debts_s[verdict - 1], count)
        return debts_s

    async def settle(self, responses: Sequence[Response]) -> None:
        tokens = {
            response.id: response.usage.output_tokens if response.usage else 0 for response in responses
        }
        if not self._limits.keep_places or not tokens:
            return
        self._unsettled |= tokens
        while len(self._unsettled) > MAX_UNSETTLED:
            del self._unsettled[next(iter(self._unsettled))]
        batch = dict(self._unsettled)
        try:
            await self._link.call("settle", self._base, *_flat(batch))
        except Unavailable:
            self._meter.limiter_failed()
            return
        for response_id in batch:
            self._unsettled.pop(response_id, None)

    def _settle_again(self) -> None:
        """Nobody waits for it: what is lost on the way is sent with the next that ends."""
        if self._unsettled:
            self._link.post("settle", self._base, *_flat(self._unsettled))


def _flat(tokens: Mapping[str, int]) -> list[str | int]:
    return [word for pair in tokens.items() for word in pair]
