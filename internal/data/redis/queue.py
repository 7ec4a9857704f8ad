"""The servers' side of the queue: publishes requests, and follows logs by mirrors of them."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from internal.biz.errors import (
    GenerationFailed,
    InvalidRequest,
    Unavailable,
    still_running,
    unknown_response,
)
from internal.biz.events import QueueUpdate, ResponseQueued
from internal.biz.generation import Finished, FinishReason
from internal.biz.log import Cursor, Follower
from internal.biz.models import Backlog, Order, Request, Response, Status, WorkerInfo
from internal.biz.pause import pause
from internal.data.redis.endings import NOT_AN_EVENT, Endings, Taken
from internal.data.redis.entries import dump_request, encode, head_of, load_request, parse
from internal.data.redis.keys import Keys
from internal.data.redis.link import RedisLink, Unanswered
from internal.data.redis.mirror import Mirror
from internal.data.redis.overview import read_backlog, read_workers

log = logging.getLogger(__name__)

HOUSEKEEPING_S = 1.0
QUIET_S = 5.0
"""A log that is followed and of which nothing was heard for so long is looked at: a message may be lost."""
POSITIONS_INTERVAL_S = 0.5
AT_ONCE = 100
"""Responses in one call of a script."""
MAX_ABANDONED = 10_000
LEAST_RETAIN_S = 60.0
"""For as long an ended log stays at least: a server that missed its end must find it."""
ALIVE_S = 10
LEFT_S = 0.2
"""For how long a turn is left for the worker that served what it continues: far more than a worker takes
that was told of it, far less than it takes to read a long prompt."""


@dataclass(frozen=True, slots=True)
class RedisQueueOptions:
    """`retain_s`: how long a log outlives its response. `max_pending`: requests that may wait for one model
    (0: no limit). `max_age_s`: requests that waited longer fail (0: never). `max_attempts`: tries for each,
    that engines fail or that end with their worker before they say anything.
    `lease_s`: a worker that was silent for so long has lost its deliveries. `max_response_bytes` bounds one
    log."""

    retain_s: float = 600.0
    max_pending: int = 1024
    max_age_s: float = 600.0
    max_attempts: int = 3
    lease_s: float = 15.0
    max_response_bytes: int = 16 << 20

    @property
    def lease_ms(self) -> int:
        return int(self.lease_s * 1000)

    @property
    def retain_ms(self) -> int:
        return int(max(self.retain_s, LEAST_RETAIN_S) * 1000)


class QueueMeter(Protocol):
    def gap_filled(self, model: str) -> None: ...

    def response_lost(self, model: str) -> None: ...


class RedisQueue:
    """Implements Queue for one server process, the node `name`. `run` must run."""

    def __init__(
        self,
        name: str,
        models: Sequence[str],
        link: RedisLink,
        keys: Keys,
        options: RedisQueueOptions,
        settle: Callable[[Sequence[Response]], Awaitable[None]],
        meter: QueueMeter,
    ) -> None:
        """`models`: those whose responses can be followed here. `settle` stores how a response ended that no
        worker will end."""
        self._name = name
        self._models = models
        self._link = link
        self._keys = keys
        self._options = options
        self._settle = settle
        self._meter = meter
        self._endings = Endings(link, keys, options.retain_ms, settle)
        self._mirrors: dict[str, Mirror] = {}
        self._loading: Counter[str] = Counter()
        """Logs that are being read because somebody wants to follow them."""
        self._missed: set[str] = set()
        """Those of them of which there was news meanwhile."""
        self._stale: set[str] = set()
        """Mirrors that have to look at their logs."""
        self._look = asyncio.Event()
        self._back = asyncio.Event()
        """Redis is back, and may have forgotten that this node lives."""
        self._abandoned: list[tuple[str, str]] = []
        """Requests of which is not known whether they were published; their clients were told no."""
        link.on_up.append(self._came_up)
        link.subscribe(keys.nodes + name, self._heard)

    async def run(self) -> None:
        """Keep house until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._live())
            tasks.create_task(self._look_at_logs())
            tasks.create_task(self._keep_house())
            tasks.create_task(self._tell_positions())

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    async def publish(self, request: Request) -> None:
        head = head_of(request)
        mirror = Mirror(head, time.monotonic())
        mirror.opening = True
        # Before the call: the first events may be here before its answer is.
        self._mirrors[request.response_id] = mirror
        try:
            told = await self._link.call(
                "publish",
                self._keys.base(request.model),
                request.response_id,
                request.user,
                max(0, int((time.time() - request.created_at) * 1000)),
                dump_request(request),
                dump_request(head),
                self._name,
                self._options.max_pending,
                request.settings.conversation_id or "",
                request.settings.previous_response_id or "",
                int(LEFT_S * 1000),
            )
        except BaseException as error:
            del self._mirrors[request.response_id]
            if isinstance(error, Unanswered) and len(self._abandoned) < MAX_ABANDONED:
                self._abandoned.append((request.model, request.response_id))
            raise
        if told is None:
            del self._mirrors[request.response_id]
            limit = self._options.max_pending
            raise Unavailable(f"{limit} requests wait already; try again in a moment", code="queue_full")
        mirror.opening = False
        mirror.fresh = True
        queued = ResponseQueued(Response.of(head, Status.QUEUED), told[0], told[1])
        mirror.receive(0, parse([encode(queued)]))

    async def cancel(self, response_id: str) -> None:
        for model in self._models_of(response_id):
            verdict = await self._cancel(model, response_id)
            if verdict != b"unknown":
                return
        raise unknown_response(response_id)

    async def _cancel(self, model: str, response_id: str) -> Any:
        verdict = await self._link.call(
            "cancel",
            self._keys.base(model),
            response_id,
            self._name,
            self._options.lease_ms,
            self._keys.workers,
        )
        if isinstance(verdict, list):
            await self._endings.end(Taken(model, verdict), Finished(FinishReason.CANCELLED))
        return verdict

    async def forget(self, response_id: str) -> None:
        for model in self._models_of(response_id):
            if not await self._link.call("forget", self._keys.base(model), response_id):
                raise still_running(response_id)
        if (mirror := self._mirrors.get(response_id)) is not None:
            mirror.fresh = False
            if mirror.ended:
                del self._mirrors[response_id]

    def _models_of(self, response_id: str) -> Iterable[str]:
        mirror = self._mirrors.get(response_id)
        return (mirror.head.model,) if mirror is not None else self._models

    async def unknown(self, responses: Sequence[Response]) -> Sequence[Response]:
        exists = await asyncio.gather(
            *(self._link.command("EXISTS", self._keys.meta(one.model, one.id)) for one in responses)
        )
        return [one for one, found in zip(responses, exists, strict=True) if not found]

    async def backlog(self, model: str) -> Backlog:
        return await read_backlog(self._link, self._keys.base(model))

    async def workers(self) -> Sequence[WorkerInfo]:
        calls = [read_workers(self._link, self._keys.base(model)) for model in self._models]
        return [worker for found in await asyncio.gather(*calls) for worker in found]

    async def order(self, model: str, order_id: str, order: Order) -> None:
        message = orjson.dumps(["order", model, order_id, order])
        for worker in await read_workers(self._link, self._keys.base(model)):
            await self._link.command("PUBLISH", self._keys.workers + worker.name, message)

    # ── following ────────────────────────────────────────────────────────────────────────────────

    async def follow(
        self, response_id: str, after: int, follower: Follower, *, queue_updates: bool = False
    ) -> Cursor:
        mirror = self._mirrors.get(response_id)
        if mirror is None or not mirror.fresh or queue_updates:
            try:
                mirror = await self._load(response_id, queue_updates)
            except Unavailable:
                if mirror is None or not mirror.fresh:
                    raise
                # It was published a moment ago: what comes is looked for when Redis is back.
        mirror.fresh = False
        if after >= len(mirror.events):
            if not mirror.ended and self._link.back_for_s < 2 * self._options.lease_s:
                # Redis may have lost what its worker will write again.
                raise Unavailable("the answer is being restored; try again", code="queue_unavailable")
            raise InvalidRequest(
                f"starting_after is {after}, but the last event of {response_id} is {len(mirror.events) - 1}",
                param="starting_after",
            )
        if queue_updates and len(mirror.events) == 1:
            # What this follower hears first. Where that is not true any more they are told soon.
            (queued,) = mirror.events
            assert isinstance(queued, ResponseQueued)
            mirror.position = queued.position
        return mirror.attach(after, follower, queue_updates=queue_updates)

    async def _load(self, response_id: str, queue_updates: bool) -> Mirror:
        """The mirror of a log, up to date."""
        self._loading[response_id] += 1
        try:
            for model in self._models_of(response_id):
                mirror = self._mirrors.get(response_id)
                have = len(mirror.events) if mirror is not None else 0
                (found,) = await self._link.call(
                    "follow", self._keys.base(model), self._name, response_id, have, int(queue_updates)
                )
                if found is None:
                    continue
                head, _, entries = found
                mirror = self._mirrors.get(response_id)  # another call may have loaded it meanwhile
                if mirror is None:
                    self._mirrors[response_id] = mirror = Mirror(load_request(head), time.monotonic())
                self._receive(mirror, have, entries)
                if response_id in self._missed:  # the news overtook the answer to our call
                    self._look_at(response_id)
                return mirror
            raise unknown_response(response_id)
        finally:
            self._loading[response_id] -= 1
            if not self._loading[response_id]:
                del self._loading[response_id]
                self._missed.discard(response_id)

    async def followers(self, response_id: str) -> int:
        mirror = self._mirrors.get(response_id)
        here = len(mirror.cursors) if mirror is not None and not mirror.ended else 0
        models = self._models_of(response_id)
        if mirror is not None and not mirror.cursors and not mirror.opening:
            # First, so that of two servers that ask at once the later one finds nobody.
            del self._mirrors[response_id]
            await self._link.call("unfollow", self._keys.base(mirror.head.model), self._name, response_id)
        for model in models:
            nodes = await self._link.call("followers", self._keys.base(model), response_id)
            if nodes is None:
                continue
            others = [node for node in nodes.decode().split() if node != self._name]
            if self._link.back_for_s < ALIVE_S:
                return here + len(others)  # they may not have had the time yet to say that they live
            living = [await self._link.command("EXISTS", self._keys.nodes + node) for node in others]
            return here + living.count(1)
        return 0

    def _heard(self, message: bytes) -> None:
        """News of this node's channel: a list of [id, number, entries]."""
        now_s = time.monotonic()
        for response_id, number, entries in orjson.loads(message):
            mirror = self._mirrors.get(response_id)
            if mirror is None:
                if response_id in self._loading:
                    self._missed.add(response_id)
                continue
            mirror.heard_at_s = now_s
            if number == NOT_AN_EVENT:
                mirror.announce(QueueUpdate(*entries))
                continue
            try:
                complete = mirror.receive(number, entries)
            except InvalidRequest:
                complete = False  # the log tells what is true
            if not complete and not mirror.opening:
                self._meter.gap_filled(mirror.head.model)
                self._look_at(response_id)

    def _look_at(self, response_id: str) -> None:
        self._stale.add(response_id)
        self._look.set()

    def _came_up(self) -> None:
        """What was said while Redis or its channels were away is in the logs."""
        self._stale.update(self._mirrors)
        self._look.set()
        self._back.set()

    async def _look_at_logs(self) -> None:
        while True:
            await self._look.wait()
            self._look.clear()
            stale, self._stale = self._stale, set()
            try:
                for model in self._models:
                    await self._refresh(model, [one for one in stale if self._is_open(one, model)])
            except Unavailable:
                continue  # when it is back, everything is looked at

    def _is_open(self, response_id: str, model: str) -> bool:
        mirror = self._mirrors.get(response_id)
        if mirror is None or mirror.opening or mirror.ended:
            return False
        return mirror.head.model == model

    async def _refresh(self, model: str, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), AT_ONCE):
            mirrors = [self._mirrors[one] for one in ids[start : start + AT_ONCE] if one in self._mirrors]
            had = [len(mirror.events) for mirror in mirrors]
            args: list[Any] = [self._name]
            for mirror, have in zip(mirrors, had, strict=True):
                args += (mirror.response_id, have, 0)
            found = await self._link.call("follow", self._keys.base(model), *args)
            for mirror, have, log_part in zip(mirrors, had, found, strict=True):
                mirror.heard_at_s = time.monotonic()
                if log_part is not None:
                    self._receive(mirror, have, log_part[2])
                elif not mirror.ended:
                    await self._lose(mirror)

    def _receive(self, mirror: Mirror, have: int, entries: list[bytes]) -> None:
        """Take what the log itself says."""
        if mirror.ended:
            return
        try:
            mirror.receive(have, parse(entries))
        except InvalidRequest as error:
            log.error("a log cannot be read: %s", error.message, extra={"response": mirror.response_id})
            mirror.fail(error)

    async def _lose(self, mirror: Mirror) -> None:
        log.error("response lost by the queue", extra={"response": mirror.response_id})
        self._meter.response_lost(mirror.head.model)
        response = mirror.lose()
        try:
            await self._settle([response])
        except Unavailable as error:
            log.warning("cannot store that a response was lost: %s", error.message)

    # ── housekeeping ─────────────────────────────────────────────────────────────────────────────

    async def _live(self) -> None:
        """Tell that this node lives."""
        while True:
            self._back.clear()
            with contextlib.suppress(Unavailable):
                await self._link.command(
                    "SET", self._keys.nodes + self._name, int(time.time()), "EX", ALIVE_S
                )
            await pause(self._back, HOUSEKEEPING_S)

    async def _keep_house(self) -> None:
        while True:
            try:
                self._forget()
                while self._abandoned:
                    some = self._abandoned[-AT_ONCE:]
                    await asyncio.gather(*(self._cancel(model, one) for model, one in some))
                    del self._abandoned[-AT_ONCE:]
                if self._options.max_age_s:
                    for model in self._models:
                        await self._expire(model)
            except Unavailable:
                pass
            await asyncio.sleep(HOUSEKEEPING_S)

    def _forget(self) -> None:
        """Let go of the mirrors that nobody follows, look at those that are quiet."""
        now_s = time.monotonic()
        unfollowed: dict[str, list[str]] = {}
        for response_id, mirror in list(self._mirrors.items()):
            if mirror.opening or response_id in self._loading:
                continue
            if not mirror.cursors and (not mirror.fresh or now_s - mirror.heard_at_s > HOUSEKEEPING_S):
                del self._mirrors[response_id]
                if not mirror.ended:
                    unfollowed.setdefault(mirror.head.model, []).append(response_id)
            elif not mirror.ended and now_s - mirror.heard_at_s > QUIET_S:
                self._look_at(response_id)
        for model, ids in unfollowed.items():
            self._link.post("unfollow", self._keys.base(model), self._name, *ids)

    async def _expire(self, model: str) -> None:
        """End what waited too long."""
        max_age_ms = int(self._options.max_age_s * 1000)
        waited = f"the request waited longer than {self._options.max_age_s:g} s"
        error = GenerationFailed(waited, code="request_expired")
        args = (self._keys.base(model), self._name, self._options.lease_ms, max_age_ms, AT_ONCE)
        end = Finished(FinishReason.ERROR, error=error)
        for script in ("withdraw", "abandoned"):
            found = await self._link.call(script, *args)
            ended = [self._endings.end(Taken(model, fields), end) for fields in found]
            for failed in await asyncio.gather(*ended, return_exceptions=True):
                if isinstance(failed, BaseException) and not isinstance(failed, Unavailable):
                    raise failed

    async def _tell_positions(self) -> None:
        """Tell their places in the queue to who asked, when they have changed."""
        while True:
            await asyncio.sleep(POSITIONS_INTERVAL_S)
            for model in self._models:
                watched = [
                    mirror
                    for mirror in self._mirrors.values()
                    if mirror.position is not None and mirror.head.model == model
                ]
                for mirror in [one for one in watched if len(one.events) > 1]:
                    mirror.position = None
                    watched.remove(mirror)
                if not watched:
                    continue
                try:
                    for start in range(0, len(watched), AT_ONCE):
                        await self._tell_positions_of(model, watched[start : start + AT_ONCE])
                except Unavailable:
                    break

    async def _tell_positions_of(self, model: str, mirrors: Sequence[Mirror]) -> None:
        ids = [mirror.response_id for mirror in mirrors]
        positions = await self._link.call("positions", self._keys.base(model), *ids)
        for mirror, position in zip(mirrors, positions, strict=True):
            if position >= 0 and position != mirror.position:
                mirror.position = position
                mirror.announce(QueueUpdate(position))
