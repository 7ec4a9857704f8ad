"""Everything that can go wrong, as one tree.

    SluiceError
    ├── InvalidRequest            the client's words are off; the same request fails again
    │   ├── UnsupportedParameter  a parameter that exists, but not here (yet)
    │   ├── FileTooLarge          more bytes than a file may have
    │   ├── UnsupportedFile       a file of a kind that is not taken
    │   ├── ContextLengthExceeded the prompt does not fit the model
    │   └── InvalidSchema         a JSON Schema or a pattern that the model cannot be held to
    ├── Unauthenticated           nobody we know says this, or no longer
    ├── Forbidden                 we know who says it, and they may not
    ├── NotFound                  no such response, model or conversation (or not yours)
    ├── Conflict                  right words, wrong moment
    ├── TooManyRequests           a limit of this session, user or address
    │   └── RateLimited           that says when to come back
    ├── Unavailable               a limit or fault of the server; try again later
    ├── GenerationFailed          the engine failed on this response
    ├── EngineLost                the engine cannot go on in this process, whatever it is asked
    └── Refused                   an append that is not the next one (never reaches a client)

`code` is stable and machine-readable, `retryable` says whether the same request may succeed later, and
the message is a sentence for a person. How an error looks on the wire is the codecs' business.
"""

from typing import ClassVar


class SluiceError(Exception):
    """Root of every expected error. `param` names the offending field, where there is one."""

    default_code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param


class InvalidRequest(SluiceError):
    default_code = "invalid_request"


class UnsupportedParameter(InvalidRequest):
    default_code = "unsupported_parameter"


class FileTooLarge(InvalidRequest):
    default_code = "file_too_large"


class UnsupportedFile(InvalidRequest):
    default_code = "unsupported_file"


class ContextLengthExceeded(InvalidRequest):
    default_code = "context_length_exceeded"


class InvalidSchema(InvalidRequest):
    default_code = "invalid_json_schema"


class Unauthenticated(SluiceError):
    default_code = "unauthenticated"


class Forbidden(SluiceError):
    default_code = "forbidden"


class NotFound(SluiceError):
    default_code = "not_found"


class Conflict(SluiceError):
    default_code = "conflict"
    retryable = True


class TooManyRequests(SluiceError):
    default_code = "too_many_requests"
    retryable = True


class RateLimited(TooManyRequests):
    """A budget for a time is spent. `limit` is what it holds, `remaining` what is left of it, in requests or
    tokens; after `reset_s` seconds it is full again, and after `retry_after_s` the same request may pass."""

    default_code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        limit: int = 0,
        remaining: int = 0,
        reset_s: float = 0.0,
        retry_after_s: float = 0.0,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.limit = limit
        self.remaining = remaining
        self.reset_s = reset_s
        self.retry_after_s = retry_after_s


class Unavailable(SluiceError):
    default_code = "overloaded"
    retryable = True


class GenerationFailed(SluiceError):
    default_code = "generation_failed"


class EngineLost(SluiceError):
    """As with a fault of a GPU, after which every call fails: only another process can help."""

    default_code = "engine_lost"


class Refused(SluiceError):
    default_code = "append_refused"


def unknown_response(response_id: str) -> NotFound:
    """There is no such response, or it is not theirs who ask: both are told in the same words."""
    return NotFound(
        f"there is no response {response_id!r}, or it ended too long ago",
        code="response_not_found",
        param="response_id",
    )


def not_in_conversation(response_id: str, param: str) -> NotFound:
    """As `unknown_response`, for one that has to be of a certain conversation."""
    return NotFound(
        f"there is no response {response_id!r} in this conversation", code="response_not_found", param=param
    )


def still_running(response_id: str) -> Conflict:
    """It was stopped, or should be, and has not ended yet."""
    return Conflict(f"response {response_id!r} has not ended yet; try again", code="response_running")


def unknown_conversation(conversation_id: str, param: str | None = "conversation") -> NotFound:
    """As `unknown_response`."""
    return NotFound(
        f"there is no conversation {conversation_id!r}", code="conversation_not_found", param=param
    )


def conversation_locked() -> Conflict:
    """Another turn of the conversation has not been answered yet."""
    return Conflict("an answer in this conversation has not ended yet", code="conversation_locked")


def conversation_full() -> InvalidRequest:
    """As much was said in the conversation as one may hold."""
    return InvalidRequest(
        "this conversation is as long as one may be; begin another one",
        code="conversation_full",
        param="conversation",
    )


def unknown_file(file_id: str) -> NotFound:
    """As `unknown_response`."""
    return NotFound(f"there is no file {file_id!r}", code="file_not_found", param="file_id")


def unknown_batch(batch_id: str) -> NotFound:
    """As `unknown_response`."""
    return NotFound(f"there is no batch {batch_id!r}", code="batch_not_found")


def nothing_to_continue(response_id: str) -> NotFound:
    """As `unknown_response`, for one that was to be continued."""
    return NotFound(
        f"there is no stored response {response_id!r} to continue from",
        code="previous_response_not_found",
        param="previous_response_id",
    )
