"""What every limiter promises: all or nothing, tokens afterwards, places that are given back once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import InvalidRequest, RateLimited, TooManyRequests
from internal.biz.limits import Budget, Limiter, Limits
from internal.biz.models import Caller, Request, Response, Settings, Status, Usage
from internal.data.memory_limiter import MemoryLimiter
from internal.data.redis.keys import Keys
from internal.data.redis.limiter import RedisLimiter
from internal.metrics.instruments import Instruments

if TYPE_CHECKING:
    from test.conftest import Eventually
    from test.contract.conftest import Implementation

ADA = Caller("ada", "192.0.2.1", is_guest=False)
BEA = Caller("bea", "192.0.2.1", is_guest=False)
"""A guest, of the same address."""
ADA_AWAY = Caller("ada", "2001:db8::1", is_guest=False)
FAST = 60_000
"""A minute: one comes in each millisecond."""

Open = Callable[[Limits], Awaitable["Limiter"]]


class TwoProcesses:
    """A limiter as two processes see it: one admits, another settles, which knows no addresses."""

    def __init__(self, server: Limiter, worker: Limiter) -> None:
        self.admit = server.admit
        self.spend = server.spend
        self.attempt_login = server.attempt_login
        self.attempt_password = server.attempt_password
        self.settle = worker.settle


@asynccontextmanager
async def on_redis(limits: Limits, implementation: "Implementation") -> AsyncIterator[Limiter]:
    links = [implementation.link(str(number)) for number in range(2)]
    limiters = [RedisLimiter(link, Keys(implementation.prefix), limits, Instruments()) for link in links]
    tasks = [asyncio.create_task(link.run()) for link in links]
    for link in links:
        await link.wait_heard()
    yield TwoProcesses(*limiters)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def open_limiter(watched_loop: None, implementation: "Implementation") -> AsyncIterator[Open]:
    async with AsyncExitStack() as opened:

        async def open_it(limits: Limits) -> Limiter:
            if not implementation.url:
                return MemoryLimiter(limits)
            return await opened.enter_async_context(on_redis(limits, implementation))

        yield open_it


def ended(*response_ids: str, tokens: int | None = None) -> list[Response]:
    usage = None if tokens is None else Usage(input_tokens=7, output_tokens=tokens)
    requests = [Request(one, "m", "whoever", 0.0, (), Settings()) for one in response_ids]
    return [Response.of(request, Status.COMPLETED, usage=usage) for request in requests]


async def refusal(limiter: Limiter, caller: Caller, response_id: str = "refused") -> RateLimited:
    with pytest.raises(RateLimited) as refused:
        await limiter.admit(caller, response_id)
    return refused.value


async def passes(limiter: Limiter, response_id: str) -> bool:
    """Whether a request of Ada's does."""
    try:
        await limiter.admit(ADA, response_id)
    except TooManyRequests:
        return False
    return True


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


async def test_nothing_is_limited_that_is_not_configured(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits())
    for number in range(100):
        assert await limiter.admit(ADA, f"r{number}") is None
    await limiter.settle(ended("r1", "unknown", tokens=1_000_000))
    assert await limiter.admit(ADA, "r100") is None


@pytest.mark.cluster
async def test_a_user_has_so_many_requests(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_requests=3))
    left = [await limiter.admit(ADA, f"r{number}") for number in range(3)]
    assert [(budget.limit, budget.remaining) for budget in left if budget] == [(3, 2), (3, 1), (3, 0)]
    assert left[0] is not None
    assert left[0].reset_s == pytest.approx(20, abs=2)
    error = await refusal(limiter, ADA)
    assert (error.limit, error.remaining) == (3, 0)
    assert error.reset_s == pytest.approx(60, abs=5)
    assert error.retry_after_s == pytest.approx(20, abs=5)
    assert "3 requests a minute" in error.message
    await refusal(limiter, ADA_AWAY)
    assert await limiter.admit(BEA, "r4") is not None


async def test_an_address_has_so_many_requests_of_all_its_users(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(address_requests=2))
    assert await limiter.admit(ADA, "r1") is not None
    assert await limiter.admit(BEA, "r2") is not None
    assert "your address" in (await refusal(limiter, ADA)).message
    assert await limiter.admit(ADA_AWAY, "r3") is not None


async def test_neighbours_in_an_ipv6_network_are_one_address(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(address_requests=1))
    await limiter.admit(Caller("a", "2001:db8::1"), "r1")
    await refusal(limiter, Caller("b", "2001:db8::2"))
    await limiter.admit(Caller("c", "2001:db8:0:1::1"), "r2")


async def test_who_has_no_address_is_not_limited_by_it(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(address_requests=1))
    for number in range(3):
        assert await limiter.admit(Caller("ada"), f"r{number}") is None


async def test_what_is_refused_takes_nothing(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_requests=2, address_requests=3, user_in_flight=9))
    await limiter.admit(ADA, "r1")
    await limiter.admit(ADA, "r2")
    for _ in range(5):
        await refusal(limiter, ADA)
    # Of the address one is left, whoever was refused.
    budget = await limiter.admit(BEA, "r3")
    assert budget is not None
    assert (budget.limit, budget.remaining) == (3, 0)
    # And the other way round: the address refuses, the user keeps theirs.
    await refusal(limiter, BEA)
    budget = await limiter.admit(replace(BEA, address="198.51.100.1"), "r4")
    assert budget is not None
    assert (budget.limit, budget.remaining) == (2, 0)


async def test_the_budget_told_is_the_one_of_which_least_is_left(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_requests=5, address_requests=4, user_tokens=1))
    budget = await limiter.admit(ADA, "r1")
    assert budget is not None
    assert (budget.limit, budget.remaining) == (4, 3)


@pytest.mark.parametrize(("tokens", "seconds"), [(10, 60), (100, 546)])
async def test_the_budget_that_takes_longest_refuses(open_limiter: Open, tokens: int, seconds: float) -> None:
    limiter = await open_limiter(Limits(user_requests=1, user_tokens=10, address_requests=9))
    await limiter.admit(ADA, "r1")
    await limiter.settle(ended("r1", tokens=tokens))
    error = await refusal(limiter, ADA)
    assert error.limit == (1 if seconds == 60 else 10)
    assert error.retry_after_s == pytest.approx(seconds, abs=5)


async def test_budgets_fill_up_again(open_limiter: Open, eventually: "Eventually") -> None:
    limiter = await open_limiter(Limits(user_requests=FAST, user_tokens=FAST))
    await limiter.admit(ADA, "r1")
    await limiter.settle(ended("r1", tokens=FAST + 300))
    error = await refusal(limiter, ADA)
    assert error.retry_after_s <= 0.301
    await eventually(lambda: passes(limiter, "r2"))


async def test_many_at_once_get_no_more_than_there_is(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_requests=10, user_in_flight=100))
    tries = [limiter.admit(ADA, f"r{number}") for number in range(50)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(result, Budget) for result in results) == 10
    assert sum(isinstance(result, RateLimited) for result in results) == 40


@pytest.mark.cluster
async def test_what_asks_no_model_takes_a_request_and_no_place(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_requests=4, address_requests=9, user_tokens=5, user_in_flight=1))
    left = [await limiter.spend(ADA) for _ in range(2)]
    assert [(budget.limit, budget.remaining) for budget in left if budget] == [(4, 3), (4, 2)]
    budget = await limiter.admit(ADA, "r1")
    assert budget is not None
    assert budget.remaining == 1
    await limiter.spend(ADA)  # with the only place taken
    with pytest.raises(RateLimited, match="you may have 4 requests a minute"):
        await limiter.spend(ADA)
    await limiter.spend(BEA)


async def test_what_asks_no_model_needs_no_tokens(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_tokens=5))
    await limiter.admit(ADA, "r1")
    await limiter.settle(ended("r1", tokens=100))
    await refusal(limiter, ADA)
    assert await limiter.spend(ADA) is None


async def test_what_is_not_limited_may_be_spent(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits())
    assert await limiter.spend(ADA) is None


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.cluster
async def test_tokens_are_taken_when_an_answer_has_ended(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_tokens=100, user_in_flight=9))
    first = await limiter.admit(ADA, "r1")
    assert first == Budget(100, 100, 0.0)
    await limiter.settle(ended("r1", tokens=40))
    second = await limiter.admit(ADA, "r2")
    assert second is not None
    assert second.remaining in range(60, 70)
    await limiter.settle(ended("r2", tokens=160))
    error = await refusal(limiter, ADA)
    assert (error.limit, error.remaining) == (100, 0)
    assert error.retry_after_s == pytest.approx(60, abs=5)
    assert "100 generated tokens a minute" in error.message
    await limiter.admit(BEA, "r3")


async def test_the_tokens_of_an_address_are_taken_where_it_is_not_known(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(address_tokens=100))
    await limiter.admit(ADA, "r1")
    await limiter.settle(ended("r1", tokens=100))
    assert "your address" in (await refusal(limiter, BEA)).message
    await limiter.admit(ADA_AWAY, "r2")


async def test_an_answer_is_paid_once(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_tokens=100))
    await limiter.admit(ADA, "r1")
    for _ in range(3):
        await limiter.settle(ended("r1", tokens=30))
    budget = await limiter.admit(ADA, "r2")
    assert budget is not None
    assert budget.remaining in range(70, 80)


async def test_what_was_not_admitted_is_not_paid(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_tokens=100))
    await limiter.settle(ended("stranger", tokens=1000))
    assert await limiter.admit(Caller("whoever"), "r1") == Budget(100, 100, 0.0)


async def test_an_answer_without_words_costs_nothing(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_tokens=100))
    await limiter.admit(ADA, "r1")
    await limiter.admit(ADA, "r2")
    await limiter.settle([*ended("r1"), *ended("r2", tokens=0)])
    assert await limiter.admit(ADA, "r3") == Budget(100, 100, 0.0)


# ── places ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.cluster
async def test_a_user_has_so_many_places(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_in_flight=2))
    assert await limiter.admit(ADA, "r1") is None
    await limiter.admit(ADA_AWAY, "r2")
    with pytest.raises(TooManyRequests) as refused:
        await limiter.admit(ADA, "r3")
    assert not isinstance(refused.value, RateLimited)
    assert refused.value.code == "too_many_in_flight"
    await limiter.admit(BEA, "r4")
    await limiter.settle(ended("r1"))
    await limiter.admit(ADA, "r5")


async def test_a_place_is_given_back_once(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_in_flight=2))
    await limiter.admit(ADA, "r1")
    await limiter.admit(ADA, "r2")
    for _ in range(3):
        await limiter.settle(ended("r1", "r1", "unknown"))
    await limiter.admit(ADA, "r3")
    with pytest.raises(TooManyRequests):
        await limiter.admit(ADA, "r4")


async def test_a_response_has_one_place_however_often_it_is_admitted(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_in_flight=2))
    await limiter.admit(ADA, "r1")
    await limiter.admit(ADA, "r1")
    await limiter.admit(ADA, "r2")
    with pytest.raises(TooManyRequests):
        await limiter.admit(ADA, "r3")


async def test_who_gets_no_place_keeps_the_request(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_requests=2, user_in_flight=1))
    await limiter.admit(ADA, "r1")
    for number in range(3):
        with pytest.raises(TooManyRequests, match="at a time"):
            await limiter.admit(ADA, f"again{number}")
    await limiter.settle(ended("r1"))
    assert await limiter.admit(ADA, "r2") is not None


async def test_a_place_runs_out_and_is_not_paid_for_afterwards(
    open_limiter: Open, monkeypatch: pytest.MonkeyPatch, eventually: "Eventually"
) -> None:
    for module in ("internal.data.memory_limiter", "internal.data.redis.limiter"):
        monkeypatch.setattr(f"{module}.PLACE_S", 0.05)
    limiter = await open_limiter(Limits(user_in_flight=1, user_tokens=10))
    await limiter.admit(ADA, "r1")
    await eventually(lambda: passes(limiter, "r2"))
    await limiter.settle(ended("r1", tokens=1000))
    await eventually(lambda: passes(limiter, "r3"))


# ── logins ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.cluster
async def test_a_name_may_be_tried_so_often(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(login_attempts=2))
    for number in range(20):
        await limiter.attempt_login("Ada", f"192.0.2.{number}")
    with pytest.raises(RateLimited, match="this name") as refused:
        await limiter.attempt_login("ada", "192.0.2.99")
    assert refused.value.retry_after_s == pytest.approx(3, abs=2)
    await limiter.attempt_login("bea", "192.0.2.99")


async def test_one_address_shuts_nobody_out(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(login_attempts=3))
    for _ in range(3):
        await limiter.attempt_login("ada", "192.0.2.66")
    for _ in range(30):
        with pytest.raises(RateLimited, match="your address"):
            await limiter.attempt_login("ada", "192.0.2.66")
    await limiter.attempt_login("ada", "192.0.2.1")


@pytest.mark.cluster
async def test_who_is_logged_in_proves_a_password_apart_from_all_logins(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(login_attempts=1, user_requests=1))
    await limiter.attempt_login("ada", "")
    await limiter.admit(ADA, "r1")
    await limiter.attempt_password("ada")
    with pytest.raises(RateLimited, match="you may have 1 tries with a password a minute"):
        await limiter.attempt_password("ada")
    await limiter.attempt_password("bea")


async def test_an_address_may_try_so_often(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(login_attempts=3))
    for number in range(3):
        await limiter.attempt_login(f"user{number}", f"2001:db8::{number}")
    for _ in range(5):
        with pytest.raises(RateLimited, match="your address"):
            await limiter.attempt_login("victim", "2001:db8::ffff")
    # Whom it tried in vain is not shut out by that.
    await limiter.attempt_login("victim", "192.0.2.1")


async def test_those_who_have_no_name_yet_are_no_one_name(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(login_attempts=1))
    for number in range(3):
        await limiter.attempt_login("", f"192.0.2.{number}")
    with pytest.raises(RateLimited, match="your address"):
        await limiter.attempt_login("", "192.0.2.0")
    await limiter.attempt_login("", "")
    await limiter.attempt_login("ada", "")
    with pytest.raises(RateLimited, match="this name"):
        await limiter.attempt_login("ada", "")


async def test_logins_and_requests_are_counted_apart(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_requests=1, address_requests=1, login_attempts=1))
    await limiter.attempt_login("ada", ADA.address)
    await limiter.admit(ADA, "r1")


async def test_guests_count_by_where_they_come_from(open_limiter: Open) -> None:
    """To be another guest costs nothing."""
    limiter = await open_limiter(Limits(user_requests=2, user_in_flight=2))
    await limiter.admit(Caller("guest_1", "192.0.2.1"), "r1")
    await limiter.admit(Caller("guest_2", "192.0.2.1"), "r2")
    with pytest.raises(TooManyRequests):
        await limiter.admit(Caller("guest_3", "192.0.2.1"), "r3")
    await limiter.admit(Caller("guest_3", "192.0.2.2"), "r3")
    await limiter.admit(ADA, "r4")


# ── several at once ──────────────────────────────────────────────────────────────────────────────


async def test_several_responses_take_a_request_each_or_none_does(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_requests=5))
    budget = await limiter.admit(ADA, "r1", "r2", "r3")
    assert budget is not None
    assert budget.remaining == 2
    with pytest.raises(RateLimited) as refused:
        await limiter.admit(ADA, "r4", "r5", "r6")
    assert refused.value.retry_after_s == pytest.approx(12, abs=1)
    budget = await limiter.admit(ADA, "r7", "r8")
    assert budget is not None
    assert budget.remaining == 0


async def test_several_responses_take_a_place_each_or_none_does(open_limiter: Open) -> None:
    limiter = await open_limiter(Limits(user_in_flight=3))
    await limiter.admit(ADA, "r1", "r2")
    with pytest.raises(TooManyRequests) as refused:
        await limiter.admit(ADA, "r3", "r4")
    assert refused.value.code == "too_many_in_flight"
    await limiter.admit(ADA, "r3")
    await limiter.settle(ended("r1", "r2"))
    await limiter.admit(ADA, "r4", "r5")


@pytest.mark.parametrize("limits", [Limits(user_requests=2), Limits(user_in_flight=2)])
async def test_more_at_once_than_ever_could_be_is_not_to_be_tried_again(
    open_limiter: Open, limits: Limits
) -> None:
    limiter = await open_limiter(limits)
    with pytest.raises(InvalidRequest) as refused:
        await limiter.admit(ADA, "r1", "r2", "r3")
    assert refused.value.code == "too_many_models"
    assert not refused.value.retryable
    await limiter.admit(ADA, "r1", "r2")
