"""What passes between a worker and an engine, and the transcript that turns it into events."""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from internal.biz.errors import SluiceError
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
    TextDelta,
    TextDone,
    scores_of,
)
from internal.biz.models import (
    Failure,
    ItemKind,
    Message,
    OutputItem,
    Request,
    Response,
    Role,
    Settings,
    Status,
    ToolCall,
    Usage,
)

MAX_CHARS_PER_TOKEN = 16
"""No tokenizer says more with one token, on average over a message."""


class Job:
    """One response for an engine to generate.

    `reasoning` and `emitted` are what earlier attempts have already said, thought and message, and `called`
    what they have called: the engine goes on behind them. `answering`: the reasoning, if there was any, is
    over. `user` is who asks.
    """

    __slots__ = ("answering", "called", "emitted", "messages", "reasoning", "response_id", "settings", "user")

    def __init__(
        self,
        response_id: str,
        messages: tuple[Message, ...],
        settings: Settings,
        emitted: str = "",
        reasoning: str = "",
        *,
        answering: bool = False,
        called: tuple[ToolCall, ...] = (),
        user: str = "",
    ) -> None:
        self.response_id = response_id
        self.messages = messages
        self.settings = settings
        self.emitted = emitted
        self.reasoning = reasoning
        self.answering = answering or bool(emitted or called)
        self.called = called
        self.user = user


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "max_output_tokens"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A request handed to a worker. `attempt` counts from 1 and is higher each time; `emitted` is what its
    log holds already; `receipt` is the queue's own, to find the delivery by."""

    request: Request
    attempt: int
    emitted: Sequence[Event]
    receipt: object


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Progress of the prompt, and of what earlier attempts said: `done` of `total` tokens."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last thing an engine says of a job. `error` goes with FinishReason.ERROR."""

    reason: FinishReason
    usage: Usage = Usage()
    error: SluiceError | None = None


Output = TextDelta | ReasoningDelta | ToolCall | Prefilled | Finished
Chunk = tuple[Job, Output]
"""What an engine says of a job: the very object that was submitted, so that nobody has to look it up.
A step of an engine is a list of chunks, in order for each job."""


_DELTAS: dict[ItemKind, type[Delta]] = {ItemKind.MESSAGE: TextDelta, ItemKind.REASONING: ReasoningDelta}
"""What an item of a kind consists of."""


class Transcript(Job):
    """A job, and the events that what the engine says of it becomes.

    `events` are those of the step at hand, the first of which has `number`: it is an Append too. One
    object is all of these because a step touches thousands of them, and what that costs is memory that
    is not in the cache. Bound: holds the text of one response, as its log does.
    """

    __slots__ = (
        "_index",
        "_items",
        "_kind",
        "_started",
        "_texts",
        "attempt",
        "delivery",
        "events",
        "first_token_at",
        "number",
        "receipt",
    )

    def __init__(self, delivery: Delivery) -> None:
        request = delivery.request
        super().__init__(request.response_id, request.messages, request.settings, user=request.user)
        self.delivery = delivery
        self.attempt = delivery.attempt
        self.receipt = delivery.receipt
        self.number = len(delivery.emitted)
        self.events: tuple[Event, ...] = ()
        self.first_token_at: float | None = None
        self._started = False
        self._items: list[OutputItem] = []
        self._kind: type[Delta] | None = None
        self._index = 0
        self._texts: list[str] = []
        for event in delivery.emitted:
            self._replay(event)
        self.emitted = self._said(ItemKind.MESSAGE, TextDelta)
        self.reasoning = self._said(ItemKind.REASONING, ReasoningDelta)
        self.answering = bool(self._items) or self._kind is TextDelta
        self.called = tuple(item.call for item in self._items if item.call is not None)

    def _replay(self, event: Event) -> None:
        match event:
            case ResponseInProgress():
                self._started = True
            case ItemAdded(kind):
                self._kind = _DELTAS.get(kind)
            case TextDelta() | ReasoningDelta():
                self._texts.append(event)
            case ItemDone(item):
                self._items.append(item)
                self._index += 1
                self._kind = None
                self._texts = []

    def recall(self, before: tuple[Message, ...]) -> None:
        """Put what was said before the request's own messages, and the instructions before all."""
        instructions = self.settings.instructions
        system = (Message(Role.SYSTEM, instructions),) if instructions is not None else ()
        self.messages = (*system, *before, *self.delivery.request.messages)

    def _said(self, kind: ItemKind, delta: type[Delta]) -> str:
        """All text of one kind, of the items that are done and of the open one."""
        texts = [item.text for item in self._items if item.kind is kind]
        return "".join(texts + self._texts if self._kind is delta else texts)

    def appended(self) -> None:
        """The events were appended: what is added from now on is new."""
        self.number += len(self.events)
        self.events = ()

    def start(self) -> None:
        """Say that generation begins, unless an earlier attempt said so."""
        if self._started:
            return
        self._started = True
        response = Response.of(self.delivery.request, Status.IN_PROGRESS)
        self.events += (ResponseCreated(response), ResponseInProgress(response))

    def add(self, said: Delta | ToolCall) -> None:
        """Add what the engine said. Called once per token."""
        if type(said) is not self._kind:
            if isinstance(said, ToolCall):
                self._add_call(said)
                return
            kind = ReasoningDelta if isinstance(said, ReasoningDelta) else TextDelta
            if kind is not self._kind:  # else it has scores
                self._open_item(kind)
        self._texts.append(said)
        self.events += (said,)

    def _add_call(self, call: ToolCall) -> None:
        self._close_item(Status.COMPLETED)
        index, item = self._index, OutputItem(ItemKind.FUNCTION_CALL, "", call=call)
        self._items.append(item)
        self.events += (
            ItemAdded(ItemKind.FUNCTION_CALL, index, call),
            ArgumentsDelta(call, index),
            ArgumentsDone(call, index),
            ItemDone(item, index),
        )
        self._index += 1

    def _open_item(self, kind: type[Delta]) -> None:
        self._close_item(Status.COMPLETED)
        self._kind = kind
        item = ItemKind.MESSAGE if kind is TextDelta else ItemKind.REASONING
        self.events += (ItemAdded(item, self._index), PartAdded(item, self._index))

    def _close_item(self, status: Status) -> None:
        if self._kind is None:
            return
        kind = ItemKind.MESSAGE if self._kind is TextDelta else ItemKind.REASONING
        text, index = "".join(self._texts), self._index
        scores = () if self.settings.logprobs is None else scores_of(self._texts)
        item = OutputItem(kind, text, status, scores=scores)
        self._items.append(item)
        self.events += (
            TextDone(kind, text, index, scores),
            PartDone(kind, text, index, scores),
            ItemDone(item, index),
        )
        self._kind = None
        self._texts = []
        self._index += 1

    def finish(self, end: Finished) -> Response:
        """Say how the response ended; returns it."""
        complete = end.reason is FinishReason.STOP
        self._close_item(Status.COMPLETED if complete else Status.INCOMPLETE)
        event = _terminal(self.delivery, end, tuple(self._items), self.first_token_at)
        self.events += (event,)
        return event.response


def _terminal(
    delivery: Delivery, end: Finished, output: tuple[OutputItem, ...], first_token_at: float | None
) -> ResponseCompleted | ResponseIncomplete | ResponseFailed:
    """The event that ends a response for the reason of `end`."""
    response = functools.partial(
        Response.of,
        delivery.request,
        output=output,
        usage=end.usage,
        attempt=delivery.attempt,
        first_token_at=first_token_at,
    )
    match end.reason:
        case FinishReason.STOP:
            return ResponseCompleted(response(status=Status.COMPLETED, completed_at=time.time()))
        case FinishReason.ERROR:
            error = end.error or SluiceError("the engine failed")
            failure = Failure(error.code, error.message)
            return ResponseFailed(response(status=Status.FAILED, failure=failure))
        case reason:
            return ResponseIncomplete(response(status=Status.INCOMPLETE, incomplete_reason=reason.value))
