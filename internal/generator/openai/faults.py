"""What goes wrong with an upstream, and what it means: for who asked, for the next try, and for the node.

No message of these holds a key, an address, or more than a line of what the upstream said.
"""

import email.utils
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from internal.biz.errors import ContextLengthExceeded, GenerationFailed, SluiceError
from internal.biz.names import visible_line

MAX_MESSAGE_CHARS = 300
MAX_RETRY_AFTER_S = 3600.0
"""Whatever it asks for: one word of a node shall not silence it until we restart."""
_TRANSIENT = (408, 409, 425, 429)
_MISPLACED = (404, 405)
"""These say that the node is not what the configuration takes it for, whoever asks for whatever."""
_UNAUTHORIZED = {
    401: "does not accept this server's key; tell its operator",
    402: "is not paid any more; tell this server's operator",
    403: "forbids this",  # to this server, or, with some, because of what was said
}
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error")
"""The code of OpenAI, and the type of llama.cpp."""


class Fault(Exception):
    """A try that failed. `is_transient`: another one may succeed, after `retry_after_s` if the upstream said
    so. `blames_node`: it is not the request's fault. `detail` is for the log: it may hold an address."""

    def __init__(
        self,
        error: SluiceError,
        *,
        is_transient: bool = False,
        blames_node: bool = False,
        retry_after_s: float | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(error.message)
        self.detail = detail or error.message
        self.error = error
        self.is_transient = is_transient
        self.blames_node = blames_node
        self.retry_after_s = retry_after_s


def broken(message: str, code: str = "upstream_failed", detail: str = "") -> Fault:
    """The node is away, silent, or talks nonsense."""
    error = GenerationFailed(message, code=code)
    return Fault(error, is_transient=True, blames_node=True, detail=detail)


def forbidden() -> Fault:
    """The node is at an address that may not be connected to."""
    return Fault(
        GenerationFailed(
            "the model's server is at an address that this server does not connect to: only public ones are "
            "allowed here",
            code="upstream_forbidden",
        )
    )


def misaddressed() -> Fault:
    """The node's address is none."""
    message = "the model's server cannot be reached: its address is none"
    return Fault(GenerationFailed(message, code="upstream_unavailable"), blames_node=True)


def refused(status: int, headers: Mapping[str, str], body: bytes, secrets: Sequence[str]) -> Fault:
    """What an answer of another status than 200 means."""
    said = _parsed(body)
    retry_after_s = _retry_after_s(headers)
    if status == 429:
        error = GenerationFailed(
            "the model's server has too much to do, or your share of it is used up; try again later",
            code="upstream_rate_limited",
        )
        return Fault(error, is_transient=True, retry_after_s=retry_after_s)
    if status in _UNAUTHORIZED:
        error = GenerationFailed(f"the model's server {_UNAUTHORIZED[status]}", code="upstream_unauthorized")
        return Fault(error, blames_node=status != 403)
    if status >= 500 or status in _TRANSIENT:
        error = GenerationFailed(f"the model's server failed (status {status})", code="upstream_failed")
        is_overload = status < 500
        return Fault(error, is_transient=True, blames_node=not is_overload, retry_after_s=retry_after_s)
    if 300 <= status < 400:
        return Fault(
            GenerationFailed(
                f"the model's server is somewhere else (status {status}): its address is wrong",
                code="upstream_failed",
            ),
            blames_node=True,
        )
    return Fault(_refusal(status, said, secrets), blames_node=status in _MISPLACED)


def told(said: Any, secrets: Sequence[str]) -> Fault:
    """An error that came with status 200, or in the middle of a stream."""
    said = said if isinstance(said, dict) else {"message": said}
    status = said.get("code")
    if isinstance(status, int) and 400 <= status < 600:
        return refused(status, {}, orjson.dumps({"error": said}), secrets)
    if _is_too_long(said):
        return Fault(_too_long())
    message = _message(said, secrets)
    return Fault(
        GenerationFailed(f"the model's server failed: {message}", code="upstream_failed"),
        is_transient=True,
        blames_node=True,
    )


def _refusal(status: int, said: Any, secrets: Sequence[str]) -> SluiceError:
    error = said.get("error", said) if isinstance(said, dict) else {}
    error = error if isinstance(error, dict) else {"message": error}
    if _is_too_long(error):
        return _too_long()
    return GenerationFailed(
        f"the model's server refuses this request (status {status}): {_message(error, secrets)}",
        code="upstream_refused_request",
    )


def _is_too_long(error: Mapping[str, Any]) -> bool:
    return error.get("code") in _TOO_LONG or error.get("type") in _TOO_LONG


def _too_long() -> SluiceError:
    return ContextLengthExceeded("the prompt is longer than this model's context", param="input")


def _message(error: Mapping[str, Any], secrets: Sequence[str]) -> str:
    message = error.get("message")
    if not isinstance(message, str):
        return "it does not say why"
    for secret in secrets:
        message = message.replace(secret, "***")
    # Cut behind the secrets: half of one is told no more than all of it.
    return visible_line(message[: 4 * MAX_MESSAGE_CHARS])[:MAX_MESSAGE_CHARS] or "it does not say why"


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError:
        return None


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Source: RFC 9110 §10.2.3."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.replace(".", "", 1).isdecimal():
        return min(float(value), MAX_RETRY_AFTER_S)
    try:
        seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return max(0.0, min(seconds, MAX_RETRY_AFTER_S))
