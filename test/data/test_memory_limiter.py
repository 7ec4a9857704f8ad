"""What the limiter in memory promises beyond the port: it counts exactly, and it forgets."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.biz.errors import RateLimited, TooManyRequests
from internal.biz.limits import PLACE_S, WINDOW_S, Limits
from internal.biz.models import Caller, Request, Response, Settings, Status, Usage
from internal.data.memory_limiter import MemoryLimiter

ADA = Caller("ada", "192.0.2.1", is_guest=False)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1e6

    def __call__(self) -> float:
        return self.now_s


def ended(response_id: str, tokens: int) -> Response:
    request = Request(response_id, "m", "ada", 0.0, (), Settings())
    return Response.of(request, Status.COMPLETED, usage=Usage(output_tokens=tokens))


async def admitted(limiter: MemoryLimiter, caller: Caller = ADA, response_id: str = "r") -> bool:
    try:
        await limiter.admit(caller, response_id)
    except TooManyRequests:
        return False
    return True


@given(
    limit=st.integers(1, 100),
    steps=st.lists(st.tuples(st.floats(0, 90), st.integers(0, 30)), max_size=20),
)
def test_never_admits_more_than_a_burst_and_what_came_in(limit: int, steps: list[tuple[float, int]]) -> None:
    async def run() -> None:
        clock = Clock()
        start_s = clock.now_s
        limiter = MemoryLimiter(Limits(user_requests=limit), clock)
        passed = 0
        for wait_s, tries in steps:
            clock.now_s += wait_s
            for _ in range(tries):
                before = passed
                passed += await admitted(limiter)
                if passed == before:
                    break
            elapsed_s = clock.now_s - start_s
            assert passed <= limit + limit * elapsed_s / WINDOW_S + 0.01

    asyncio.run(run())


@given(
    limit=st.integers(1, 1000),
    answers=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 5000)), max_size=20),
)
def test_tokens_are_never_forgotten_before_they_are_paid(
    limit: int, answers: list[tuple[float, int]]
) -> None:
    async def run() -> None:
        clock = Clock()
        start_s = clock.now_s
        limiter = MemoryLimiter(Limits(user_tokens=limit), clock)
        spent = 0
        for wait_s, tokens in answers:
            clock.now_s += wait_s
            came_in = limit * (clock.now_s - start_s) / WINDOW_S
            if await admitted(limiter):
                assert spent <= limit + came_in
                await limiter.settle([ended("r", tokens)])
                spent += tokens

    asyncio.run(run())


async def test_a_minute_brings_a_minutes_worth() -> None:
    clock = Clock()
    limiter = MemoryLimiter(Limits(user_requests=3), clock)
    for _ in range(3):
        assert await admitted(limiter)
    assert not await admitted(limiter)
    clock.now_s += 19.99
    assert not await admitted(limiter)
    clock.now_s += 0.01
    assert await admitted(limiter)
    clock.now_s += 3600
    assert [await admitted(limiter) for _ in range(4)] == [True, True, True, False]


async def test_a_refusal_tells_the_second_at_which_it_passes() -> None:
    clock = Clock()
    limiter = MemoryLimiter(Limits(user_requests=1, address_requests=2), clock)
    await limiter.admit(ADA, "r1")
    clock.now_s += 10
    with pytest.raises(RateLimited) as refused:
        await limiter.admit(ADA, "r2")
    assert refused.value.retry_after_s == pytest.approx(50)
    clock.now_s += refused.value.retry_after_s
    assert await admitted(limiter)


async def test_full_budgets_are_forgotten() -> None:
    clock = Clock()
    limiter = MemoryLimiter(Limits(user_requests=60, address_requests=60), clock)
    for number in range(2000):
        await limiter.admit(Caller(f"user{number}", f"10.0.{number // 256}.{number % 256}"), "r")
        clock.now_s += 0.1  # each is full again after a second
    assert len(limiter._full_at_s) < 100


async def test_there_is_an_end_to_what_is_remembered() -> None:
    limiter = MemoryLimiter(Limits(user_requests=1, user_in_flight=1), Clock(), max_kept=100)
    for number in range(300):
        await limiter.admit(Caller(f"user{number}"), f"r{number}")
    assert len(limiter._full_at_s) == 100
    assert len(limiter._places) == len(limiter._in_flight) == 100


async def test_a_place_that_nobody_gives_back_runs_out() -> None:
    clock = Clock()
    limiter = MemoryLimiter(Limits(user_in_flight=1), clock)
    assert await admitted(limiter, response_id="r1")
    clock.now_s += PLACE_S - 1
    assert not await admitted(limiter, response_id="r2")
    clock.now_s += 1
    assert await admitted(limiter, response_id="r2")
    await limiter.settle([ended("r1", 5)])
    assert not await admitted(limiter, response_id="r3")


async def test_nothing_is_remembered_where_nothing_is_limited() -> None:
    limiter = MemoryLimiter(Limits())
    assert await limiter.admit(ADA, "r") is None
    assert not limiter._full_at_s
    assert not limiter._places
