"""The dialogue on one WebSocket: what the client asked for, and the responses it follows.

Knows commands and events, not frames or JSON: a codec translates. A session is cheap while it idles
(100,000 of them share a machine), so whatever it may never need is made on first use.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from internal.biz.chat import Ask, Chat
from internal.biz.close import CloseCode
from internal.biz.commands import Cancel, Command, Create, Resume
from internal.biz.errors import InvalidRequest, NotFound, SluiceError, TooManyRequests, Unavailable
from internal.biz.events import Event, QueueUpdate, join_deltas
from internal.biz.flusher import Flusher
from internal.biz.ids import new_id, new_ids
from internal.biz.lanes import Lane, Lanes
from internal.biz.log import Cursor
from internal.biz.models import Caller, Settings, Truncation
from internal.biz.ports import Connection

log = logging.getLogger(__name__)

EVENTS_PER_WRITE = 128
BYTES_PER_WRITE = 65536
"""Bounds of one write: what is more waits until the transport has room."""
VALID_FOR_S = 30.0
"""After so long it is looked again, at the next message, whether the client is still let in."""
EVENTS_PER_JOIN = 4096
"""How far a lagging follower catches up in one write; adjacent deltas are joined."""


class Codec(Protocol):
    """One dialect: client frames to commands, events to payloads. Has no state, or is one session's own: then
    it is told of each event once, in order."""

    continues: bool
    """True when every message continues the dialogue of the socket."""

    def greeting(self, session_id: str) -> list[bytes]:
        """What a client is told first."""

    def decode(self, data: bytes) -> Command:
        """Raises InvalidRequest."""

    def lane(self, data: bytes) -> str | None:
        """The lane that a frame was for which could not be carried out, if that can be told."""

    def encode(self, cursor: Cursor, number: int, events: Sequence[Event]) -> list[bytes]:
        """What `events`, the first of which has `number`, are in this dialect: a payload per frame."""

    def encode_update(self, cursor: Cursor, update: QueueUpdate) -> bytes | None: ...

    def encode_error(self, error: SluiceError, lane: str | None) -> bytes: ...


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """`max_in_flight`: responses running or waiting in one session. `write_timeout_s`: how long a write
    may make no progress (0: for ever)."""

    max_in_flight: int
    write_timeout_s: float


class Session:
    """One client's dialogue. Implements Follower, Flushable and Pingable.

    Owns its writer and starter tasks; `close` ends them. Bound: `max_in_flight` responses followed or
    waiting; what a slow client has not read stays in the logs.
    """

    __slots__ = (
        "_begins",
        "_chat",
        "_codec",
        "_conversation_id",
        "_cursors",
        "_dirty",
        "_flusher",
        "_is_own",
        "_lanes",
        "_limits",
        "_tasks",
        "_valid_until",
        "_writer",
        "caller",
        "closed",
        "connection",
        "draining",
        "responses",
        "session_id",
        "unanswered_ping",
    )

    def __init__(
        self,
        session_id: str,
        caller: Caller,
        connection: Connection,
        codec: Codec,
        chat: Chat,
        flusher: Flusher,
        limits: SessionLimits,
        conversation_id: str | None = None,
    ) -> None:
        """`conversation_id`: what every message continues, where the codec says that they do; None: a
        conversation of the session's own."""
        self.session_id = session_id
        self.caller = caller
        self.connection = connection
        self.closed = False
        self.draining = False
        self.unanswered_ping = 0
        self.responses = 0
        self._codec = codec
        self._chat = chat
        self._flusher = flusher
        self._limits = limits
        self._dirty = False
        self._cursors: tuple[Cursor, ...] = ()
        self._lanes: Lanes | None = None
        self._tasks: set[asyncio.Task[None]] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._conversation_id = conversation_id
        self._is_own = False
        self._begins = False
        self._valid_until = 0.0

    def greet(self) -> None:
        """Say what a client is told first."""
        if payloads := self._codec.greeting(self.session_id):
            self._send(payloads)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    async def receive(self, data: bytes) -> None:
        """Carry out one frame of the client. What is wrong with it is told to the client.

        While the client does not read what it was sent, only a cancel is heard; everything else waits,
        and so does the client's socket.
        """
        if time.time() >= self._valid_until and not await self._is_still_valid():
            self.connection.close(CloseCode.UNAUTHENTICATED, "your login has expired; log in again")
            return
        command: Command | None = None
        try:
            command = self._codec.decode(data)
            if isinstance(command, Cancel):
                await self._chat.cancel(self.caller, command.response_id)
                return
            await self._caught_up()
            if isinstance(command, Create):
                await self._create(command)
            elif isinstance(command, Resume):
                await self._resume(command)
            else:
                self._send(command.payloads)
        except SluiceError as error:
            is_for = command.lane if isinstance(command, Create | Resume) else self._codec.lane(data)
            await self.refuse(error, is_for)

    async def _is_still_valid(self) -> bool:
        """Look again who the client is: tokens expire, keys are revoked, users are disabled."""
        now, until = time.time(), self.caller.until
        if until is not None and now >= until:
            return False
        try:
            if not await self._chat.is_still_valid(self.caller):
                return False
        except Unavailable:
            log.debug("cannot look up a caller")  # and be it only to tell them what else is not available
        self._valid_until = now + VALID_FOR_S if until is None else min(until, now + VALID_FOR_S)
        return True

    async def refuse(self, error: SluiceError, lane: str | None = None) -> None:
        """Send an error, once the client has read what it was sent."""
        await self._caught_up()
        self.tell(error, lane)

    async def _caught_up(self) -> None:
        if self._writer is not None:
            await asyncio.wait([self._writer])

    def tell(self, error: SluiceError, lane: str | None = None) -> None:
        """Send an error."""
        self._send([self._codec.encode_error(error, lane)])

    async def _create(self, create: Create) -> None:
        self._require_room(create.count)
        if self.draining:
            raise _restarting()
        if self._lanes is None:
            self._lanes = Lanes()
        lane = self._lanes.get(create.lane)
        if lane is None:
            await self._start(self._lanes.open(create.lane), create)
        else:
            lane.add(create)

    def _require_room(self, count: int = 1) -> None:
        if self.in_flight + count > self._limits.max_in_flight:
            raise TooManyRequests(
                f"this connection has {self.in_flight} messages in flight already, of the "
                f"{self._limits.max_in_flight} that are allowed; wait for an answer first",
                code="too_many_in_flight",
            )

    @property
    def in_flight(self) -> int:
        """Responses followed, plus messages that wait for their turn."""
        return len(self._cursors) + (self._lanes.to_come if self._lanes else 0)

    async def _start(self, lane: Lane, create: Create) -> None:
        """Submit what stands at the head of a lane; when that fails, tell why and try the next."""
        following: Create | None = create
        while following is not None:
            create, following = following, None
            lane.starting = create
            try:
                await (self._submit_batch if create.models else self._submit)(lane, create)
            except SluiceError as error:
                self.tell(error, lane.name)
            finally:
                lane.starting = None
            if not lane.running:
                following = lane.next()
        if not lane.running:
            self._drop(lane)

    def _drop(self, lane: Lane) -> None:
        if self._lanes is not None:
            self._lanes.drop(lane)
            if not self._lanes:
                self._lanes = None

    async def _submit(self, lane: Lane, create: Create) -> None:
        ask = self._continued(create.ask) if self._codec.continues else create.ask
        # Noted before anything is published, so that `close` can tell of it however far this came.
        response_id = create.response_id or new_id("resp")
        lane.running = [response_id]
        try:
            try:
                await self._chat.submit(self.caller, ask, response_id)
            except (NotFound, InvalidRequest) as error:
                if not (self._is_own and error.param == "conversation"):
                    raise
                # It was deleted, is full, or idled for so long that it was forgotten.
                self._conversation_id = None
                await self._chat.submit(self.caller, self._continued(ask), response_id)
            self._begins = False
            self.responses += 1
            await self._follow(response_id, -1, create.lane, create.queue_updates)
        except Exception:
            lane.running = []
            raise

    async def _submit_batch(self, lane: Lane, create: Create) -> None:
        """Ask several models, each in a lane of the client's view. What becomes of one does not concern the
        others."""
        lane.running = ids = new_ids("resp", create.count)
        try:
            submitted = await self._chat.submit_batch(
                self.caller, create.ask, create.models, new_id("batch"), tuple(ids)
            )
        except Exception:
            lane.running = []
            raise
        self.responses += create.count
        for response_id, model in zip(tuple(ids), create.models, strict=True):
            name = model if create.lane is None else f"{create.lane}:{model}"
            try:
                if (refusal := submitted.refused.get(response_id)) is not None:
                    raise refusal
                await self._follow(response_id, -1, name, create.queue_updates)
            except SluiceError as error:
                lane.running.remove(response_id)
                self.tell(error, name)

    def _continued(self, ask: Ask) -> Ask:
        if self._conversation_id is None:
            self._conversation_id, self._begins, self._is_own = new_id("conv"), True, True
        settings = Settings(conversation_id=self._conversation_id, truncation=Truncation.AUTO)
        return Ask(ask.turn, ask.model, settings, self._begins)

    async def _resume(self, resume: Resume) -> None:
        self._require_room()
        if any(cursor.response_id == resume.response_id for cursor in self._cursors):
            raise InvalidRequest(f"this connection follows {resume.response_id} already", param="response_id")
        await self._follow(resume.response_id, resume.after, resume.lane, resume.queue_updates)

    async def _follow(self, response_id: str, after: int, lane: str | None, queue_updates: bool) -> None:
        cursor = await self._chat.follow(self.caller, response_id, after, self, queue_updates=queue_updates)
        cursor.lane = lane
        self._cursors += (cursor,)
        self.wake()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """There is more in a log that this session follows."""
        if not self._dirty:
            self._dirty = True
            self._flusher.add(self)

    def queue_update(self, cursor: Cursor, update: QueueUpdate) -> None:
        # Whoever lags hears only the events: an update is soon out of date.
        if self._writer is None and not cursor.pending:
            payload = self._codec.encode_update(cursor, update)
            if payload is not None:
                self._send([payload])

    def collect(self) -> bytes:
        """All ready events, encoded and framed, for one write; none while the writer task is at work."""
        self._dirty = False
        if self._writer is not None:
            return b""
        if len(self._cursors) == 1:
            cursor = self._cursors[0]
            events, number = cursor.log.events, cursor.next_number
            if number + 1 == len(events) and not cursor.log.ended:  # nearly always
                cursor.next_number = number + 1
                payloads = self._codec.encode(cursor, number, (events[number],))
                return self.connection.frame(payloads) if payloads else b""
        return self._collect_all()

    def _collect_all(self) -> bytes:
        payloads: list[bytes] = []
        more = done = False
        for cursor in self._cursors:
            number = cursor.next_number
            room = BYTES_PER_WRITE - sum(map(len, payloads))
            if room > 0:
                events = cursor.take(EVENTS_PER_WRITE, room)
                payloads += self._codec.encode(cursor, number, events)
            more = more or cursor.pending > 0
            done = done or cursor.done
        if done:
            self._drop_finished()
        if more:
            self.lag()
        return self.connection.frame(payloads) if payloads else b""

    def _send(self, payloads: list[bytes]) -> None:
        frames = self.connection.frame(payloads)
        if frames and self.connection.write(frames):
            self.lag()

    def lag(self) -> None:
        """The client is behind: the writer task takes over until it has caught up."""
        if self._writer is None and not self.closed:
            self._writer = asyncio.create_task(self._write_backlog())

    async def _write_backlog(self) -> None:
        """Write at the client's pace, adjacent deltas joined, until it has caught up."""
        try:
            while await self._drained():
                if not self._write_joined():
                    return
            reason = "reading too slowly; connect again and resume"
            self.connection.close(CloseCode.WRITE_DEADLINE, reason)
        except ConnectionError:
            return
        except Exception as error:
            self._failed(error)
        finally:
            self._writer = None

    async def _drained(self) -> bool:
        """Wait until the transport has room. False when nothing moved for the write deadline."""
        connection = self.connection
        while True:
            before = connection.buffered_bytes
            try:
                async with asyncio.timeout(self._limits.write_timeout_s or None):
                    await connection.drain()
                return True
            except TimeoutError:
                if connection.buffered_bytes >= before:
                    return False

    def _write_joined(self) -> bool:
        """Write the next part of the backlog; False when it is gone and the client keeps up."""
        payloads: list[bytes] = []
        for cursor in self._cursors:
            number = cursor.next_number
            room = BYTES_PER_WRITE - sum(map(len, payloads))
            events = cursor.take(EVENTS_PER_JOIN, room) if room > 0 else []
            for last, event in join_deltas(number, events):
                payloads += self._codec.encode(cursor, last, [event])
        self._drop_finished()
        frames = self.connection.frame(payloads) if payloads else b""
        congested = bool(frames) and self.connection.write(frames)
        return congested or any(cursor.pending for cursor in self._cursors)

    def _drop_finished(self) -> None:
        """Let go of the responses that were written to their end, and start what waited for them."""
        finished = [cursor for cursor in self._cursors if cursor.done]
        if not finished:
            return
        self._cursors = tuple(cursor for cursor in self._cursors if not cursor.done)
        for cursor in finished:
            cursor.close()
            lane = self._lanes.of(cursor.response_id) if self._lanes else None
            if lane is None:
                continue
            lane.running.remove(cursor.response_id)
            if lane.running:
                continue
            if (following := lane.next()) is not None:
                self._spawn_start(lane, following)
            else:
                self._drop(lane)

    def _spawn_start(self, lane: Lane, create: Create) -> None:
        if self.closed:
            return
        lane.starting = create
        if self._tasks is None:
            self._tasks = set()
        task = asyncio.create_task(self._start(lane, create))
        self._tasks.add(task)
        task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[None]) -> None:
        if self._tasks is not None:
            self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """Our bug, and this session's end."""
        log.error("session failed", extra={"session": self.session_id}, exc_info=error)
        self.connection.close(CloseCode.INTERNAL_ERROR, "internal error")

    # ── life ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def idle(self) -> bool:
        """True when nothing is in flight and everything was handed to the transport."""
        return not self.in_flight and self._writer is None

    def drain(self) -> None:
        """Take no new requests; those that wait are refused, those that run finish."""
        self.draining = True
        for lane in self._lanes or ():
            while lane.next() is not None:
                self.tell(_restarting(), lane.name)

    def ping(self) -> bool:
        if self._writer is not None:
            return False
        self.connection.ping()
        return True

    def pong(self) -> None:
        self.unanswered_ping = 0

    def lost(self) -> None:
        if self._writer is None:
            self.connection.abort()
        else:
            # While the client lags it is the write deadline that watches: a pong may be stuck behind a
            # message that waits until the client has caught up.
            self.unanswered_ping = 0

    async def close(self) -> list[str]:
        """End the session's tasks, stop following. Returns the responses that it followed and that run, those
        left out that nobody has to wait for.

        The socket is the connection's business.
        """
        self.closed = True
        tasks = [*(self._tasks or ()), *([self._writer] if self._writer else ())]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        followed = {cursor.response_id for cursor in self._cursors}
        running = [
            cursor.response_id
            for cursor in self._cursors
            if not (cursor.log.ended or cursor.log.asked.settings.background)
        ]
        started = self._lanes.running if self._lanes else ()
        running += [response_id for response_id in started if response_id not in followed]
        for cursor in self._cursors:
            cursor.close()
        self._cursors = ()
        self._lanes = None
        return running


def _restarting() -> Unavailable:
    return Unavailable("the server is restarting; connect again in a moment", code="restarting")
