"""The headers that tell budgets."""

import pytest

from internal.biz.errors import RateLimited, TooManyRequests
from internal.biz.limits import Budget
from internal.service.rate_limit import budget_headers, refusal_headers


def limited(retry_after_s: float) -> RateLimited:
    return RateLimited("x", limit=60, remaining=0, reset_s=59.01, retry_after_s=retry_after_s)


def test_an_answer_says_what_is_left() -> None:
    assert budget_headers(Budget(60, 59, 0.2)) == {
        "X-RateLimit-Limit": "60",
        "X-RateLimit-Remaining": "59",
        "X-RateLimit-Reset": "1",
    }


def test_an_answer_without_a_budget_says_nothing() -> None:
    assert budget_headers(None) == {}


@pytest.mark.parametrize(("seconds", "told"), [(0.0, "1"), (0.3, "1"), (1.0, "1"), (1.01, "2"), (90.0, "90")])
def test_a_refusal_says_when_to_come_back(seconds: float, told: str) -> None:
    assert refusal_headers(limited(seconds)) == {
        "Retry-After": told,
        "X-RateLimit-Limit": "60",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": "60",
    }


def test_other_errors_say_nothing() -> None:
    assert refusal_headers(TooManyRequests("x")) == {}
