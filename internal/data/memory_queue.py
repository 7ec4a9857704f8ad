"""The queue port in the memory of one process: dicts and wake-ups."""

import asyncio
import logging
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from internal.biz.errors import (
    GenerationFailed,
    InvalidRequest,
    Refused,
    Unavailable,
    still_running,
    unknown_response,
)
from internal.biz.events import QueueUpdate, ResponseQueued
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.log import Cursor, Follower, ResponseLog
from internal.biz.models import (
    Backlog,
    Condition,
    Order,
    Request,
    Response,
    Settings,
    Status,
    WorkerInfo,
)
from internal.biz.ports import Append, Consumer, Resident
from internal.biz.scheduler import FairScheduler
from internal.biz.version import VERSION

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 1.0
POSITIONS_INTERVAL_S = 0.1
EVENTS_PER_MEASURE = 64
"""How often the size of a growing log is looked at."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """`retain_s`: how long a log outlives its response. `max_pending`: requests that may wait for one model
    (0: no limit). `max_age_s`: requests that waited longer fail (0: never). `max_attempts`: tries for each.
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
    """A log and its request. `consumer` is who works on it, by `delivery`; None while it waits or after its
    end. `tries` are the attempts that count."""

    __slots__ = ("consumer", "delivery", "measure_at", "request", "tries")

    def __init__(self, request: Request) -> None:
        super().__init__(request.response_id)
        self.request = request
        self.consumer: Consumer | None = None
        self.delivery: Delivery | None = None
        self.tries = 0
        self.measure_at = EVENTS_PER_MEASURE


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a response ends that no worker will end."""

    entry: _Entry
    last: Transcript
    response: Response


class _Line:
    """The waiting requests of one model, and the workers that wait for one."""

    __slots__ = ("claimers", "consumers", "resident", "running", "scheduler", "watched")

    def __init__(self) -> None:
        self.scheduler = FairScheduler()
        self.claimers: deque[asyncio.Future[None]] = deque()
        self.consumers: dict[Consumer, None] = {}
        """Those that take requests: they have claimed, and did not give that up."""
        self.resident: Resident | None = None
        """The model of the one worker that a process has for it, until that leaves."""
        self.running = 0
        self.watched: dict[str, int] = {}
        """Last told position of the requests whose followers want to know."""

    @property
    def room(self) -> int:
        """How many requests the workers take at once: as many do not have to wait."""
        room = 0
        for consumer in self.consumers:
            room += consumer.room
        return room


class MemoryQueue:
    """Implements Queue and WorkQueue. `settle` stores how a response ended that no worker will end."""

    def __init__(self, limits: QueueLimits, settle: Callable[[Sequence[Response]], Awaitable[None]]) -> None:
        self._limits = limits
        self._settle = settle
        self._entries: dict[str, _Entry] = {}
        self._lines: dict[str, _Line] = {}
        self._ended: OrderedDict[str, float] = OrderedDict()
        self._ended_bytes = 0
        self._endings: list[_Ending] = []
        """What could not be stored yet."""
        self._positions_timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Fail what waited too long and forget what ended long ago, until cancelled."""
        try:
            while True:
                await asyncio.sleep(SWEEP_INTERVAL_S)
                await self._expire()
                self._forget()
                endings, self._endings = self._endings, []
                for ending in endings:
                    await self._conclude(ending)
        finally:
            if self._positions_timer is not None:
                self._positions_timer.cancel()

    async def unknown(self, responses: Sequence[Response]) -> Sequence[Response]:
        return [response for response in responses if response.id not in self._entries]

    async def backlog(self, model: str) -> Backlog:
        line = self._line(model)
        oldest_s = max(0.0, time.time() - line.scheduler.oldest) if len(line.scheduler) else 0.0
        return Backlog(len(line.scheduler), line.running, oldest_s)

    async def workers(self) -> Sequence[WorkerInfo]:
        host, now = socket.gethostname(), time.time()
        found = []
        for model, line in self._lines.items():
            resident = line.resident
            condition = resident.condition if resident is not None else Condition()
            taking = [(one.slots, one.slots - one.room) for one in line.consumers]
            for slots, busy in taking or ([] if resident is None else [(0, 0)]):
                found.append(WorkerInfo(model, host, model, slots, busy, now, VERSION, condition))
        return found

    async def order(self, model: str, order_id: str, order: Order) -> None:
        resident = self._line(model).resident
        if resident is not None:
            resident.order(order_id, order)

    def _line(self, model: str) -> _Line:
        line = self._lines.get(model)
        if line is None:
            self._lines[model] = line = _Line()
        return line

    # ── to the worker ────────────────────────────────────────────────────────────────────────────

    async def publish(self, request: Request) -> None:
        limit = self._limits.max_pending
        line = self._line(request.model)
        if limit and len(line.scheduler) >= limit + line.room:
            raise Unavailable(f"{limit} requests wait already; try again in a moment", code="queue_full")
        self._entries[request.response_id] = entry = _Entry(request)
        line.scheduler.push(request)
        workers = len(line.consumers)
        queued = ResponseQueued(Response.of(request, Status.QUEUED), self._position(entry), workers)
        entry.append(0, 0, [queued])
        self._wake_claimer(line)

    def _wake_claimer(self, line: _Line) -> None:
        while line.claimers:
            claimer = line.claimers.popleft()
            if not claimer.done():
                claimer.set_result(None)
                return

    async def claim(self, model: str, consumer: Consumer) -> Sequence[Delivery]:
        line = self._line(model)
        line.consumers[consumer] = None
        while not len(line.scheduler):
            claimer = asyncio.get_running_loop().create_future()
            line.claimers.append(claimer)
            try:
                await claimer
            except asyncio.CancelledError:
                self.pause(model, consumer)
                if claimer.done() and not claimer.cancelled():
                    self._wake_claimer(line)
                raise
        deliveries = []
        for _ in range(max(1, consumer.room)):
            if (request := line.scheduler.pop()) is None:
                break
            deliveries.append(self._deliver(request, consumer))
            line.running += 1
            line.watched.pop(request.response_id, None)
        if len(line.scheduler):
            self._wake_claimer(line)
        self._tell_positions()
        return deliveries

    def pause(self, model: str, consumer: Consumer) -> None:
        self._line(model).consumers.pop(consumer, None)
        self._tell_positions()

    def attend(self, model: str, resident: Resident) -> None:
        self._line(model).resident = resident

    def leave(self, model: str, consumer: Consumer) -> None:
        line = self._line(model)
        line.consumers.pop(consumer, None)
        line.resident = None

    async def forsake(
        self, model: str, consumer: Consumer, deliveries: Sequence[Delivery]
    ) -> Sequence[Delivery]:
        self.leave(model, consumer)
        return deliveries

    def _deliver(self, request: Request, consumer: Consumer) -> Delivery:
        entry = self._entries[request.response_id]
        entry.attempt += 1
        entry.tries += 1
        entry.delivery = delivery = Delivery(request, entry.attempt, tuple(entry.events), entry)
        entry.consumer = consumer
        return delivery

    async def retry(self, delivery: Delivery, reason: str) -> None:
        entry = self._current(delivery)
        if entry is None:
            return
        if entry.tries >= self._limits.max_attempts:
            log.error(
                "dead letter",
                extra={"response": delivery.request.response_id, "reason": reason},
            )
            await self._fail(entry, GenerationFailed(reason, code="max_attempts_exceeded"))
        else:
            self._put_back(entry)

    async def release(self, delivery: Delivery) -> None:
        entry = self._current(delivery)
        if entry is not None:
            entry.tries -= 1
            self._put_back(entry)

    def _put_back(self, entry: _Entry) -> None:
        self._leave(entry)
        line = self._line(entry.request.model)
        line.scheduler.push_back(entry.request)
        self._wake_claimer(line)

    def _leave(self, entry: _Entry) -> None:
        """No worker has it any more."""
        if entry.consumer is not None:
            entry.consumer = entry.delivery = None
            self._line(entry.request.model).running -= 1

    def _current(self, delivery: Delivery) -> _Entry | None:
        """The entry of a delivery, unless it belongs to a later attempt by now or has ended."""
        entry = delivery.receipt
        assert isinstance(entry, _Entry)
        return entry if entry.delivery is delivery else None

    # ── to the followers ─────────────────────────────────────────────────────────────────────────

    async def append(self, step: Sequence[Append]) -> Sequence[Append]:
        refused: list[Append] = []
        for item in step:
            entry: _Entry = item.receipt  # type: ignore[assignment]
            try:
                entry.append(item.attempt, item.number, item.events)
            except Refused as error:
                log.warning("append refused: %s", error.message)
                refused.append(item)
                continue
            if entry.ended:
                self._retire(entry)
            elif len(entry.events) >= entry.measure_at and self._is_too_long(entry):
                refused.append(item)
                too_long = f"the answer is longer than {self._limits.max_response_bytes} bytes"
                await self._fail(entry, GenerationFailed(too_long, code="answer_too_long"))
        return refused

    def _is_too_long(self, entry: _Entry) -> bool:
        entry.measure_at = len(entry.events) + EVENTS_PER_MEASURE
        return entry.size_bytes > self._limits.max_response_bytes

    def announce(self, delivery: Delivery, update: QueueUpdate) -> None:
        entry = self._current(delivery)
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
        if queue_updates and entry.consumer is None and not entry.ended:
            # What this follower hears first. Where that is not true any more they are told soon.
            queued = entry.events[0]
            assert isinstance(queued, ResponseQueued)
            self._line(entry.request.model).watched[response_id] = queued.position
            if queued.position != self._position(entry):
                self._tell_positions()
        return entry.attach(after, follower, queue_updates=queue_updates)

    def _require(self, response_id: str) -> _Entry:
        entry = self._entries.get(response_id)
        if entry is None:
            raise unknown_response(response_id)
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
                    self._entries[response_id].announce(QueueUpdate(position))

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────

    async def cancel(self, response_id: str) -> None:
        entry = self._require(response_id)
        if entry.ended:
            return
        if entry.consumer is not None and entry.delivery is not None:
            entry.consumer.revoke(entry.delivery)
        elif self._unqueue(entry):
            await self._end(entry, Finished(FinishReason.CANCELLED))

    def _unqueue(self, entry: _Entry) -> bool:
        request = entry.request
        line = self._line(request.model)
        line.watched.pop(request.response_id, None)
        self._tell_positions()
        return line.scheduler.remove(request.user, request.response_id) is not None

    async def _fail(self, entry: _Entry, error: GenerationFailed) -> None:
        await self._end(entry, Finished(FinishReason.ERROR, error=error))

    async def _end(self, entry: _Entry, end: Finished) -> None:
        """End a response in the place of a worker."""
        self._leave(entry)
        # Raised first, so that no worker can append while the result is being stored.
        entry.attempt += 1
        last = Transcript(Delivery(entry.request, entry.attempt, tuple(entry.events), entry))
        await self._conclude(_Ending(entry, last, last.finish(end)))

    async def _conclude(self, ending: _Ending) -> None:
        self._endings.append(ending)  # whoever waits for this may be cancelled
        try:
            await self._settle([ending.response])
        except Unavailable as error:
            log.warning("cannot store how a response ended yet: %s", error.message)
            return
        except Exception:  # it is told all the same; else its log would never end
            log.exception("an end cannot be stored", extra={"response": ending.response.id})
        if ending not in self._endings:
            return  # another try was quicker
        self._endings.remove(ending)
        ending.entry.append(ending.last.attempt, ending.last.number, ending.last.events)
        self._retire(ending.entry)

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
        """Keep an ended log for those who come late, within bounds."""
        self._leave(entry)
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
            self._drop(response_id)

    def _drop(self, response_id: str) -> None:
        del self._ended[response_id]
        # Cursors that are still behind hold the log itself, and read it to its end.
        self._ended_bytes -= self._entries.pop(response_id).size_bytes

    async def forget(self, response_id: str) -> None:
        if response_id in self._ended:
            self._drop(response_id)
        elif response_id in self._entries:
            raise still_running(response_id)
