"""The Responses API as server-sent events: those of the WebSocket, each under its number.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from collections.abc import Sequence
from typing import Any

import orjson

from internal.biz.errors import SluiceError
from internal.biz.events import Event, TextDelta, join_deltas
from internal.biz.log import Cursor
from internal.service.codec.responses import ResponsesCodec
from internal.service.codec.responses_objects import event_object
from internal.service.errors import error_body

EVENTS_UNJOINED = 128
"""Who has more to read than that lags, and gets adjacent deltas as one."""


def _begun_as_there(fields: dict[str, Any]) -> dict[str, Any]:
    """The same, called as the API calls it, where a response is created first and queued then. Clients
    rely on that, such as `responses.stream()` of the `openai` package."""
    match fields["type"]:
        case "response.queued":
            return {**fields, "type": "response.created"}
        case "response.created":
            return {
                **fields,
                "type": "response.queued",
                "response": {**fields["response"], "status": "queued"},
            }
    return fields


class ResponseStream:
    """Implements Encoder of server/sse for one response."""

    def __init__(self, cursor: Cursor, after: int) -> None:
        """`after`: the number of the last event that the client has; -1: it has none."""
        self._cursor = cursor
        self._codec = ResponsesCodec()
        self._last = after

    def encode(self, events: Sequence[Event]) -> bytes:
        first = self._last + 1
        self._last += len(events)
        lags = len(events) > EVENTS_UNJOINED
        numbered = join_deltas(first, events) if lags else enumerate(events, first)
        return b"".join([self._event(number, event) for number, event in numbered])

    def _event(self, number: int, event: Event) -> bytes:
        if type(event) is TextDelta:
            (data,) = self._codec.encode(self._cursor, number, (event,))
            return b"event: response.output_text.delta\nid: %d\ndata: %b\n\n" % (number, data)
        fields = _begun_as_there(event_object(self._cursor.log, number, event))
        return b"event: %b\nid: %d\ndata: %b\n\n" % (fields["type"].encode(), number, orjson.dumps(fields))

    def encode_error(self, error: SluiceError) -> bytes:
        """It is no event of the response: it has no id, and the number of the one before."""
        body = error_body(error)
        fields = {
            "type": "error",
            "code": body["code"],
            "message": body["message"],
            "param": body["param"],
            "sequence_number": max(self._last, 0),
        }
        return b"event: error\ndata: %b\n\n" % orjson.dumps(fields)
