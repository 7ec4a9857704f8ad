"""Who is counted together, and what happens when there are too many."""

import pytest

from internal.biz.errors import TooManyRequests, Unavailable
from internal.biz.turnstile import Turnstile


def test_no_more_come_in_than_may_be_there() -> None:
    turnstile = Turnstile(max_all=2)
    turnstile.enter("192.0.2.1")
    turnstile.enter("192.0.2.2")
    with pytest.raises(Unavailable):
        turnstile.enter("192.0.2.3")
    turnstile.leave("192.0.2.1")
    turnstile.enter("192.0.2.3")
    assert len(turnstile) == 2


@pytest.mark.parametrize("neighbour", ["2001:db8::1", "2001:db8::2"])
def test_those_from_one_address_or_network_are_counted_together(neighbour: str) -> None:
    turnstile = Turnstile(max_per_site=1)
    turnstile.enter("2001:db8::1")
    for _ in range(2):
        with pytest.raises(TooManyRequests):
            turnstile.enter(neighbour)
    turnstile.enter("2001:db8:0:1::1")
    turnstile.leave("2001:db8::1")
    turnstile.enter(neighbour)


def test_without_limits_all_come_in() -> None:
    turnstile = Turnstile()
    for _ in range(1000):
        turnstile.enter("192.0.2.1")
    assert len(turnstile) == 1000
