"""What an HTTP answer says about budgets. Times are whole seconds from now, rounded up."""

import math

from internal.biz.errors import RateLimited, SluiceError
from internal.biz.limits import Budget


def budget_headers(budget: Budget | None) -> dict[str, str]:
    """Of an answer to a request that was admitted with this budget."""
    return {} if budget is None else _headers(budget.limit, budget.remaining, budget.reset_s)


def refusal_headers(error: SluiceError) -> dict[str, str]:
    """Of an answer that is an error; none unless a budget is spent."""
    if not isinstance(error, RateLimited):
        return {}
    # Source: RFC 9110 §10.2.3. At least 1: a client that is told 0 asks again at once.
    retry_after = str(max(1, math.ceil(error.retry_after_s)))
    return {"Retry-After": retry_after, **_headers(error.limit, error.remaining, error.reset_s)}


def _headers(limit: int, remaining: int, reset_s: float) -> dict[str, str]:
    return {
        "X-RateLimit-Limit": str(limit),
        "X-RateLimit-Remaining": str(remaining),
        "X-RateLimit-Reset": str(math.ceil(reset_s)),
    }
