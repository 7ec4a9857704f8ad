"""The workers' side of the queue: claims requests, appends what engines say, renews leases."""

import asyncio
import logging
import math
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

import orjson

from internal.biz.errors import GenerationFailed, SluiceError, Unavailable
from internal.biz.events import QueueUpdate
from internal.biz.generation import Delivery, Finished, FinishReason
from internal.biz.models import Condition, ModelState, Order, Response, WorkerInfo
from internal.biz.pause import pause
from internal.biz.ports import Append, Consumer, Resident
from internal.biz.version import VERSION
from internal.data.redis.endings import (
    FINAL,
    MAY_BE_WRITTEN,
    NOT_AN_EVENT,
    SPEAKS,
    Endings,
    Taken,
    append_head,
)
from internal.data.redis.entries import END, REASONING, SCORED, TEXT, dump_request, encode
from internal.data.redis.keys import Keys
from internal.data.redis.link import RedisLink
from internal.data.redis.queue import RedisQueueOptions

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 1.0
"""How long a free worker waits before it looks by itself: a call may be lost, and leases run out."""
RENEWED_AT_ONCE = 500
"""Leases in one call: 15,000 in one took Redis half a second."""
RECENT_ENTRIES = 256
"""Entries of a response that are kept to be written again: a Redis that was killed may lose about two
seconds."""
DEATHS_PER_ATTEMPT = 4
"""How many more workers may die with a request that says something each time than with one that does not."""
DEAD_LETTERS = 10_000
DEAD_LETTERS_KEEP_S = 7 * 86400
MAX_REASON_CHARS = 1000


class WorkQueueMeter(Protocol):
    def lease_taken_over(self, model: str) -> None: ...

    def append_refused(self, model: str) -> None: ...

    def dead_letter(self, model: str) -> None: ...

    def turns_continued(self, model: str, same: int, other: int) -> None:
        """So many turns went to the worker that served what they continue, and so many to another one."""


class _Held:
    """A delivery that is ours: the receipt of it."""

    __slots__ = (
        "attempt",
        "base",
        "consumer",
        "delivery",
        "lost",
        "model",
        "next_number",
        "owner",
        "recent",
        "response_id",
        "revoked",
        "silent",
        "size_bytes",
        "suspect",
        "unsure",
    )

    def __init__(self, model: str, base: str, taken: "Taken", consumer: Consumer) -> None:
        self.model = model
        self.base = base
        self.response_id = taken.response_id
        self.attempt = taken.attempt
        self.owner = taken.owner
        self.consumer = consumer
        self.delivery = Delivery(taken.request, taken.attempt, taken.emitted, self)
        self.next_number = len(taken.entries)
        self.suspect = taken.silent
        """Until it speaks: how many workers died of it, or beside it, before it did."""
        self.silent = True
        """True until it speaks in this attempt."""
        self.lost = False
        self.revoked = False
        self.unsure = False
        """True while it is not known whether the last entries were written."""
        self.recent: deque[bytes] = deque(maxlen=RECENT_ENTRIES)
        """The entries before `next_number`."""
        self.size_bytes = sum(map(len, taken.entries))

    @property
    def key(self) -> str:
        return self.owner + self.response_id


class RedisWorkQueue:
    """Implements WorkQueue for one process, the worker `name`. `run` must run."""

    def __init__(
        self,
        name: str,
        models: Sequence[str],
        link: RedisLink,
        keys: Keys,
        options: RedisQueueOptions,
        settle: Callable[[Sequence[Response]], Awaitable[None]],
        meter: WorkQueueMeter,
    ) -> None:
        """`models`: those that this process may claim requests of. `settle` as for RedisQueue."""
        self._name = name
        self._link = link
        self._keys = keys
        self._options = options
        self._meter = meter
        self._endings = Endings(link, keys, options.retain_ms, settle)
        self._held: dict[str, _Held] = {}
        """By owner, which is made anew for each delivery, and response."""
        self._consumers: dict[str, Consumer] = {}
        """The workers of this process that take requests, by model."""
        self._residents: dict[str, Resident] = {}
        """The models of those that are there, whether they take any or not."""
        self._ready: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renew_now = asyncio.Event()
        link.on_up.append(self._came_up)
        link.subscribe(keys.workers + name, self._heard)
        for model in models:
            self._ready[model] = asyncio.Event()
            link.subscribe(f"{keys.base(model)}:ready", self._rouser(model))

    async def run(self) -> None:
        """Renew leases until cancelled."""
        try:
            while True:
                await pause(self._renew_now, self._options.lease_s / 3)
                self._renew_now.clear()
                try:
                    await self._renew()
                except Unavailable as error:
                    log.debug("cannot renew leases: %s", error.message)
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _came_up(self) -> None:
        self._renew_now.set()
        for ready in self._ready.values():
            ready.set()

    def _rouser(self, model: str) -> Callable[[bytes], None]:
        return lambda _: self._ready[model].set()

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    async def claim(self, model: str, consumer: Consumer) -> Sequence[Delivery]:
        base = self._keys.base(model)
        ready = self._ready[model]
        if model not in self._consumers:
            self._renew_now.set()
        self._consumers[model] = consumer
        try:
            while True:
                ready.clear()
                deliveries, ask_again_s = await self._claim(model, base, consumer)
                if deliveries:
                    return deliveries
                await pause(ready, min(POLL_INTERVAL_S, self._options.lease_s / 4, ask_again_s))
        except asyncio.CancelledError:
            self.pause(model, consumer)
            raise

    def pause(self, model: str, consumer: Consumer) -> None:
        if model in self._residents:
            self._consumers.pop(model, None)
            self._renew_now.set()
        else:
            self.leave(model, consumer)

    def attend(self, model: str, resident: Resident) -> None:
        self._residents[model] = resident
        self._renew_now.set()

    def leave(self, model: str, consumer: Consumer) -> None:
        resident = self._residents.pop(model, None)
        if self._consumers.pop(model, None) is not None or resident is not None:
            self._spawn(self._leave(self._keys.base(model)))

    async def forsake(
        self, model: str, consumer: Consumer, deliveries: Sequence[Delivery]
    ) -> Sequence[Delivery]:
        self._residents.pop(model, None)
        self._consumers.pop(model, None)
        mine = [_held(delivery) for delivery in deliveries]
        for held in mine:
            self._let_go(held)
        for start in range(0, max(1, len(mine)), RENEWED_AT_ONCE):
            args = [
                part
                for held in mine[start : start + RENEWED_AT_ONCE]
                for part in (held.response_id, held.owner)
            ]
            await self._link.call("forsake", self._keys.base(model), self._name, *args)
        return ()

    async def finish(self) -> None:
        """Wait until all is said and given back that nobody else waits for: before `run` is cancelled."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _claim(self, model: str, base: str, consumer: Consumer) -> tuple[list[Delivery], float]:
        """What there is for us, and in how many seconds there may be more: what is left for another worker
        that does not come."""
        args = (self._name, max(1, consumer.room), self._options.lease_ms, *self._trials(model, consumer))
        call = asyncio.ensure_future(self._link.call("claim", base, *args, int(self._sleeps(model))))
        try:
            found = await asyncio.shield(call)
        except Unavailable:
            return [], math.inf
        except asyncio.CancelledError:
            self._spawn(self._hand_back(model, call, consumer))
            raise
        return self._accept(model, found, consumer), found[0] / 1000 or math.inf

    def _trials(self, model: str, consumer: Consumer) -> tuple[int, int, int]:
        """For claim.lua: how many attempts, how many more suspects, and whether there are none."""
        most = self._options.max_attempts
        suspects = [held.suspect for held in self._held.values() if held.suspect and held.model == model]
        more = math.isqrt(consumer.slots) - len(suspects) if max(suspects, default=0) < most - 1 else 0
        return most, more, int(not suspects)

    def _sleeps(self, model: str) -> bool:
        """Whether it would have to be loaded first."""
        resident = self._residents.get(model)
        return resident is not None and resident.condition.state is not ModelState.LOADED

    async def _hand_back(self, model: str, call: asyncio.Future[Any], consumer: Consumer) -> None:
        """Give back what a claim brings that nobody waits for any more."""
        for delivery in self._accept(model, await call, consumer):
            await self.release(delivery)

    def _accept(self, model: str, found: list[Any], consumer: Consumer) -> list[Delivery]:
        """Make deliveries of what claim.lua returned; what cannot be generated is ended here."""
        _, same, other, claimed = found
        if same or other:
            self._meter.turns_continued(model, same, other)
        deliveries = []
        for fields in claimed:
            taken = Taken(model, fields)
            try:
                taken.require_readable()
            except SluiceError as error:
                self._spawn(self._bury(taken, error))
                continue
            if taken.cancelled:
                self._spawn(self._endings.end(taken, Finished(FinishReason.CANCELLED)))
            elif self._is_deadly(taken):
                reason = f"its worker died {taken.deaths} times"
                self._spawn(self._bury(taken, GenerationFailed(reason, code="max_attempts_exceeded")))
            else:
                if taken.deaths:
                    self._meter.lease_taken_over(model)
                    log.warning("took over", extra={"response": taken.response_id, "attempt": taken.attempt})
                held = _Held(model, self._keys.base(model), taken, consumer)
                self._held[held.key] = held
                deliveries.append(held.delivery)
        return deliveries

    def _is_deadly(self, taken: Taken) -> bool:
        most = self._options.max_attempts
        return taken.silent >= most or taken.deaths >= most * DEATHS_PER_ATTEMPT

    async def _bury(self, taken: Taken, error: SluiceError) -> None:
        """Make a dead letter of a request that is ours, and end its response."""
        reason = error.message[:MAX_REASON_CHARS]
        args = (taken.response_id, taken.owner, error.code, reason, DEAD_LETTERS, DEAD_LETTERS_KEEP_S)
        if await self._link.call("bury", self._keys.base(taken.model), *args):
            self._meter.dead_letter(taken.model)
            log.error("dead letter", extra={"response": taken.response_id, "reason": reason})
        failure = GenerationFailed(error.message, code=error.code)
        await self._endings.end(taken, Finished(FinishReason.ERROR, error=failure))

    async def retry(self, delivery: Delivery, reason: str) -> None:
        held = _held(delivery)
        if await self._give_back(held, self._options.max_attempts) == b"dead":
            await self._bury(await self._taken(held), GenerationFailed(reason, code="max_attempts_exceeded"))
            self._let_go(held)

    async def release(self, delivery: Delivery) -> None:
        await self._give_back(_held(delivery), 0)

    async def _give_back(self, held: _Held, max_attempts: int) -> bytes:
        args = (held.response_id, held.owner, max_attempts)
        verdict: bytes = await self._link.call("give_back", held.base, *args)
        if verdict != b"dead":
            self._let_go(held)
        return verdict

    async def _taken(self, held: _Held) -> Taken:
        """A delivery of ours with its log as it is now."""
        entries = await self._link.command("LRANGE", f"{held.base}:log:{held.response_id}", 0, -1)
        payload = dump_request(held.delivery.request)
        fields = [held.response_id.encode(), held.attempt, held.owner.encode(), payload, b"", 0, entries]
        return Taken(held.model, fields)

    def _let_go(self, held: _Held) -> None:
        """It is not ours any more: nothing is written, or renewed."""
        held.lost = True
        self._held.pop(held.key, None)
        self._clear(held)

    def _clear(self, held: _Held) -> None:
        """It is no suspect any more: the next one may be tried."""
        if held.suspect:
            held.suspect = 0
            self._ready[held.model].set()

    # ── out ──────────────────────────────────────────────────────────────────────────────────────

    async def append(self, step: Sequence[Append]) -> Sequence[Append]:
        refused: list[Append] = []
        batches: dict[str, _Batch] = {}
        for item in step:
            held: _Held = item.receipt  # type: ignore[assignment]
            if held.lost or item.attempt != held.attempt or item.number != held.next_number:
                refused.append(item)
                continue
            batch = batches.get(held.base)
            if batch is None:
                batches[held.base] = batch = _Batch()
            batch.add(held, item)
        for base, batch in batches.items():
            # Until all is done: who repeats this call repeats it for all of them.
            for held, _, _ in batch.sent:
                held.unsure = True
            for place, verdict, length in await self._append(base, batch):
                held, _, entries = batch.sent[place]
                await self._attend(held, entries, verdict, length)
            for held, item, entries in batch.sent:
                if held.lost:
                    refused.append(item)
                else:
                    self._written(held, entries)
        for item in refused:
            self._meter.append_refused(_model(item))
            log.warning("append refused", extra={"response": item.response_id, "number": item.number})
        return refused

    async def _append(self, base: str, batch: "_Batch") -> list[Any]:
        step = b"\n".join(batch.lines)
        found: list[Any] = await self._link.call(
            "append", base, self._keys.nodes, self._options.retain_ms, step
        )
        return found

    async def _attend(self, held: _Held, entries: list[bytes], verdict: bytes, length: int) -> None:
        """What the script says of one response of a step that was not simply written."""
        if verdict == b"cancelled":
            self._revoke(held)
        elif not (verdict == b"behind" and await self._write_again(held, entries, length)):
            self._let_go(held)

    async def _write_again(self, held: _Held, entries: list[bytes], length: int) -> bool:
        """Redis was killed and lost the end of a log that it had confirmed: write that too."""
        missing = held.next_number - length
        if missing > len(held.recent):
            return False
        log.warning("writing again what Redis lost", extra={"response": held.response_id, "entries": missing})
        batch = _Batch()
        batch.add_entries(held, length, [*list(held.recent)[-missing:], *entries])
        attention = await self._append(held.base, batch)
        return all(verdict == b"cancelled" for _, verdict, _ in attention)

    def _written(self, held: _Held, entries: list[bytes]) -> None:
        held.unsure = False
        if held.silent and _speaks(entries):
            held.silent = False
            self._clear(held)
        held.next_number += len(entries)
        held.recent.extend(entries)
        for entry in entries:
            held.size_bytes += len(entry)
        if entries[-1].startswith(END):
            self._let_go(held)
        elif held.size_bytes > self._options.max_response_bytes:
            self._let_go(held)
            held.consumer.lose(held.delivery)
            self._spawn(self._cut_off(held))

    async def _cut_off(self, held: _Held) -> None:
        """End an answer that grew too long. If that fails, its lease runs out, and the next attempt does."""
        too_long = f"the answer is longer than {self._options.max_response_bytes} bytes"
        end = Finished(FinishReason.ERROR, error=GenerationFailed(too_long, code="answer_too_long"))
        await self._endings.end(await self._taken(held), end)

    def announce(self, delivery: Delivery, update: QueueUpdate) -> None:
        held = _held(delivery)
        if not held.lost:
            fields: list[float] = [update.position, update.prefilled, update.prompt_tokens]
            if update.loading is not None:  # which servers of earlier versions do not know
                fields.append(update.loading)
            news = orjson.dumps([[held.response_id, NOT_AN_EVENT, fields]])
            self._link.post("announce", held.base, self._keys.nodes, held.response_id, news)

    # ── leases ───────────────────────────────────────────────────────────────────────────────────

    def _heard(self, message: bytes) -> None:
        match orjson.loads(message):
            case ["revoke", response_id, owner]:
                held = self._held.get(owner + response_id)
                if held is not None:
                    self._revoke(held)
            case ["order", model, order_id, order]:
                resident = self._residents.get(model)
                if resident is not None:
                    resident.order(order_id, Order(order))

    def _revoke(self, held: _Held) -> None:
        if not held.revoked:
            held.revoked = True
            held.consumer.revoke(held.delivery)

    async def _renew(self) -> None:
        """Tell that this process lives, and which deliveries it works on."""
        working = {held.model for held in self._held.values()}
        for model in {*self._consumers, *self._residents, *working}:
            consumer = self._consumers.get(model)
            room = max(0, consumer.room) if consumer is not None else ""
            is_here = consumer is not None or model in self._residents
            mine = [held for held in self._held.values() if held.model == model]
            found = []
            for start in range(0, max(1, len(mine)), RENEWED_AT_ONCE):
                some = mine[start : start + RENEWED_AT_ONCE]
                args = [part for held in some for part in (held.response_id, held.owner)]
                found += await self._link.call(
                    "renew",
                    self._keys.base(model),
                    self._name,
                    room,
                    self._options.lease_ms,
                    self._info(model, consumer) if is_here else "",
                    *args,
                )
            for response_id, owner, verdict in found:
                held = self._held.get((owner + response_id).decode())
                if held is None:
                    continue
                if verdict == b"cancelled":
                    self._revoke(held)
                else:
                    log.warning("lease lost", extra={"response": held.response_id})
                    self._let_go(held)
                    held.consumer.lose(held.delivery)

    def _info(self, model: str, consumer: Consumer | None) -> bytes:
        slots = consumer.slots if consumer is not None else 0
        busy = slots - max(0, consumer.room) if consumer is not None else 0
        host, now = socket.gethostname(), time.time()
        resident = self._residents.get(model)
        condition = resident.condition if resident is not None else Condition()
        return orjson.dumps(WorkerInfo(self._name, host, model, slots, busy, now, VERSION, condition))

    async def _leave(self, base: str) -> None:
        await self._link.call("leave", base, self._name)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, Unavailable):
            log.warning("left to others: %s", error.message)  # when the lease has run out
        else:
            log.error("could not end a response", exc_info=error)


class _Batch:
    """What one call of append.lua writes."""

    __slots__ = ("lines", "sent")

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.sent: list[tuple[_Held, Append, list[bytes]]] = []

    def add(self, held: _Held, item: Append) -> None:
        """Called once per token."""
        entries = [encode(event) for event in item.events]
        self.add_entries(held, item.number, entries)
        self.sent.append((held, item, entries))

    def add_entries(self, held: _Held, number: int, entries: list[bytes]) -> None:
        flags = FINAL if entries[-1].startswith(END) else 0
        if held.unsure:
            flags |= MAY_BE_WRITTEN
        if held.silent and _speaks(entries):
            flags |= SPEAKS
        self.lines.append(append_head(held.response_id, held.owner, number, flags, len(entries)))
        self.lines += entries


def _speaks(entries: list[bytes]) -> bool:
    """Whether there is text among them."""
    return any(entry.startswith((TEXT, REASONING, SCORED)) for entry in entries)


def _held(delivery: Delivery) -> _Held:
    held = delivery.receipt
    assert isinstance(held, _Held)
    return held


def _model(item: Append) -> str:
    held: _Held = item.receipt  # type: ignore[assignment]
    return held.model
