"""How much a user and an address may ask for: budgets of requests, of generated tokens and of logins.

A budget holds what may be taken in a minute, and fills up within a minute, evenly. All that has to be known
of one is its *debt*, how many seconds it needs to be full again: who owes nothing need not be remembered.
Where the debts are kept, and that several budgets are taken from at once or not at all, is the adapters'
business.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Literal, Protocol

from internal.biz.errors import InvalidRequest, RateLimited, TooManyRequests
from internal.biz.models import Caller, Response

WINDOW_S = 60.0
"""A budget is full after so long, and holds what comes in during it."""
PLACE_S = 3600.0
"""A response that was not settled for so long is taken to have ended unnoticed: its process was killed."""
NAME_FACTOR = 10
"""So one address cannot keep the others from logging in with a name, nor can a few."""
SITE_BITS = 64
"""What an IPv6 customer has at least: who changes the rest of an address is still the same."""

Unit = Literal["requests", "tokens", "logins"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How many requests and generated tokens a minute a user and an address may have, how many responses of a
    user may wait or run at a time (each 0: no limit), and how often a minute a password may be tried from an
    address (at least 1); for a name, from all addresses together, NAME_FACTOR times as often."""

    user_requests: int = 0
    user_tokens: int = 0
    user_in_flight: int = 0
    address_requests: int = 0
    address_tokens: int = 0
    login_attempts: int = 10

    @property
    def keep_places(self) -> bool:
        """Whether anything has to be remembered of a response until it is settled."""
        return bool(self.user_in_flight or self.user_tokens or self.address_tokens)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a caller has left of the budget that is nearest to its end: of their requests, or of tokens where
    requests are not limited. `remaining` of `limit`, and all of it again after `reset_s` seconds."""

    limit: int
    remaining: int
    reset_s: float


class Limiter(Protocol):
    """Budgets of users and addresses. Where they cannot be looked up, everything passes."""

    async def admit(self, caller: Caller, *response_ids: str) -> Budget | None:
        """Take one request for each response from the budgets of the caller, and a place among the responses
        that they may have running. Returns what is left, None when there is no budget.

        Raises RateLimited or TooManyRequests, and then takes nothing, and InvalidRequest for more than ever
        can be had at once. Who admits a response settles it, also when it is never published. Cancelled, it
        may have been admitted.
        """

    async def spend(self, caller: Caller) -> Budget | None:
        """Take one request from the budgets of the caller, for what no model is asked. Returns what is left,
        None when there is no budget. Raises RateLimited, and then takes nothing."""

    async def settle(self, responses: Sequence[Response]) -> None:
        """Responses have ended: give their places back, and take the tokens that they generated.

        Idempotent, and harmless for what was not admitted. Does not raise.
        """

    async def attempt_login(self, username: str, address: str) -> None:
        """Count one try to log in, before the password is looked at. Raises RateLimited."""

    async def attempt_password(self, user_id: str) -> None:
        """Count one try of somebody who is logged in to show that they know the password: apart from logins,
        so that strangers do not get in their way. Raises RateLimited."""


class NoLimits:
    """Implements Limiter, for who answers to nobody: tests, and an operator's desk."""

    async def admit(self, caller: Caller, *response_ids: str) -> Budget | None:
        return None

    async def spend(self, caller: Caller) -> Budget | None:
        return None

    async def settle(self, responses: Sequence[Response]) -> None:
        return

    async def attempt_login(self, username: str, address: str) -> None:
        return

    async def attempt_password(self, user_id: str) -> None:
        return


@dataclass(frozen=True, slots=True)
class Bucket:
    """One budget: of what, whose, how much a minute. `whose` is a kind of owner and which, as `user:ID`."""

    unit: Unit
    whose: str
    per_minute: int

    @property
    def key(self) -> str:
        return f"{self.unit}:{self.whose}"

    @property
    def unit_s(self) -> float:
        """How long it takes for one to come in."""
        return WINDOW_S / self.per_minute

    def remaining(self, debt_s: float) -> int:
        """What is left of it. Less than nothing, after a long answer, is nothing."""
        # 0.01 of one: so much may be lost where the debt is the difference of two times.
        return max(0, math.floor((WINDOW_S - debt_s) / self.unit_s + 0.01))

    def budget(self, debt_s: float) -> Budget:
        return Budget(self.per_minute, self.remaining(debt_s), debt_s)

    def refusal(self, debt_s: float, count: int = 1) -> RateLimited:
        """Why there are not even so many left."""
        retry_after_s = max(0.0, debt_s + count * self.unit_s - WINDOW_S)
        wait_s = max(1, math.ceil(retry_after_s))
        kind = self.whose.partition(":")[0]
        whose = {"user": "you", "address": "your address", "name": "this name"}[kind]
        what = {"requests": "requests", "tokens": "generated tokens", "logins": "tries with a password"}
        return RateLimited(
            f"{whose} may have {self.per_minute} {what[self.unit]} a minute; try again in {wait_s} s",
            limit=self.per_minute,
            remaining=self.remaining(debt_s),
            reset_s=debt_s,
            retry_after_s=retry_after_s,
        )


def payer_of(caller: Caller) -> str:
    """Who a caller counts as: a user as themselves, guests by where they come from, since to be another guest
    costs nothing."""
    return f"guest@{site_of(caller.address)}" if caller.is_guest and caller.address else caller.user


def request_buckets(limits: Limits, caller: Caller) -> list[Bucket]:
    """What a request of the caller takes one from."""
    user = Bucket("requests", f"user:{payer_of(caller)}", limits.user_requests)
    return _set([user, *_of_address("requests", caller.address, limits.address_requests)])


def token_buckets(limits: Limits, caller: Caller) -> list[Bucket]:
    """What has to hold a token when a request of the caller begins, and pays for its answer later."""
    user = Bucket("tokens", f"user:{payer_of(caller)}", limits.user_tokens)
    return _set([user, *_of_address("tokens", caller.address, limits.address_tokens)])


def login_buckets(limits: Limits, username: str, address: str) -> list[Bucket]:
    """What a try to log in takes one from; nothing for a name or an address that is empty, as the name is of
    who registers. Names are hashed: they may be long, and are nobody's business."""
    buckets = _of_address("logins", address, limits.login_attempts)
    if username:
        name = hashlib.sha256(username.lower().encode(errors="replace")).hexdigest()[:32]
        # What one address may do with a name is bounded by what it may do at all, where there is one.
        factor = NAME_FACTOR if address else 1
        buckets.insert(0, Bucket("logins", f"name:{name}", factor * limits.login_attempts))
    return buckets


def password_bucket(limits: Limits, user_id: str) -> Bucket:
    """What a try to prove the password of one's own account takes one from."""
    return Bucket("logins", f"user:{user_id}", limits.login_attempts)


def _of_address(unit: Unit, address: str, per_minute: int) -> list[Bucket]:
    """Nothing for a Unix socket, which has none: all who come through it would be one."""
    return [Bucket(unit, f"address:{site_of(address)}", per_minute)] if address and per_minute else []


def _set(buckets: list[Bucket]) -> list[Bucket]:
    return [bucket for bucket in buckets if bucket.per_minute]


def tightest(buckets: Sequence[Bucket], debts_s: Sequence[float]) -> Budget | None:
    """The budget of which least is left. `debts_s` are those of the buckets, in their order."""
    budgets = (bucket.budget(debt_s) for bucket, debt_s in zip(buckets, debts_s, strict=True))
    return min(budgets, key=lambda budget: budget.remaining, default=None)


def require_possible(takes: Sequence[Bucket], in_flight: int, count: int) -> None:
    """Raises InvalidRequest for more responses at once than ever could be admitted, however long somebody
    waits. `in_flight`: how many may run (0: no limit)."""
    most = min([bucket.per_minute for bucket in takes] + [in_flight or count])
    if count > most:
        raise InvalidRequest(
            f"this asks {count} models at once, and you may ask {most}", code="too_many_models", param="model"
        )


def too_many_in_flight(limit: int) -> TooManyRequests:
    return TooManyRequests(
        f"at most {limit} of your responses may wait or run at a time; wait for one to end",
        code="too_many_in_flight",
    )


@functools.lru_cache(maxsize=4096)
def site_of(address: str) -> str:
    """Who an address counts as: itself, for IPv6 its /64. What is no address counts as it stands."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address[:64]
    if not isinstance(ip, IPv6Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(IPv6Network((int(ip), SITE_BITS), strict=False))
