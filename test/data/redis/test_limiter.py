"""The limiter on Redis when Redis is away, and what it leaves there."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import redis

from internal.biz.errors import RateLimited, TooManyRequests
from internal.biz.limits import Limits
from internal.biz.models import Caller, Request, Response, Settings, Status, Usage
from internal.data.redis import limiter as limiter_module
from internal.data.redis import link as link_module
from internal.data.redis.keys import Keys
from internal.data.redis.limiter import RedisLimiter
from internal.data.redis.link import RedisLink

if TYPE_CHECKING:
    from test.conftest import Eventually, OwnRedis

ADA = Caller("ada", "192.0.2.1", is_guest=False)
LIMITS = Limits(user_requests=3, user_tokens=100, user_in_flight=2, address_requests=9, address_tokens=900)


class Meter:
    def __init__(self) -> None:
        self.failures = 0

    def redis_error(self) -> None:
        return

    def limiter_failed(self) -> None:
        self.failures += 1


@asynccontextmanager
async def opened(url: str, prefix: str, limits: Limits, meter: Meter) -> AsyncIterator[RedisLimiter]:
    link = RedisLink(url, f"{prefix}:tick:limiter", meter)
    limiter = RedisLimiter(link, Keys(prefix), limits, meter)
    running = asyncio.create_task(link.run())
    await link.wait_heard()
    yield limiter
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def ended(response_id: str, tokens: int) -> Response:
    request = Request(response_id, "m", "ada", 0.0, (), Settings())
    return Response.of(request, Status.COMPLETED, usage=Usage(output_tokens=tokens))


@pytest.fixture
def look(redis_url: str, redis_prefix: str) -> Callable[[], dict[str, int]]:
    """The keys that there are, and in how many milliseconds they expire."""

    def keys() -> dict[str, int]:
        with redis.Redis.from_url(redis_url) as client:
            found: Any = list(client.scan_iter(f"*{redis_prefix}*", count=1000))
            ttls: Any = [client.pttl(key) for key in found]
            return {
                key.decode().removeprefix(f"{{{redis_prefix}}}:limits:"): ttl
                for key, ttl in zip(found, ttls, strict=True)
            }

    return keys


async def test_what_is_kept_expires_by_itself(
    redis_url: str, redis_prefix: str, look: Callable[[], dict[str, int]]
) -> None:
    async with opened(redis_url, redis_prefix, LIMITS, Meter()) as limiter:
        await limiter.admit(ADA, "r1")
        kept = look()
        assert set(kept) == {
            "full_at:requests:user:ada",
            "full_at:requests:address:192.0.2.1",
            "in_flight:ada",
            "admitted:r1",
        }
        assert 0 < kept["full_at:requests:user:ada"] <= 20_000
        assert 3_590_000 < kept["in_flight:ada"] <= 3_600_000
        assert 3_590_000 < kept["admitted:r1"] <= 3_600_000
        await limiter.settle([ended("r1", 50)])
        kept = look()
        assert set(kept) == {
            "full_at:requests:user:ada",
            "full_at:requests:address:192.0.2.1",
            "full_at:tokens:user:ada",
            "full_at:tokens:address:192.0.2.1",
        }
        assert 25_000 < kept["full_at:tokens:user:ada"] <= 30_000
        await limiter.attempt_login("Ada", "192.0.2.1")
        kept = look()
        assert len(kept) == 6
        assert not [key for key, ttl in kept.items() if ttl <= 0]
        assert not [key for key in kept if "Ada" in key]


async def test_a_place_that_nobody_gives_back_runs_out_beside_others(
    redis_url: str, redis_prefix: str
) -> None:
    async with opened(redis_url, redis_prefix, LIMITS, Meter()) as limiter:
        await limiter.admit(ADA, "r1")
        await limiter.admit(ADA, "r2")
        with redis.Redis.from_url(redis_url) as client:
            client.zadd(f"{{{redis_prefix}}}:limits:in_flight:ada", {"r1": 1})
        await limiter.admit(ADA, "r3")


async def test_where_nothing_is_limited_redis_is_not_asked(
    redis_url: str, redis_prefix: str, look: Callable[[], dict[str, int]]
) -> None:
    async with opened(redis_url, redis_prefix, Limits(), Meter()) as limiter:
        await limiter.admit(ADA, "r1")
        await limiter.settle([ended("r1", 5)])
        assert look() == {}


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
async def own(
    watched_loop: None, own_redis: "OwnRedis", meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RedisLimiter]:
    """On a Redis of the test's own."""
    monkeypatch.setattr(link_module, "PROBE_INTERVAL_S", 0.02)
    async with opened(own_redis.url, "own", LIMITS, meter) as limiter:
        yield limiter


async def test_requests_pass_while_redis_is_away(
    own: RedisLimiter, own_redis: "OwnRedis", meter: Meter
) -> None:
    await own.admit(ADA, "r0")
    assert meter.failures == 0
    await own_redis.stop()
    for number in range(1, 11):
        assert await own.admit(ADA, f"r{number}") is None
        assert meter.failures == number


async def test_logins_are_still_counted_while_redis_is_away(
    own: RedisLimiter, own_redis: "OwnRedis", meter: Meter
) -> None:
    await own_redis.stop()
    for _ in range(10):
        await own.attempt_login("ada", "192.0.2.1")
    with pytest.raises(RateLimited):
        await own.attempt_login("ada", "192.0.2.1")
    assert meter.failures == 11


async def test_what_ended_while_redis_was_away_is_settled_when_it_is_back(
    own: RedisLimiter, own_redis: "OwnRedis", meter: Meter, eventually: "Eventually"
) -> None:
    await own.admit(ADA, "r1")
    await own.admit(ADA, "r2")
    with pytest.raises(TooManyRequests):
        await own.admit(ADA, "r3")
    await own_redis.stop()
    await own.settle([ended("r1", 30), ended("r2", 80)])
    assert meter.failures == 1
    await own_redis.start()

    async def tokens_are_spent() -> bool:
        try:
            await own.admit(ADA, "r3")
        except RateLimited as error:
            return error.limit == 100
        except TooManyRequests:
            return False
        return False

    await eventually(tokens_are_spent)
    await own.settle([ended("r3", 1)])
    assert not own._unsettled


async def test_there_is_an_end_to_what_waits_to_be_settled(
    own: RedisLimiter, own_redis: "OwnRedis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiter_module, "MAX_UNSETTLED", 10)
    await own_redis.stop()
    for number in range(30):
        await own.settle([ended(f"r{number}", 1)])
    assert list(own._unsettled) == [f"r{number}" for number in range(20, 30)]
