"""The Responses API over a WebSocket: `client.responses.connect()` of the `openai` package.

Sluice adds `response.cancel`, `response.resume`, and `queue` on `response.queued` and
`response.queue`; and several models at once, each of which answers with a `stream_id` of its own: its name,
behind the client's `stream_id` and a colon, where there is one. Source: https://platform.openai.com/docs/api-reference/responses
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, StringConstraints, ValidationError

from internal.biz.commands import Cancel, Command, Create, Resume
from internal.biz.errors import InvalidRequest, SluiceError
from internal.biz.events import Event, QueueUpdate, TextDelta
from internal.biz.log import Cursor
from internal.biz.models import ItemKind
from internal.service.api.base import Body
from internal.service.codec.responses_objects import event_object, part_place
from internal.service.codec.responses_request import FollowedCreate, invalid, require_small
from internal.service.errors import error_body, http_status

_Lane = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Id = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Include = Annotated[
    list[Literal["queue", "message.output_text.logprobs"]], Field(max_length=8, fail_fast=True)
]


class _ResponseCreate(FollowedCreate):
    type: Literal["response.create"]
    stream_id: _Lane | None = None
    stream: Literal[True] | None = None
    include: _Include | None = None

    @property
    def included(self) -> Sequence[str]:
        return self.include or ()


class _ResponseCancel(Body):
    type: Literal["response.cancel"]
    response_id: _Id


class _ResponseResume(Body):
    type: Literal["response.resume"]
    response_id: _Id
    starting_after: Annotated[int, Field(ge=0, le=2**53)] | None = None
    stream_id: _Lane | None = None
    include: _Include | None = None


_CLIENT_EVENTS: dict[str, type[Body]] = {
    "response.create": _ResponseCreate,
    "response.cancel": _ResponseCancel,
    "response.resume": _ResponseResume,
}


def _parse(data: bytes) -> Body:
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"this is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(event, dict):
        raise InvalidRequest("an event is a JSON object with a type", code="invalid_json")
    name = event.get("type")
    model = _CLIENT_EVENTS.get(name) if isinstance(name, str) else None
    if model is None:
        known = ", ".join(_CLIENT_EVENTS)
        raise InvalidRequest(
            f"unknown event type {name!r}; this server knows {known}"[:500],
            code="unknown_event",
            param="type",
        )
    require_small(event, "event")
    require_small(event.get("metadata"), "metadata")
    try:
        return model.model_validate(event)
    except ValidationError as error:
        raise invalid(error) from error


@dataclass(slots=True)
class _DeltaHead:
    """What all text deltas of an output item have in common, open at the end. A whole object for each
    token took four times as long."""

    index: int
    json: bytes


def _delta_head(cursor: Cursor, number: int) -> bytes:
    index, head = cursor.log.output_index(number), cursor.codec_state
    if isinstance(head, _DeltaHead) and head.index == index:
        return head.json
    place = part_place(cursor.response_id, ItemKind.MESSAGE, index)
    fields = {"type": "response.output_text.delta", **place, "logprobs": []}
    if cursor.lane is not None:
        fields["stream_id"] = cursor.lane
    cursor.codec_state = _DeltaHead(index, json := orjson.dumps(fields)[:-1])
    return json


class ResponsesCodec:
    """Implements Codec."""

    continues = False

    def greeting(self, session_id: str) -> list[bytes]:
        return []

    def decode(self, data: bytes) -> Command:
        event = _parse(data)
        if isinstance(event, _ResponseCreate):
            wants_queue, models = "queue" in event.included, event.models
            if len(models) > 1:
                return Create(event.ask_all(), event.stream_id, wants_queue, models)
            return Create(event.ask(), event.stream_id, wants_queue)
        if isinstance(event, _ResponseResume):
            after = -1 if event.starting_after is None else event.starting_after
            wants_queue = "queue" in (event.include or ())
            return Resume(event.response_id, after, event.stream_id, wants_queue)
        assert isinstance(event, _ResponseCancel)
        return Cancel(event.response_id)

    def encode(self, cursor: Cursor, number: int, events: Sequence[Event]) -> list[bytes]:
        log, lane = cursor.log, cursor.lane
        payloads = []
        for offset, event in enumerate(events):
            if type(event) is TextDelta:
                parts = (_delta_head(cursor, number + offset), orjson.dumps(event), number + offset)
                payloads.append(b'%b,"delta":%b,"sequence_number":%d}' % parts)
                continue
            fields = event_object(log, number + offset, event)
            if lane is not None:
                fields["stream_id"] = lane
            payloads.append(orjson.dumps(fields))
        return payloads

    def encode_update(self, cursor: Cursor, update: QueueUpdate) -> bytes:
        fields: dict[str, Any] = {
            "type": "response.queue",
            "response_id": cursor.response_id,
            "position": update.position,
        }
        if update.prompt_tokens:
            prefill = {"processed": update.prefilled, "total": update.prompt_tokens}
            fields["prefill"] = prefill
        if update.loading is not None:
            fields["loading"] = update.loading
        if cursor.lane is not None:
            fields["stream_id"] = cursor.lane
        return orjson.dumps(fields)

    def encode_error(self, error: SluiceError, lane: str | None) -> bytes:
        fields: dict[str, Any] = {
            "type": "error",
            "status": http_status(error),
            "error": error_body(error),
        }
        if lane is not None:
            fields["stream_id"] = lane
        return orjson.dumps(fields)

    def lane(self, data: bytes) -> str | None:
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            return None
        lane = event.get("stream_id") if isinstance(event, dict) else None
        return lane if isinstance(lane, str) and len(lane) <= 64 else None
