"""Whose request is next."""

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from internal.biz.models import Request, Settings
from internal.biz.scheduler import FairScheduler

if TYPE_CHECKING:
    from test.conftest import RequestFactory

USERS = ["ada", "bob", "eve", "joe"]
users = st.sampled_from(USERS)


def request(number: int, user: str, created_at: float = 0.0) -> Request:
    return Request(f"r{number}", "m", user, created_at, (), Settings())


def drained(scheduler: FairScheduler) -> list[Request]:
    popped = []
    while (one := scheduler.pop()) is not None:
        popped.append(one)
    return popped


def positions(scheduler: FairScheduler, requests: list[Request]) -> dict[str, int]:
    return {one.response_id: scheduler.position(one.user, one.response_id) for one in requests}


class SchedulerMachine(RuleBasedStateMachine):
    """Pushes, pops and removals in any order: nothing is lost, nothing is served twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = FairScheduler()
        self.waiting: list[Request] = []
        self.made = 0

    @rule(user=users)
    def push(self, user: str) -> None:
        self.made += 1
        one = request(self.made, user)
        self.scheduler.push(one)
        self.waiting.append(one)

    @rule()
    def pop(self) -> None:
        nexts = [one for one in self.waiting if self.scheduler.position(one.user, one.response_id) == 0]
        popped = self.scheduler.pop()
        assert nexts == ([popped] if popped else [])
        if popped is None:
            assert not self.waiting
        else:
            first = next(one for one in self.waiting if one.user == popped.user)
            assert popped == first
            self.waiting.remove(popped)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.waiting))
        assert self.scheduler.remove(one.user, one.response_id) == one
        assert self.scheduler.remove(one.user, one.response_id) is None
        self.waiting.remove(one)

    @invariant()
    def counts(self) -> None:
        assert len(self.scheduler) == len(self.waiting)

    @invariant()
    def places_differ_and_have_no_gaps(self) -> None:
        assert sorted(positions(self.scheduler, self.waiting).values()) == list(range(len(self.waiting)))

    def teardown(self) -> None:
        foretold = positions(self.scheduler, self.waiting)
        order = drained(self.scheduler)
        assert sorted(one.response_id for one in order) == sorted(one.response_id for one in self.waiting)
        assert {one.response_id: place for place, one in enumerate(order)} == foretold


TestSchedulerMachine = SchedulerMachine.TestCase


@given(st.lists(users, max_size=30), st.integers(0, 10))
def test_a_position_is_the_number_of_requests_served_before(pushed: list[str], popped: int) -> None:
    scheduler = FairScheduler()
    for number, user in enumerate(pushed):
        scheduler.push(request(number, user))
    waiting = [request(number, user) for number, user in enumerate(pushed)]
    for _ in range(popped):
        if (one := scheduler.pop()) is not None:
            waiting.remove(one)
    foretold = positions(scheduler, waiting)
    assert {one.response_id: place for place, one in enumerate(drained(scheduler))} == foretold


@given(st.lists(users, min_size=1, max_size=30))
def test_nobody_is_served_twice_while_another_waits_for_a_first_turn(pushed: list[str]) -> None:
    scheduler = FairScheduler()
    for number, user in enumerate(pushed):
        scheduler.push(request(number, user))
    turns = [one.user for one in drained(scheduler)]
    others = len(set(pushed))
    assert len(set(turns[:others])) == others


def test_a_hundred_requests_delay_another_user_by_one_turn(make_request: "RequestFactory") -> None:
    scheduler = FairScheduler()
    for _ in range(100):
        scheduler.push(make_request(user="greedy"))
    modest = make_request(user="modest")
    scheduler.push(modest)
    assert scheduler.position("modest", modest.response_id) == 1
    assert modest in (scheduler.pop(), scheduler.pop())


def test_who_does_not_wait_has_position_zero() -> None:
    scheduler = FairScheduler()
    scheduler.push(request(1, "ada"))
    assert scheduler.position("ada", "r2") == 0
    assert scheduler.position("bob", "r1") == 0
    assert scheduler.remove("bob", "r1") is None
    assert scheduler.remove("ada", "r2") is None
    assert len(scheduler) == 1


@given(st.lists(st.tuples(users, st.floats(0, 100)), max_size=20), st.floats(0, 100))
def test_all_requests_that_are_too_old_expire_and_stay_in_line(
    pushed: list[tuple[str, float]], created_before: float
) -> None:
    scheduler = FairScheduler()
    made = [request(number, user, at) for number, (user, at) in enumerate(pushed)]
    for one in made:
        scheduler.push(one)
    old = [one.response_id for one in made if one.created_at < created_before]
    assert sorted(one.response_id for one in scheduler.expired(created_before)) == sorted(old)
    assert len(scheduler) == len(made)
