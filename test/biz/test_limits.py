"""What a budget is, and who an address counts as."""

import pytest

from internal.biz.errors import RateLimited, TooManyRequests
from internal.biz.limits import (
    Bucket,
    Budget,
    Limits,
    NoLimits,
    login_buckets,
    password_bucket,
    request_buckets,
    site_of,
    tightest,
    token_buckets,
    too_many_in_flight,
)
from internal.biz.models import Caller

ALL = Limits(user_requests=60, user_tokens=600, user_in_flight=2, address_requests=120, address_tokens=1200)
ADA = Caller("ada", "192.0.2.1", is_guest=False)


def test_nothing_is_limited_until_it_is_configured() -> None:
    assert request_buckets(Limits(), ADA) == []
    assert token_buckets(Limits(), ADA) == []
    assert not Limits().keep_places


def test_logins_are_limited_always() -> None:
    assert [bucket.per_minute for bucket in login_buckets(Limits(), "ada", "192.0.2.1")] == [100, 10]
    assert password_bucket(Limits(), "user_1") == Bucket("logins", "user:user_1", 10)


def test_a_request_is_its_users_and_its_addresss() -> None:
    assert [bucket.key for bucket in request_buckets(ALL, ADA)] == [
        "requests:user:ada",
        "requests:address:192.0.2.1",
    ]
    assert [bucket.per_minute for bucket in token_buckets(ALL, ADA)] == [600, 1200]


def test_who_has_no_address_is_only_a_user() -> None:
    nowhere = Caller("ada")
    assert [bucket.key for bucket in request_buckets(ALL, nowhere)] == ["requests:user:ada"]
    assert [bucket.key for bucket in token_buckets(ALL, nowhere)] == ["tokens:user:ada"]
    assert [bucket.per_minute for bucket in login_buckets(ALL, "ada", "")] == [10]


@pytest.mark.parametrize(
    "limits", [Limits(user_in_flight=1), Limits(user_tokens=1), Limits(address_tokens=1)]
)
def test_what_has_to_be_settled_is_remembered(limits: Limits) -> None:
    assert limits.keep_places


def test_the_key_of_a_name_does_not_tell_it_and_ignores_its_case() -> None:
    (ada, _), (same, _) = login_buckets(Limits(), "Ada", "::1"), login_buckets(Limits(), "aDA", "::1")
    assert ada == same
    assert "ada" not in ada.key.lower().removeprefix("logins:name:")
    (long, _) = login_buckets(Limits(), "x" * 100_000 + "\ud800", "::1")
    assert len(long.key) == len(ada.key)


@pytest.mark.parametrize(
    ("debt_s", "remaining"), [(0.0, 10), (5.9, 9), (6.0, 9), (6.1, 8), (54.0, 1), (59.0, 0), (90.0, 0)]
)
def test_what_remains_of_a_budget(debt_s: float, remaining: int) -> None:
    bucket = Bucket("requests", "user:ada", 10)
    assert bucket.budget(debt_s) == Budget(10, remaining, debt_s)


def test_a_refusal_says_when_one_has_come_in() -> None:
    error = Bucket("requests", "user:ada", 10).refusal(56.5)
    assert isinstance(error, RateLimited)
    assert (error.limit, error.remaining, error.reset_s) == (10, 0, 56.5)
    assert error.retry_after_s == pytest.approx(2.5)
    assert error.message == "you may have 10 requests a minute; try again in 3 s"
    assert (error.code, error.retryable) == ("rate_limit_exceeded", True)


@pytest.mark.parametrize(
    ("bucket", "words"),
    [
        (Bucket("tokens", "user:ada", 7), "you may have 7 generated tokens a minute"),
        (Bucket("requests", "address:::1", 7), "your address may have 7 requests a minute"),
        (Bucket("logins", "name:abc", 7), "this name may have 7 tries with a password a minute"),
    ],
)
def test_a_refusal_says_whose_budget_of_what_is_spent(bucket: Bucket, words: str) -> None:
    assert bucket.refusal(60.0).message.startswith(words)


def test_the_tightest_budget_is_the_one_to_tell() -> None:
    user, address = request_buckets(ALL, ADA)
    assert tightest([user, address], [0.0, 0.0]) == Budget(60, 60, 0.0)
    assert tightest([user, address], [0.0, 59.0]) == Budget(120, 2, 59.0)
    assert tightest([], []) is None


def test_too_many_in_flight_is_no_question_of_time() -> None:
    error = too_many_in_flight(2)
    assert isinstance(error, TooManyRequests)
    assert not isinstance(error, RateLimited)
    assert error.code == "too_many_in_flight"


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("a pipe", "a pipe"),
        ("x" * 1000, "x" * 64),
    ],
)
def test_who_an_address_counts_as(address: str, site: str) -> None:
    assert site_of(address) == site


async def test_no_limits_let_everything_pass() -> None:
    limiter = NoLimits()
    assert await limiter.admit(ADA, "resp_1") is None
    assert await limiter.spend(ADA) is None
    await limiter.settle([])
    await limiter.attempt_login("ada", "::1")
    await limiter.attempt_password("user_1")
