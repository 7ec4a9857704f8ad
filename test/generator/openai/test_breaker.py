"""When a node is left alone, and when it is tried again."""

import pytest

from internal.generator.openai.breaker import Breaker


class Time:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def breaker(time: Time) -> Breaker:
    return Breaker("node", 3, 10.0, time)


def fail(breaker: Breaker, times: int = 3) -> None:
    for _ in range(times):
        breaker.failed(is_probe=breaker.enter())


def test_it_opens_after_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.admits
    fail(breaker, 1)
    assert not breaker.admits
    assert breaker.wait_s == 10


def test_after_a_while_one_may_probe(breaker: Breaker, time: Time) -> None:
    fail(breaker)
    time.now_s += 9.9
    assert not breaker.admits
    time.now_s += 0.1
    assert breaker.admits
    assert breaker.enter()
    assert not breaker.admits


def test_the_first_token_of_a_probe_closes_it(breaker: Breaker, time: Time) -> None:
    fail(breaker)
    time.now_s += 10
    assert breaker.enter()
    breaker.answered()
    assert breaker.is_closed
    assert not breaker.enter()
    fail(breaker, 2)
    assert breaker.is_closed


def test_a_probe_that_fails_opens_it_again(breaker: Breaker, time: Time) -> None:
    fail(breaker)
    time.now_s += 10
    fail(breaker, 1)
    assert not breaker.admits
    time.now_s += 10
    assert breaker.admits


def test_a_probe_that_is_given_up_leaves_its_place_to_another(breaker: Breaker, time: Time) -> None:
    fail(breaker)
    time.now_s += 10
    breaker.left(is_probe=breaker.enter())
    assert breaker.admits
    assert not breaker.is_closed


def test_who_began_before_it_opened_does_not_keep_it_open(breaker: Breaker, time: Time) -> None:
    stragglers = [breaker.enter() for _ in range(2)]
    fail(breaker)
    time.now_s += 9
    for straggler in stragglers:
        breaker.failed(is_probe=straggler)
    breaker.succeeded()
    time.now_s += 1
    assert breaker.admits


def test_who_always_breaks_in_the_middle_is_found_out(breaker: Breaker, time: Time) -> None:
    for _ in range(3):
        breaker.failed(is_probe=breaker.enter())
    time.now_s += 10
    for _ in range(3):
        if breaker.enter():
            breaker.answered()
        breaker.failed(is_probe=False)
    assert not breaker.admits
