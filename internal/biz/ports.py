"""What the rules need from outside: the queue, the history, the engines, the sockets, the meters.

Adapters in `data`, `generator`, `server` and `metrics` implement these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from internal.biz.errors import EngineLost
from internal.biz.events import Event, QueueUpdate
from internal.biz.generation import Chunk, Delivery, Job
from internal.biz.log import Cursor, Follower
from internal.biz.models import Backlog, Condition, Message, Order, Request, Response, WorkerInfo


class Append(Protocol):
    """Events for one log: the first has `number`; `attempt` and `receipt` are the delivery's.

    Read only during the call that it is passed to.
    """

    @property
    def response_id(self) -> str: ...

    @property
    def attempt(self) -> int: ...

    @property
    def receipt(self) -> object: ...

    @property
    def number(self) -> int: ...

    @property
    def events(self) -> Sequence[Event]: ...


class Consumer(Protocol):
    """The side of a worker that the queue talks to. No call may raise or wait."""

    @property
    def slots(self) -> int:
        """How many responses it can run at a time."""

    @property
    def room(self) -> int:
        """How many more responses it can run at this moment."""

    def revoke(self, delivery: Delivery) -> None:
        """Its user cancelled it: stop generating, and say how far it came."""

    def lose(self, delivery: Delivery) -> None:
        """It is another worker's by now: stop generating, and write nothing more."""


class Resident(Protocol):
    """The model behind a worker, as the queue sees it. No call may raise or wait."""

    @property
    def condition(self) -> Condition: ...

    def order(self, order_id: str, order: Order) -> None:
        """Do what an operator wants, once, however often it is said."""


class Queue(Protocol):
    """Passes requests on to workers; what they answer comes back through one log for each response.

    Every call raises Unavailable while the queue cannot be reached.
    """

    async def publish(self, request: Request) -> None:
        """Open the log with `response.queued` and let a worker claim the request.

        Raises Unavailable when `max_pending` requests for its model wait already.
        """

    async def cancel(self, response_id: str) -> None:
        """Stop a response, waiting or running; its log ends with `response.incomplete`.

        Harmless when it has ended. Raises NotFound.
        """

    async def follow(
        self, response_id: str, after: int, follower: Follower, *, queue_updates: bool = False
    ) -> Cursor:
        """Follow a log behind event number `after` (-1: from the start).

        With `queue_updates` the follower is also told when its place in the queue changes.
        Raises NotFound, and InvalidRequest when `after` is past the end.
        """

    async def followers(self, response_id: str) -> int:
        """How many follow a response that still runs; 0 when it has ended or is unknown."""

    async def forget(self, response_id: str) -> None:
        """Drop the log of a response that has ended: who follows it reads it to its end, and nobody else
        finds it. One that is unknown is ignored. Raises Conflict while it runs."""

    async def unknown(self, responses: Sequence[Response]) -> Sequence[Response]:
        """Those that the queue has never had, or has forgotten."""

    async def backlog(self, model: str) -> Backlog:
        """What waits for `model`, and what runs."""

    async def workers(self) -> Sequence[WorkerInfo]:
        """The workers that live, those included that take nothing."""

    async def order(self, model: str, order_id: str, order: Order) -> None:
        """Tell all workers of `model` that live what an operator wants. May be lost; their conditions say
        when it is done."""


class WorkQueue(Protocol):
    """The workers' side of the queue. A call that raises Unavailable may be repeated as it was."""

    async def claim(self, model: str, consumer: Consumer) -> Sequence[Delivery]:
        """The next requests for `model`, fair between users: at least one, at most `consumer.room`.

        Waits, also while the queue cannot be reached. Cancelling loses nothing, and is a `pause`. From now on
        the consumer counts as a worker for `model`, until it leaves or pauses.
        """

    def pause(self, model: str, consumer: Consumer) -> None:
        """It claims nothing until it does again, and does not count meanwhile. What it has, it may finish."""

    def attend(self, model: str, resident: Resident) -> None:
        """There is a worker for `model`, whether it claims or not, until it leaves. To be said again when the
        condition of its model is another one."""

    def leave(self, model: str, consumer: Consumer) -> None:
        """It claims nothing more, and is gone. What it has, it may finish."""

    async def forsake(
        self, model: str, consumer: Consumer, deliveries: Sequence[Delivery]
    ) -> Sequence[Delivery]:
        """The worker's process is about to end, and these with it, of which nothing more is written: others
        may have them at once, as those of a worker that died. It is gone, as with `leave`.

        Returns those that nobody else could take: the queue ends with this process.
        """

    async def append(self, step: Sequence[Append]) -> Sequence[Append]:
        """Write the events of one step, all responses at once. The event that ends a log settles its
        delivery too.

        Returns what was refused because it is not the next of its log: the caller has lost that delivery.
        """

    def announce(self, delivery: Delivery, update: QueueUpdate) -> None:
        """Tell the followers something that does not enter the log. May be lost."""

    async def retry(self, delivery: Delivery, reason: str) -> None:
        """Give the request back for another attempt; after `max_attempts` it is a dead letter."""

    async def release(self, delivery: Delivery) -> None:
        """Give the request back as it is, for another worker: this does not count as an attempt."""


class History(Protocol):
    """What was said, turn by turn, so that a response can continue an earlier one.

    A turn is the request's messages and the answer to them. It follows a response
    (`settings.previous_response_id`) or the last answer of a conversation (`settings.conversation_id`), or
    what another turn of the conversation followed (`settings.replaces`), which from then on stands aside.
    Every call raises Unavailable while the storage cannot be reached, and may then be repeated.
    """

    async def check(self, request: Request, owner: str | None) -> None:
        """Whether the request may continue what it names.

        Raises NotFound when there is no such response or conversation, or it is not `owner`'s (None:
        whoever knows a response's id may continue it), or what it replaces is not in the conversation, and
        Conflict while an answer there still runs.
        """

    async def begin(self, request: Request, owner: str | None, *, begins: bool, wants_title: bool) -> None:
        """Store the turn, before the request is published. Idempotent.

        `begins`: its conversation begins with it, and is stored too. `wants_title`: a model is to find the
        conversation a title, if it has none. Raises as `check`, and then stores nothing: of two turns at once
        that continue a conversation one is refused.
        """

    async def begin_batch(
        self, requests: Sequence[Request], owner: str | None, *, begins: bool, wants_title: bool
    ) -> None:
        """The same for a turn that asks several models: all of it is stored, or nothing. The requests are
        those of one batch, in their order, and differ in nothing else but their models.

        The conversation continues from the answer of the first model whose answer did not fail, unless
        another one is chosen (BatchStore).
        """

    async def before(self, requests: Sequence[Request], max_chars: int) -> Sequence[tuple[Message, ...]]:
        """What was said before each of these, the oldest first: the newest turns, up to the first that goes
        beyond `max_chars` (0: as many as are kept in mind), and the system messages of the very first turn.
        What is forgotten is missing."""

    async def finish(self, responses: Sequence[Response]) -> None:
        """Store how responses ended, before their logs say so. Those that were never begun are ignored.

        Idempotent: of what several attempts at one response say, the latest attempt's counts. What did not
        fail is what its conversation continues from.
        """

    async def unfinished(self, before: float, after_id: str, limit: int) -> Sequence[Response]:
        """Responses that were begun before this time (Unix seconds) and have not ended, by their ids, those
        behind `after_id`."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do: tokens of context (0: no limit), responses at a time, which may be fewer from
    one step to the next. `remembers`: it looks at what was said before. What it is asked for beyond its
    features was refused before it hears of it."""

    context_length: int
    slots: int
    remembers: bool = True


class Sink(Protocol):
    """Takes the chunks of one engine step: an engine's threads `put` them; one that lives on the event loop
    says them with `give`, which never waits, and waits for `room`."""

    def put(self, step: list[Chunk]) -> None:
        """Called on any thread but the event loop's. Blocks while the loop lags."""

    def give(self, step: list[Chunk]) -> bool:
        """Called on the event loop. Never blocks. True: wait for `room` before the next step."""

    async def room(self) -> None:
        """Return when the loop has caught up."""

    def fail(self, error: EngineLost) -> None:
        """The engine cannot go on in this process, which ends for it. Called on any thread; never blocks.
        Nothing is taken any more, and `stop` is not called: it might wait for ever."""


Progress = Callable[[float], None]
"""Told how much of a model is loaded, 0 to 1, from any thread."""


class Generator(Protocol):
    """An engine. It never computes on the event loop's thread."""

    @property
    def capabilities(self) -> Capabilities:
        """Valid once `start` has returned, and from then on, also while the model is unloaded."""

    async def start(self, sink: Sink, progress: Progress) -> None:
        """Load the model, also again after `stop`. `stop` is called after this in any case, also when it
        fails or is cancelled.

        Raises GenerationFailed with what to do about it, and EngineLost when that would fail in this process
        for ever.
        """

    def submit(self, job: Job) -> None:
        """Begin a job; at most `slots` at a time. Returns at once; all else is said through the sink."""

    def cancel(self, job: Job) -> None:
        """End a job within one step with FinishReason.CANCELLED. `job` is the object that was submitted:
        two attempts at one response are two jobs. One that has ended, or was never submitted, is ignored."""

    async def stop(self) -> None:
        """End the engine's threads, and give back the memory of the model. Jobs that still run end without a
        word. Stopping what does not run is harmless."""


class Connection(Protocol):
    """One socket, as a session sees it."""

    @property
    def remote(self) -> str:
        """The client's address."""

    @property
    def buffered_bytes(self) -> int:
        """What the transport still holds."""

    def frame(self, payloads: Sequence[bytes]) -> bytes:
        """Each payload as one text frame, to be given to `write`; empty when the socket closes."""

    def write(self, frames: bytes) -> bool:
        """Write what `frame` returned.

        True when the transport now holds more than its high-water mark: `drain` before the next one.
        """

    def ping(self) -> None: ...

    async def drain(self) -> None:
        """Return when the transport is no longer congested. Raises ConnectionError when it is lost. Whoever
        is cancelled here may wait again."""

    def close(self, code: int, reason: str) -> None:
        """Send a close frame, and end the connection also when the peer does not answer."""

    def abort(self) -> None:
        """Drop the connection at once."""


class Meter(Protocol):
    """What the rules count. Nothing here is called once per token."""

    def session_opened(self) -> None: ...

    def session_closed(self, code: int) -> None: ...

    def response_ended(self, model: str, status: str, seconds: float) -> None: ...

    def first_token(self, model: str, seconds: float) -> None: ...

    def token_gap(self, model: str, seconds: float, tokens: int) -> None:
        """`tokens` responses got a token this long after their last one: once per engine step."""
