"""The log of one response, and a cursor into it. Knows events and cursors, not sockets.

The log is append-only and numbered 0, 1, 2, …; an append that is not the next one, or that comes from
an attempt that is no longer the current one, is refused. So text is never written twice. A cursor only
moves forward, so it is never read twice either.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from internal.biz.errors import Refused
from internal.biz.events import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    QueueUpdate,
    ReasoningDelta,
    ResponseCompleted,
    ResponseFailed,
    ResponseIncomplete,
    ResponseQueued,
    ScoredDelta,
    TextDelta,
    TextDone,
)
from internal.biz.models import OutputItem, Response
from internal.biz.scores import count_scores

_TERMINAL = (ResponseCompleted, ResponseIncomplete, ResponseFailed)
_EVENT_BYTES = 120
"""What an entry costs beside its text, about: the object and its place in the list."""
_SCORE_BYTES = 150
"""What a likelihood costs, about. What is done repeats the very objects of the deltas."""


def size_bytes(event: Event) -> int:
    """About what an event takes, in memory or on the wire."""
    if type(event) is ScoredDelta:
        return _EVENT_BYTES + len(event) + _SCORE_BYTES * count_scores(event.tokens)
    if isinstance(event, (TextDelta, ReasoningDelta)):
        return _EVENT_BYTES + len(event)
    if isinstance(event, (TextDone, PartDone)):
        return _EVENT_BYTES + len(event.text)
    if isinstance(event, ItemDone):
        return _EVENT_BYTES + _item_bytes(event.item)
    if isinstance(event, (ArgumentsDelta, ArgumentsDone)):
        return _EVENT_BYTES + len(event.call.arguments)
    if isinstance(event, (ItemAdded, PartAdded)):
        return _EVENT_BYTES
    return _EVENT_BYTES + _response_bytes(event.response)


def _item_bytes(item: OutputItem) -> int:
    return len(item.text) + (len(item.call.arguments) if item.call is not None else 0)


def _response_bytes(response: Response) -> int:
    settings = response.settings
    size = len(settings.instructions or "")
    for item in response.output:
        size += _item_bytes(item)
    for key, value in settings.metadata.items():
        size += len(key) + len(value)
    return size


class Follower(Protocol):
    """Who is told that a log has grown. Both calls must return at once and may not raise."""

    def wake(self) -> None: ...

    def queue_update(self, cursor: "Cursor", update: QueueUpdate) -> None: ...


class ResponseLog:
    """The events of one response, in memory.

    Bound: the queue's, which looks at `size_bytes` and ends a response that passes it.
    """

    __slots__ = (
        "_measured",
        "_measured_bytes",
        "_opened",
        "attempt",
        "cursors",
        "ended",
        "events",
        "response_id",
    )

    def __init__(self, response_id: str) -> None:
        self.response_id = response_id
        self.attempt = 0
        self.events: list[Event] = []
        self.cursors: tuple[Cursor, ...] = ()
        self.ended = False
        self._measured = 0
        self._measured_bytes = 0
        self._opened: list[int] = []
        """Numbers of the events that opened an output item."""

    def append(self, attempt: int, number: int, events: Sequence[Event]) -> None:
        """Add `events`, the first of which has `number`, and wake who follows.

        Raises Refused, changing nothing, when `attempt` or `number` is not the expected one or the log
        has ended.
        """
        mine = self.events
        if attempt != self.attempt or number != len(mine) or self.ended:
            raise Refused(
                f"{self.response_id}: event {number} of attempt {attempt} is not event {len(mine)} "
                f"of attempt {self.attempt}" + (" (ended)" if self.ended else "")
            )
        mine += events
        if len(events) != 1 or type(events[0]) is not TextDelta:  # nearly never
            self._note(number, events)
        for cursor in self.cursors:
            cursor.follower.wake()

    def _note(self, first: int, events: Sequence[Event]) -> None:
        for number, event in enumerate(events, first):
            if isinstance(event, ItemAdded):
                self._opened.append(number)
            elif isinstance(event, _TERMINAL):
                self.ended = True

    @property
    def asked(self) -> Response:
        """The response as it was when it was asked for."""
        first = self.events[0]
        assert isinstance(first, ResponseQueued)
        return first.response

    @property
    def size_bytes(self) -> int:
        """About what the log takes. Counts what is new since it was last asked."""
        for event in self.events[self._measured :]:
            if type(event) is TextDelta:  # nearly all
                self._measured_bytes += _EVENT_BYTES + len(event)
            else:
                self._measured_bytes += size_bytes(event)
        self._measured = len(self.events)
        return self._measured_bytes

    def output_index(self, number: int) -> int:
        """Which output item event `number` belongs to."""
        return bisect_right(self._opened, number) - 1

    def attach(self, after: int, follower: Follower, *, queue_updates: bool = False) -> "Cursor":
        """A cursor behind event number `after` (-1: from the start); `follower` is woken from now on."""
        cursor = Cursor(self, after + 1, follower, queue_updates)
        self.cursors += (cursor,)
        return cursor

    def announce(self, update: QueueUpdate) -> None:
        """Tell the followers that asked for it something that is not in the log."""
        for cursor in self.cursors:
            if cursor.queue_updates:
                cursor.follower.queue_update(cursor, update)


class Cursor:
    """How far one follower has read one log."""

    __slots__ = ("codec_state", "follower", "lane", "log", "next_number", "queue_updates")

    def __init__(self, log: ResponseLog, next_number: int, follower: Follower, queue_updates: bool) -> None:
        self.log = log
        self.next_number = next_number
        self.follower = follower
        self.lane: str | None = None
        """The `stream_id` under which the follower sees this response."""
        self.queue_updates = queue_updates
        self.codec_state: object = None
        """For the codec to remember what the frames of this response have in common."""

    @property
    def response_id(self) -> str:
        return self.log.response_id

    @property
    def pending(self) -> int:
        """How many events wait to be taken."""
        return len(self.log.events) - self.next_number

    @property
    def done(self) -> bool:
        """True when the log has ended and everything in it was taken."""
        return self.log.ended and self.next_number == len(self.log.events)

    def take(self, max_events: int, max_bytes: int) -> list[Event]:
        """The next events, as many as both limits allow but at least one; the cursor moves behind them."""
        start = self.next_number
        events = self.log.events[start : start + max_events]
        size = 0
        for count, event in enumerate(events):
            size += _EVENT_BYTES + len(event) if type(event) is TextDelta else size_bytes(event)
            if size > max_bytes and count:
                del events[count:]
                break
        self.next_number = start + len(events)
        return events

    def close(self) -> None:
        """Stop following. Closing twice is harmless."""
        self.log.cursors = tuple(cursor for cursor in self.log.cursors if cursor is not self)
