"""The one table: what each error is on the wire."""

import pytest

from internal.biz.close import CloseCode
from internal.biz.errors import (
    Conflict,
    ContextLengthExceeded,
    FileTooLarge,
    GenerationFailed,
    InvalidRequest,
    NotFound,
    RateLimited,
    Refused,
    SluiceError,
    TooManyRequests,
    Unavailable,
    UnsupportedFile,
    UnsupportedParameter,
)
from internal.biz.models import Failure
from internal.service.api.chat import failure_error
from internal.service.errors import close_code, error_body, http_status

LIMITED = RateLimited("x", limit=1, remaining=0, reset_s=60.0, retry_after_s=60.0)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("x"), 400, "invalid_request_error"),
        (UnsupportedParameter("x"), 400, "invalid_request_error"),
        (ContextLengthExceeded("x"), 400, "invalid_request_error"),
        (FileTooLarge("x"), 413, "invalid_request_error"),
        (UnsupportedFile("x"), 415, "invalid_request_error"),
        (NotFound("x"), 404, "invalid_request_error"),
        (Conflict("x"), 409, "invalid_request_error"),
        (TooManyRequests("x"), 429, "rate_limit_error"),
        (LIMITED, 429, "rate_limit_error"),
        (Unavailable("x"), 503, "server_error"),
        (GenerationFailed("x"), 500, "server_error"),
        (Refused("x"), 500, "server_error"),
        (SluiceError("x"), 500, "server_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_has_a_status_and_a_type(error: SluiceError, status: int, kind: str) -> None:
    assert http_status(error) == status
    assert error_body(error) == {"message": "x", "type": kind, "param": None, "code": error.code}


def test_a_body_names_the_field() -> None:
    body = error_body(InvalidRequest("no", code="invalid_value", param="input[0].role"))
    assert body["param"] == "input[0].role"
    assert body["code"] == "invalid_value"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("x"), CloseCode.OVERLOADED),
        (Unavailable("x", code="restarting"), CloseCode.RESTART),
        (TooManyRequests("x"), CloseCode.TOO_MANY),
        (LIMITED, CloseCode.TOO_MANY),
        (InvalidRequest("x", code="origin_not_allowed"), CloseCode.FORBIDDEN),
        (NotFound("x", code="model_not_found"), CloseCode.FORBIDDEN),
        (SluiceError("x"), CloseCode.INTERNAL_ERROR),
    ],
)
def test_an_error_that_keeps_a_connection_out_has_a_close_code(error: SluiceError, code: CloseCode) -> None:
    assert close_code(error) is code


def test_a_client_may_retry_exactly_what_the_server_calls_retryable() -> None:
    again = {http_status(error) for error in (Conflict("x"), TooManyRequests("x"), Unavailable("x"))}
    assert again == {409, 429, 503}
    assert all(error.retryable for error in (Conflict, TooManyRequests, Unavailable))
    assert not any(error.retryable for error in (InvalidRequest, NotFound, GenerationFailed, SluiceError))


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("context_length_exceeded", 400),
        ("upstream_rate_limited", 429),
        ("upstream_unavailable", 503),
        ("upstream_timeout", 503),
        ("upstream_failed", 500),
        ("generation_failed", 500),
    ],
)
def test_a_failed_answer_has_a_status_that_says_whether_to_come_again(code: str, status: int) -> None:
    error = failure_error(Failure(code, "so it is"))
    assert (http_status(error), error.code, error.message) == (status, code, "so it is")
