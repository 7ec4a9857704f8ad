"""Everything that can go wrong, as one tree.

    SluiceError
    ├── InvalidRequest            the client's words are off; the same request fails again
    │   ├── UnsupportedParameter  a parameter that exists, but not here (yet)
    │   └── ContextLengthExceeded the prompt does not fit the model
    ├── NotFound                  no such response, model or conversation (or not yours)
    ├── Conflict                  right words, wrong moment
    ├── TooManyRequests           a limit of this session or user
    ├── Unavailable               a limit or fault of the server; try again later
    ├── GenerationFailed          the engine failed on this response
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


class ContextLengthExceeded(InvalidRequest):
    default_code = "context_length_exceeded"


class NotFound(SluiceError):
    default_code = "not_found"


class Conflict(SluiceError):
    default_code = "conflict"
    retryable = True


class TooManyRequests(SluiceError):
    default_code = "too_many_requests"
    retryable = True


class Unavailable(SluiceError):
    default_code = "overloaded"
    retryable = True


class GenerationFailed(SluiceError):
    default_code = "generation_failed"


class Refused(SluiceError):
    default_code = "append_refused"
