"""The Responses API over a WebSocket: `client.responses.connect()` of the `openai` package.

Sluice adds `response.cancel`, `response.resume`, and `queue` on `response.queued` and
`response.queue`. Source: https://platform.openai.com/docs/api-reference/responses
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
)

from internal.biz.chat import Ask
from internal.biz.errors import InvalidRequest, SluiceError, UnsupportedParameter
from internal.biz.events import (
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    QueueUpdate,
    ReasoningDelta,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
    TextDelta,
    TextDone,
)
from internal.biz.log import Cursor, ResponseLog
from internal.biz.models import (
    ItemKind,
    Message,
    OutputItem,
    Response,
    Role,
    Settings,
    Status,
    Truncation,
)
from internal.biz.session import Cancel, Command, Create, Resume
from internal.service.errors import error_body, http_status
from internal.service.validation import complaint

# ── client events ────────────────────────────────────────────────────────────────────────────────

MAX_ITEMS = 4096
MAX_PARTS = 256
MAX_KEYS = 64
"""Bounds of what is looked at of one client event."""

_Lane = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Id = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Lenient(BaseModel):
    """For what clients send back as they got it from us, with whatever fields it had."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _TextPart(_Lenient):
    type: Literal["input_text", "output_text", "text"]
    text: str


class _MessageItem(_Lenient):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[_TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]


class _Conversation(_Lenient):
    id: _Id


def _by_id(value: object) -> object:
    return {"id": value} if isinstance(value, str) else value


class _ReasoningItem(_Lenient):
    type: Literal["reasoning"]


def _item_tag(item: object) -> str:
    is_reasoning = isinstance(item, dict) and item.get("type") == "reasoning"
    return "reasoning" if is_reasoning else "message"


# One complaint is enough, and collecting one for each of a hundred thousand bad items takes seconds.
_Items = Annotated[
    list[
        Annotated[
            Annotated[_MessageItem, Tag("message")] | Annotated[_ReasoningItem, Tag("reasoning")],
            Discriminator(_item_tag),
        ]
    ],
    Field(max_length=MAX_ITEMS, fail_fast=True),
]
_Include = Annotated[list[Literal["queue"]], Field(max_length=8, fail_fast=True)]


class _ResponseCreate(_Strict):
    type: Literal["response.create"]
    model: str | None = None
    input: str | _Items
    instructions: str | None = None
    previous_response_id: _Id | None = None
    conversation: Annotated[_Conversation, BeforeValidator(_by_id)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    metadata: _Metadata | None = None
    stream_id: _Lane | None = None
    stream: Literal[True] | None = None
    include: _Include | None = None


class _ResponseCancel(_Strict):
    type: Literal["response.cancel"]
    response_id: _Id


class _ResponseResume(_Strict):
    type: Literal["response.resume"]
    response_id: _Id
    starting_after: Annotated[int, Field(ge=0, le=2**53)] | None = None
    stream_id: _Lane | None = None
    include: _Include | None = None


_CLIENT_EVENTS: dict[str, type[_Strict]] = {
    "response.create": _ResponseCreate,
    "response.cancel": _ResponseCancel,
    "response.resume": _ResponseResume,
}


def _parse(data: bytes) -> _Strict:
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
    _require_small(event, "event")
    _require_small(event.get("metadata"), "metadata")
    try:
        return model.model_validate(event)
    except ValidationError as error:
        raise _invalid(error) from error


def _require_small(value: object, name: str) -> None:
    if isinstance(value, dict) and len(value) > MAX_KEYS:
        raise InvalidRequest(f"{name}: more than {MAX_KEYS} keys", code="invalid_value", param=name)


def _invalid(error: ValidationError) -> InvalidRequest:
    refusal = complaint(error, _is_branch)
    param = refusal.param or ""
    if param.endswith(".type") or param.startswith("include"):
        return UnsupportedParameter(refusal.message, param=param)
    return refusal


def _is_branch(part: int | str, is_last: bool) -> bool:
    """pydantic names the branch of a union in the path; a client never wrote that."""
    if isinstance(part, int):
        return False
    return (
        part in ("message", "reasoning")
        or part.startswith(("list[", "literal["))
        or (is_last and part == "str")
    )


_ROLES = {"developer": Role.SYSTEM}


def _messages(items: str | Sequence[_MessageItem | _ReasoningItem]) -> tuple[Message, ...]:
    if isinstance(items, str):
        return (Message(Role.USER, items),) if items else ()
    return tuple(
        Message(_ROLES.get(item.role) or Role(item.role), _content(item))
        for item in items
        if isinstance(item, _MessageItem)
    )


def _content(item: _MessageItem) -> str:
    if isinstance(item.content, str):
        return item.content
    return "".join(part.text for part in item.content)


def _settings(event: _ResponseCreate) -> Settings:
    conversation = event.conversation
    if conversation is not None and event.previous_response_id is not None:
        raise InvalidRequest(
            "a turn continues a conversation or a previous response, not both", param="conversation"
        )
    return Settings(
        conversation_id=None if conversation is None else conversation.id,
        instructions=event.instructions,
        previous_response_id=event.previous_response_id,
        max_output_tokens=event.max_output_tokens,
        temperature=event.temperature,
        top_p=event.top_p,
        truncation=Truncation(event.truncation or "disabled"),
        store=event.store is not False,
        metadata=event.metadata or {},
    )


# ── server events ────────────────────────────────────────────────────────────────────────────────


def response_object(response: Response) -> dict[str, Any]:
    """The API's `response` object."""
    settings, usage = response.settings, response.usage
    return {
        "id": response.id,
        "object": "response",
        "created_at": int(response.created_at),
        "completed_at": response.completed_at and int(response.completed_at),
        "status": response.status.value,
        "model": response.model,
        "output": [_item(response.id, i, item) for i, item in enumerate(response.output)],
        "error": response.failure and {"code": response.failure.code, "message": response.failure.message},
        "incomplete_details": response.incomplete_reason and {"reason": response.incomplete_reason},
        "instructions": settings.instructions,
        "previous_response_id": settings.previous_response_id,
        "conversation": settings.conversation_id and {"id": settings.conversation_id},
        "max_output_tokens": settings.max_output_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "truncation": settings.truncation.value,
        "store": settings.store,
        "metadata": dict(settings.metadata),
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "usage": usage
        and {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        },
    }


_PREFIX = {ItemKind.MESSAGE: "msg", ItemKind.REASONING: "rs"}
_PART = {ItemKind.MESSAGE: "output_text", ItemKind.REASONING: "reasoning_text"}


def _item_id(response_id: str, kind: ItemKind, index: int) -> str:
    return f"{_PREFIX[kind]}_{response_id.removeprefix('resp_')}_{index}"


def _part(kind: ItemKind, text: str) -> dict[str, Any]:
    if kind is ItemKind.REASONING:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item(response_id: str, index: int, item: OutputItem) -> dict[str, Any]:
    running = item.status is Status.IN_PROGRESS
    fields: dict[str, Any] = {
        "id": _item_id(response_id, item.kind, index),
        "type": item.kind.value,
        "status": item.status.value,
        "content": [] if running else [_part(item.kind, item.text)],
    }
    if item.kind is ItemKind.REASONING:
        return {**fields, "summary": []}
    return {**fields, "role": "assistant"}


_RESPONSE_EVENTS: dict[type, str] = {
    ResponseCreated: "response.created",
    ResponseInProgress: "response.in_progress",
    ResponseCompleted: "response.completed",
    ResponseIncomplete: "response.incomplete",
    ResponseFailed: "response.failed",
}


def event_object(log: ResponseLog, number: int, event: Event) -> dict[str, Any]:
    """Event `number` of `log` as the API has it."""
    return {**_fields(log, number, event), "sequence_number": number}


def _fields(log: ResponseLog, number: int, event: Event) -> dict[str, Any]:
    response_id = log.response_id
    match event:
        case TextDelta() | ReasoningDelta():
            kind = ItemKind.MESSAGE if type(event) is TextDelta else ItemKind.REASONING
            fields = {"type": f"response.{_PART[kind]}.delta", "delta": str(event)}
            place = _place(response_id, kind, log.output_index(number))
            return {**fields, **place, **_logprobs(kind)}
        case ResponseQueued(response, position, workers):
            queue: dict[str, Any] = {"position": position}
            if not workers:
                queue["message"] = f"no worker for {response.model} is running; the request waits for one"
            return {"type": "response.queued", "response": response_object(response), "queue": queue}
        case ItemAdded(kind, index):
            item = _item(response_id, index, OutputItem(kind, "", Status.IN_PROGRESS))
            return {"type": "response.output_item.added", "output_index": index, "item": item}
        case PartAdded(kind, index):
            place = _place(response_id, kind, index)
            return {"type": "response.content_part.added", **place, "part": _part(kind, "")}
        case TextDone(kind, text, index):
            fields = {"type": f"response.{_PART[kind]}.done", "text": text}
            return {**fields, **_place(response_id, kind, index), **_logprobs(kind)}
        case PartDone(kind, text, index):
            place = _place(response_id, kind, index)
            return {"type": "response.content_part.done", **place, "part": _part(kind, text)}
        case ItemDone(item, index):
            done = _item(response_id, index, item)
            return {"type": "response.output_item.done", "output_index": index, "item": done}
        case _:
            name = _RESPONSE_EVENTS[type(event)]
            return {"type": name, "response": response_object(event.response)}


def _place(response_id: str, kind: ItemKind, index: int) -> dict[str, Any]:
    item_id = _item_id(response_id, kind, index)
    return {"item_id": item_id, "output_index": index, "content_index": 0}


def _logprobs(kind: ItemKind) -> dict[str, Any]:
    return {"logprobs": []} if kind is ItemKind.MESSAGE else {}


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
    place = _place(cursor.response_id, ItemKind.MESSAGE, index)
    fields = {"type": "response.output_text.delta", **place, "logprobs": []}
    if cursor.lane is not None:
        fields["stream_id"] = cursor.lane
    cursor.codec_state = _DeltaHead(index, json := orjson.dumps(fields)[:-1])
    return json


class ResponsesCodec:
    """Implements Codec."""

    continues = False

    def decode(self, data: bytes) -> Command:
        event = _parse(data)
        if isinstance(event, _ResponseCreate):
            ask = Ask(_messages(event.input), event.model, _settings(event))
            return Create(ask, event.stream_id, "queue" in (event.include or ()))
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
