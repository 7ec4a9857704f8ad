"""How events and requests are written in Redis: JSON, without what the log says already.

    "text"                    a text delta: nearly all entries
    ["r", "text"]             a reasoning delta
    ["t", "text", [["token", -0.1, [["token", -0.1], …]], …]]    a text delta with scores
    ["queued", 3, 1]          requests that go first, live workers
    ["created"]  ["in_progress"]
    ["item", "message"]  ["part"]  ["text_done"]  ["part_done"]  ["item_done", "completed"]
    ["call", {…}]  ["arguments"]  ["arguments_done"]  ["item_done", "completed"]
    ["end", {…}]              how the response ended; its output is that of the items

What a `done` repeats is read from the deltas before it, so a log must be read from its beginning.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from json.encoder import encode_basestring
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from internal.biz.errors import InvalidRequest
from internal.biz.events import (
    ArgumentsDelta,
    ArgumentsDone,
    Delta,
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
    ScoredDelta,
    Terminal,
    TextDelta,
    TextDone,
    scores_of,
)
from internal.biz.models import (
    Failure,
    ItemKind,
    OutputItem,
    Request,
    Response,
    Status,
    ToolCall,
    Usage,
)
from internal.biz.scores import TokenScore
from internal.data import older

END = b'["end"'
"""How the entry begins that ends a log."""
TEXT = b'"'
REASONING = b'["r"'
SCORED = b'["t"'
"""How deltas begin."""

_REQUEST = TypeAdapter(Request)
_TERMINAL: dict[Status, type[Terminal]] = {
    Status.COMPLETED: ResponseCompleted,
    Status.INCOMPLETE: ResponseIncomplete,
    Status.FAILED: ResponseFailed,
}


def dump_request(request: Request) -> bytes:
    return orjson.dumps(request)


def load_request(data: bytes) -> Request:
    """Raises InvalidRequest when this is no request, or one of another version of Sluice."""
    try:
        return _REQUEST.validate_json(older.request(data))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InvalidRequest(
            f"the request cannot be decoded: {where or 'it'} is not valid", code="request_undecodable"
        ) from error


def head_of(request: Request) -> Request:
    """What followers need to know of a request: all but its messages."""
    return replace(request, messages=())


def encode(event: Event) -> bytes:
    """One entry, without a line break. Called once per token."""
    if type(event) is TextDelta:
        # orjson is as fast, but what it returns stands in a block of a whole KiB; workers keep thousands.
        return encode_basestring(event).encode(errors="replace")
    if type(event) is ReasoningDelta:
        return b'["r",%b]' % encode_basestring(event).encode(errors="replace")
    if type(event) is ScoredDelta:
        fields = ["t", event, [(score.text, score.logprob, score.top) for score in event.tokens]]
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return orjson.dumps(_fields(event))


def _fields(event: Event) -> list[Any]:
    match event:
        case ResponseQueued(_, position, workers):
            return ["queued", position, workers]
        case ResponseCreated():
            return ["created"]
        case ResponseInProgress():
            return ["in_progress"]
        case ItemAdded(kind, call=None):
            return ["item", kind]
        case ItemAdded(call=call):
            return ["call", call]
        case ArgumentsDelta():
            return ["arguments"]
        case ArgumentsDone():
            return ["arguments_done"]
        case PartAdded():
            return ["part"]
        case TextDone():
            return ["text_done"]
        case PartDone():
            return ["part_done"]
        case ItemDone(item):
            return ["item_done", item.status]
        case ResponseCompleted(response) | ResponseIncomplete(response) | ResponseFailed(response):
            return ["end", _end(response)]
    raise TypeError(f"{event!r} cannot stand in a log")


def _end(response: Response) -> dict[str, Any]:
    fields = {
        "status": response.status,
        "usage": response.usage,
        "failure": response.failure,
        "reason": response.incomplete_reason,
        "completed_at": response.completed_at,
        "attempt": response.attempt,
    }
    return {key: value for key, value in fields.items() if value is not None}


class Decoder:
    """Reads the entries of one log, from its first one on. Holds the texts of the item that is open."""

    __slots__ = ("_call", "_head", "_items", "_kind", "_scores", "_text", "_texts")

    def __init__(self, head: Request) -> None:
        self._head = head
        self._items: list[OutputItem] = []
        self._kind = ItemKind.MESSAGE
        self._texts: list[Delta] = []
        self._text = ""
        self._scores: tuple[TokenScore, ...] = ()
        self._call: ToolCall | None = None

    def decode(self, entries: Iterable[Any]) -> list[Event]:
        """The events of the next entries, parsed from JSON.

        Raises InvalidRequest, as when another version of Sluice wrote them; then this is no longer of use.
        """
        events: list[Event] = []
        for entry in entries:
            if type(entry) is str:
                delta = TextDelta(entry)
                self._texts.append(delta)
                events.append(delta)
            else:
                try:
                    events.append(self._decode(entry))
                except (ValueError, KeyError, TypeError) as error:
                    raise InvalidRequest(
                        f"the log cannot be decoded: {error}", code="log_undecodable"
                    ) from error
        return events

    def _decode(self, entry: Any) -> Event:
        index = len(self._items)
        match entry:
            case ["r", text]:
                delta = ReasoningDelta(text)
                self._texts.append(delta)
                return delta
            case ["t", text, scores]:
                scored = ScoredDelta(text, tuple(_score(*score) for score in scores))
                self._texts.append(scored)
                return scored
            case ["queued", position, workers]:
                return ResponseQueued(Response.of(self._head, Status.QUEUED), position, workers)
            case ["created"]:
                return ResponseCreated(Response.of(self._head, Status.IN_PROGRESS))
            case ["in_progress"]:
                return ResponseInProgress(Response.of(self._head, Status.IN_PROGRESS))
            case ["item", kind]:
                self._kind, self._texts, self._call = ItemKind(kind), [], None
                return ItemAdded(self._kind, index)
            case ["call", fields]:
                self._kind, self._text, self._call = ItemKind.FUNCTION_CALL, "", ToolCall(**fields)
                self._scores = ()
                return ItemAdded(self._kind, index, self._call)
            case ["arguments"] if self._call is not None:
                return ArgumentsDelta(self._call, index)
            case ["arguments_done"] if self._call is not None:
                return ArgumentsDone(self._call, index)
            case ["part"]:
                return PartAdded(self._kind, index)
            case ["text_done"]:
                scores = () if self._head.settings.logprobs is None else scores_of(self._texts)
                self._text, self._texts, self._scores = "".join(self._texts), [], scores
                return TextDone(self._kind, self._text, index, scores)
            case ["part_done"]:
                return PartDone(self._kind, self._text, index, self._scores)
            case ["item_done", status]:
                item = OutputItem(self._kind, self._text, Status(status), self._call, self._scores)
                self._items.append(item)
                return ItemDone(item, index)
            case ["end", fields]:
                return self._end(fields)
        raise ValueError(f"{entry!r} is no entry of a log")

    def _end(self, fields: dict[str, Any]) -> Terminal:
        status = Status(fields["status"])
        response = Response.of(
            self._head,
            status,
            output=tuple(self._items),
            usage=Usage(**fields["usage"]) if "usage" in fields else None,
            failure=Failure(**fields["failure"]) if "failure" in fields else None,
            incomplete_reason=fields.get("reason"),
            completed_at=fields.get("completed_at"),
            attempt=fields["attempt"],
        )
        return _TERMINAL[status](response)


def _score(text: str, logprob: float, top: list[list[Any]]) -> TokenScore:
    return TokenScore(text, logprob, tuple((other, likely) for other, likely in top))


def decode_log(head: Request, entries: Sequence[bytes]) -> tuple[Event, ...]:
    """A whole log, as Redis returns it. Raises InvalidRequest."""
    return tuple(Decoder(head).decode(parse(entries)))


def parse(entries: Sequence[bytes]) -> list[Any]:
    """Entries as Redis returns them, parsed in one go. Raises InvalidRequest."""
    try:
        parsed: list[Any] = orjson.loads(b"[%b]" % b",".join(entries))
    except ValueError as error:
        raise InvalidRequest(f"the log cannot be decoded: {error}", code="log_undecodable") from error
    return parsed
