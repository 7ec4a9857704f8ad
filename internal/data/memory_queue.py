"""The queue port in the memory of one process: dicts and wake-ups."""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from internal.biz.errors import GenerationFailed, InvalidRequest, NotFound, Refused, Unavailable
from internal.biz.events import QueueUpdate, ResponseQueued
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.log import Cursor, Follower, ResponseLog
from internal.biz.models import Request, Response, Settings, Status
from internal.biz.ports import Append, Consumer
from internal.biz.scheduler import FairScheduler

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 1.0
POSITIONS_INTERVAL_S = 0.1
EVENTS_PER_MEASURE = 64
"""How often the size of a growing log is looked at."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """`retain_s`: how long a log outlives its response. `max_pending`: requests that may wait (0: no
    limit). `max_age_s`: requests that waited longer fail (0: never). `max_attempts`: tries per request.
    `max_response_bytes` bounds one log, `max_retained` and `max_retained_bytes` all finished ones."""

    retain_s: float = 600.0
    max_pending: int = 1024
    max_age_s: float = 600.0
    max_attempts: int = 3
    max_response_bytes: int = 16 << 20
    max_retained: int = 100_000
    max_retained_bytes: int = 256 << 20


_RETIRED = Request("", "", "", 0.0, (), Settings())
"""Takes the place of a request that has ended: its messages may be large, and nobody asks for them."""


class _Entry(ResponseLog):
    """A log and its request. `consumer` is who works on it; None while it waits or after its end."""

    __slots__ = ("consumer", "measure_at", "request")

    def __init__(self, request: Request) -> None:
        super().__init__(request.response_id)
        self.request = request
        self.consumer: Consumer | None = None
        self.measure_at = EVENTS_PER_MEASURE


class _Line:
    """The waiting requests of one model, and the workers that wait for one."""

    __slots__ = ("claimers", "consumers", "scheduler", "watched")

    def __init__(self) -> None:
        self.scheduler = FairScheduler()
        self.claimers: deque[asyncio.Future[None]] = deque()
        self.consumers: list[Consumer] = []
        """Those that wait in `claim`."""
        self.watched: dict[str, int] = {}
        """Last told position of the requests whose followers want to know."""

    @property
    def room(self) -> int:
        """How many requests the waiting workers take at once: as many do not have to wait."""
        room = 0
        for consumer in self.consumers:
            room += consumer.room
        return room


class MemoryQueue:
    """Implements Queue. `settle` stores how a response ended that no worker will end."""

    def __init__(self, limits: QueueLimits, settle: Callable[[Sequence[Response]], Awaitable[None]]) -> None:
        self._limits = limits
        self._settle = settle
        self._entries: dict[str, _Entry] = {}
        self._lines: dict[str, _Line] = {}
        self._ended: OrderedDict[str, float] = OrderedDict()
        self._ended_bytes = 0
        self._pending = 0
        """Requests in all lines."""
        self._positions_timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Fail what waited too long and forget what ended long ago, until cancelled."""
        try:
            while True:
                await asyncio.sleep(SWEEP_INTERVAL_S)
                await self._expire()
                self._forget()
        finally:
            if self._positions_timer is not None:
                self._positions_timer.cancel()

    def depth(self, model: str) -> int:
        return len(self._line(model).scheduler)

    def _line(self, model: str) -> _Line:
        line = self._lines.get(model)
        if line is None:
            self._lines[model] = line = _Line()
        return line

    # ── to the worker ────────────────────────────────────────────────────────────────────────────

    async def publish(self, request: Request) -> None:
        limit = self._limits.max_pending
        line = self._line(request.model)
        if limit and self._pending >= limit and self._waiting() >= limit:
            raise Unavailable(f"{limit} requests wait already; try again in a moment", code="queue_full")
        self._entries[request.response_id] = entry = _Entry(request)
        line.scheduler.push(request)
        self._pending += 1
        queued = ResponseQueued(Response.of(request, Status.QUEUED), self._position(entry))
        entry.append(0, 0, [queued])
        self._wake_claimer(line)

    def _waiting(self) -> int:
        count = 0
        for line in self._lines.values():
            count += max(0, len(line.scheduler) - line.room)
        return count

    def _wake_claimer(self, line: _Line) -> None:
        while line.claimers:
            claimer = line.claimers.popleft()
            if not claimer.done():
                claimer.set_result(None)
                return

    async def claim(self, model: str, consumer: Consumer) -> Delivery:
        line = self._line(model)
        while (request := line.scheduler.pop()) is None:
            claimer = asyncio.get_running_loop().create_future()
            line.claimers.append(claimer)
            line.consumers.append(consumer)
            try:
                await claimer
            except asyncio.CancelledError:
                if claimer.done() and not claimer.cancelled():
                    self._wake_claimer(line)
                raise
            finally:
                line.consumers.remove(consumer)
        self._pending -= 1
        entry = self._entries[request.response_id]
        entry.attempt += 1
        entry.consumer = consumer
        line.watched.pop(request.response_id, None)
        self._tell_positions()
        return Delivery(request, entry.attempt, tuple(entry.events), entry)

    async def retry(self, delivery: Delivery, reason: str) -> None:
        entry = self._current(delivery)
        if entry is None:
            return
        entry.consumer = None
        if delivery.attempt >= self._limits.max_attempts:
            log.error(
                "dead letter",
                extra={"response": delivery.request.response_id, "reason": reason},
            )
            await self._fail(entry, GenerationFailed(reason, code="max_attempts_exceeded"))
            return
        line = self._line(delivery.request.model)
        line.scheduler.push_back(delivery.request)
        self._pending += 1
        self._wake_claimer(line)

    async def ack(self, delivery: Delivery) -> None:
        entry = self._current(delivery)
        if entry is not None:
            entry.consumer = None
            self._retire(entry)

    def _current(self, delivery: Delivery) -> _Entry | None:
        """The entry of a delivery, unless it belongs to a later attempt by now."""
        entry = delivery.receipt
        assert isinstance(entry, _Entry)
        return entry if entry.attempt == delivery.attempt else None

    # ── to the followers ─────────────────────────────────────────────────────────────────────────

    async def append(self, step: Sequence[Append]) -> Sequence[str]:
        refused: list[str] = []
        for item in step:
            entry: _Entry = item.receipt  # type: ignore[assignment]
            try:
                entry.append(item.attempt, item.number, item.events)
            except Refused as error:
                log.warning("append refused: %s", error.message)
                refused.append(item.response_id)
                continue
            if len(entry.events) >= entry.measure_at and self._is_too_long(entry):
                refused.append(item.response_id)
                too_long = f"the answer is longer than {self._limits.max_response_bytes} bytes"
                await self._fail(entry, GenerationFailed(too_long, code="answer_too_long"))
        return refused

    def _is_too_long(self, entry: _Entry) -> bool:
        entry.measure_at = len(entry.events) + EVENTS_PER_MEASURE
        return not entry.ended and entry.size_bytes > self._limits.max_response_bytes

    def announce(self, response_id: str, update: QueueUpdate) -> None:
        entry = self._entries.get(response_id)
        if entry is not None:
            entry.announce(update)

    async def follow(
        self, response_id: str, after: int, follower: Follower, *, queue_updates: bool = False
    ) -> Cursor:
        entry = self._require(response_id)
        if after >= len(entry.events):
            raise InvalidRequest(
                f"starting_after is {after}, but the last event of {response_id} is {len(entry.events) - 1}",
                param="starting_after",
            )
        if queue_updates and entry.attempt == 0:
            watched = self._line(entry.request.model).watched
            watched[response_id] = self._position(entry)
        return entry.attach(after, follower, queue_updates=queue_updates)

    def _require(self, response_id: str) -> _Entry:
        entry = self._entries.get(response_id)
        if entry is None:
            raise NotFound(
                f"there is no response {response_id!r}, or it ended too long ago",
                code="response_not_found",
                param="response_id",
            )
        return entry

    async def followers(self, response_id: str) -> int:
        entry = self._entries.get(response_id)
        return len(entry.cursors) if entry is not None and not entry.ended else 0

    def _position(self, entry: _Entry) -> int:
        request = entry.request
        line = self._line(request.model)
        room = line.room
        if len(line.scheduler) <= room:
            return 0
        return max(0, line.scheduler.position(request.user, request.response_id) - room)

    def _tell_positions(self) -> None:
        """Tell new positions to who asked, soon, and once for many moves."""
        if self._positions_timer is None and any(line.watched for line in self._lines.values()):
            loop = asyncio.get_running_loop()
            self._positions_timer = loop.call_later(POSITIONS_INTERVAL_S, self._send_positions)

    def _send_positions(self) -> None:
        self._positions_timer = None
        for line in self._lines.values():
            if not line.watched:
                continue
            room = line.room
            for place, response_id in enumerate(line.scheduler.order()):
                position = max(0, place - room)
                if line.watched.get(response_id, position) != position:
                    line.watched[response_id] = position
                    self.announce(response_id, QueueUpdate(position))

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────

    async def cancel(self, response_id: str) -> None:
        entry = self._require(response_id)
        if entry.ended:
            return
        if entry.consumer is not None:
            entry.consumer.revoke(response_id)
        elif self._unqueue(entry):
            await self._end(entry, Finished(FinishReason.CANCELLED))

    def _unqueue(self, entry: _Entry) -> bool:
        request = entry.request
        line = self._line(request.model)
        line.watched.pop(request.response_id, None)
        self._tell_positions()
        if line.scheduler.remove(request.user, request.response_id) is None:
            return False
        self._pending -= 1
        return True

    async def _fail(self, entry: _Entry, error: GenerationFailed) -> None:
        await self._end(entry, Finished(FinishReason.ERROR, error=error))

    async def _end(self, entry: _Entry, end: Finished) -> None:
        """End a response in the place of a worker."""
        entry.consumer = None
        # Raised first, so that no worker can append while the result is being stored.
        entry.attempt += 1
        last = Transcript(Delivery(entry.request, entry.attempt, tuple(entry.events), entry))
        await self._settle([last.finish(end)])
        entry.append(entry.attempt, last.number, last.events)
        self._retire(entry)

    async def _expire(self) -> None:
        if not self._limits.max_age_s:
            return
        before = time.time() - self._limits.max_age_s
        for line in list(self._lines.values()):
            for request in line.scheduler.expired(before):
                entry = self._entries.get(request.response_id)
                if entry is not None and self._unqueue(entry):
                    waited = f"the request waited longer than {self._limits.max_age_s:g} s"
                    await self._fail(entry, GenerationFailed(waited, code="request_expired"))

    def _retire(self, entry: _Entry) -> None:
        """Keep an ended log for those who come late, within bounds. Once is enough."""
        if entry.response_id in self._ended:
            return
        self._ended[entry.response_id] = time.monotonic()
        entry.request = _RETIRED
        self._ended_bytes += entry.size_bytes
        if self._is_full():
            self._forget()

    def _is_full(self) -> bool:
        limits = self._limits
        return self._ended_bytes > limits.max_retained_bytes or len(self._ended) > limits.max_retained

    def _forget(self) -> None:
        before = time.monotonic() - self._limits.retain_s
        while self._ended:
            response_id, ended_at = next(iter(self._ended.items()))
            if ended_at >= before and not self._is_full():
                return
            del self._ended[response_id]
            # Cursors that are still behind hold the log itself, and read it to its end.
            self._ended_bytes -= self._entries.pop(response_id).size_bytes
