"""Bodies of POST /chat, and the events that a stream of it consists of."""

from collections.abc import Sequence
from typing import Annotated, Literal

import orjson
from pydantic import AfterValidator, Field

from internal.biz.errors import (
    ContextLengthExceeded,
    GenerationFailed,
    InvalidRequest,
    InvalidSchema,
    SluiceError,
    TooManyRequests,
    Unavailable,
    UnsupportedParameter,
)
from internal.biz.events import Event, ResponseCompleted, ResponseFailed, ResponseIncomplete, TextDelta
from internal.biz.models import Failure
from internal.biz.preferences import MAX_MODEL_CHARS, MAX_OUTPUT_TOKENS
from internal.service.api.base import Answer, Body, Id
from internal.service.errors import error_body


def _said(message: str) -> str:
    if not message.strip():
        raise ValueError("the message is empty")
    return message


class ChatMessage(Body):
    """One message of a user."""

    session_id: Annotated[
        Id | None, Field(description="The conversation that goes on; without one, a new one begins.")
    ] = None
    message: Annotated[
        str,
        Field(min_length=1, json_schema_extra={"pattern": r"\S"}, examples=["What is a sluice?"]),
        AfterValidator(_said),
    ]
    model: Annotated[str | None, Field(min_length=1, max_length=MAX_MODEL_CHARS)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    max_tokens: Annotated[int | None, Field(ge=1, le=MAX_OUTPUT_TOKENS)] = None


class ChatTurn(ChatMessage):
    """One message of a user, and whether the answer comes as it is made."""

    stream: bool | None = None


class StreamedTurn(ChatMessage):
    """One message of a user, the answer to which comes as it is made."""

    stream: Literal[True] | None = None


class ChatReply(Answer):
    """`incomplete` is there when the answer ended early: `max_output_tokens` or `cancelled`."""

    session_id: str
    user_message: str
    assistant_reply: str
    incomplete: Annotated[str | None, Field(exclude_if=lambda reason: reason is None)] = None


STREAM = (
    'Server-sent events: `data: {"chunk": "…"}` for each piece of the answer, `data: {"done": true}` at the '
    'end. There `"incomplete"` says why it ended early (`max_output_tokens`, `cancelled`), `"session_id"` '
    'which conversation has begun. A failure is `data: {"error": {…}}`, and the end. Lines that begin with a '
    "colon keep the connection awake."
)


class ChatStream:
    """Implements Encoder."""

    def __init__(self, begun: str | None) -> None:
        """`begun`: the conversation that began with this turn."""
        self._begun = begun

    def encode(self, events: Sequence[Event]) -> bytes:
        """At most one chunk, and the end, when it is among them."""
        text = "".join([event for event in events if isinstance(event, TextDelta)])
        data = _event({"chunk": text}) if text else b""
        match events[-1]:
            case ResponseFailed(response):
                return data + self.encode_error(failure_error(response.failure))
            case ResponseCompleted(response) | ResponseIncomplete(response):
                fields: dict[str, object] = {"done": True}
                if response.incomplete_reason is not None:
                    fields["incomplete"] = response.incomplete_reason
                if self._begun is not None:
                    fields["session_id"] = self._begun
                return data + _event(fields)
        return data

    def encode_error(self, error: SluiceError) -> bytes:
        return _event({"error": error_body(error)})


def _event(fields: dict[str, object]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(fields)


_FAILURES: dict[str, type[SluiceError]] = {
    **{
        kind.default_code: kind
        for kind in (InvalidRequest, UnsupportedParameter, ContextLengthExceeded, InvalidSchema)
    },
    "invalid_pattern": InvalidSchema,
    "upstream_refused_request": InvalidRequest,
    "upstream_rate_limited": TooManyRequests,
    "upstream_timeout": Unavailable,
    "upstream_unavailable": Unavailable,
}
"""What is not simply a fault of ours: clients look at the status to see whether to come again."""


def failure_error(failure: Failure | None) -> SluiceError:
    """What failed a response, as the error that it was."""
    if failure is None:
        return GenerationFailed("the answer failed")
    return _FAILURES.get(failure.code, GenerationFailed)(failure.message, code=failure.code)
