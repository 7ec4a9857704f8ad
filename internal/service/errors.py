"""The one table that says how an error of `biz` looks on the wire."""

from internal.biz.close import CloseCode
from internal.biz.errors import (
    Conflict,
    FileTooLarge,
    Forbidden,
    InvalidRequest,
    NotFound,
    SluiceError,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    UnsupportedFile,
)


class TooLarge(InvalidRequest):
    """A body of more bytes than are read."""

    default_code = "request_too_large"


class UnsupportedMediaType(InvalidRequest):
    """A body that is not what is understood here."""

    default_code = "unsupported_media_type"


# (class, HTTP status, error type of the OpenAI API, close code when a connection cannot go on)
_TABLE: tuple[tuple[type[SluiceError], int, str, CloseCode], ...] = (
    (TooLarge, 413, "invalid_request_error", CloseCode.FORBIDDEN),
    (UnsupportedMediaType, 415, "invalid_request_error", CloseCode.FORBIDDEN),
    (FileTooLarge, 413, "invalid_request_error", CloseCode.FORBIDDEN),
    (UnsupportedFile, 415, "invalid_request_error", CloseCode.FORBIDDEN),
    (InvalidRequest, 400, "invalid_request_error", CloseCode.FORBIDDEN),
    (Unauthenticated, 401, "authentication_error", CloseCode.UNAUTHENTICATED),
    (Forbidden, 403, "permission_error", CloseCode.FORBIDDEN),
    (NotFound, 404, "invalid_request_error", CloseCode.FORBIDDEN),
    (Conflict, 409, "invalid_request_error", CloseCode.FORBIDDEN),
    (TooManyRequests, 429, "rate_limit_error", CloseCode.TOO_MANY),
    (Unavailable, 503, "server_error", CloseCode.OVERLOADED),
    (SluiceError, 500, "server_error", CloseCode.INTERNAL_ERROR),
)


def _row(error: SluiceError) -> tuple[type[SluiceError], int, str, CloseCode]:
    return next(row for row in _TABLE if isinstance(error, row[0]))


def http_status(error: SluiceError) -> int:
    return _row(error)[1]


def close_code(error: SluiceError) -> CloseCode:
    """The code to close a connection with that this error keeps out."""
    if error.code == "restarting":
        return CloseCode.RESTART
    return _row(error)[3]


def error_body(error: SluiceError) -> dict[str, str | None]:
    """The inner object of an OpenAI error body."""
    return {
        "message": error.message,
        "type": _row(error)[2],
        "param": error.param,
        "code": error.code,
    }
