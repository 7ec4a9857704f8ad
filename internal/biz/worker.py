"""Takes requests of one model from the queue, runs them on an engine, writes what it says into the logs.

Knows engines and the queue, not who reads.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from internal.biz.errors import EngineLost, GenerationFailed, Unavailable
from internal.biz.events import QueueUpdate, ReasoningDelta, ScoredDelta, TextDelta
from internal.biz.generation import (
    MAX_CHARS_PER_TOKEN,
    Chunk,
    Delivery,
    Finished,
    FinishReason,
    Prefilled,
    Transcript,
)
from internal.biz.images import Images
from internal.biz.inbox import StepInbox
from internal.biz.model_life import ModelLife
from internal.biz.models import Condition, Message, ModelState, Response, ToolCall
from internal.biz.ports import Generator, History, Meter, Progress, WorkQueue

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.05
RELEASED_AT_ONCE = 100
LONGEST_PAUSE_S = 1.0
"""Between two tries while the queue or the storage cannot be reached."""
LAST_WORDS_S = 3.0
"""What the queue and the storage may take for the rest when an engine is lost."""

T = TypeVar("T")


def _forgotten() -> GenerationFailed:
    return GenerationFailed("what was said before cannot be read; begin a new conversation")


def _not_loaded() -> GenerationFailed:
    return GenerationFailed("the model cannot be loaded now; ask again later", code="model_not_loaded")


class _Run(Transcript):
    """One delivery on the engine."""

    __slots__ = ("lost", "revoked", "running", "spoke_at_s")

    def __init__(self, delivery: Delivery) -> None:
        super().__init__(delivery)
        self.running = True
        self.revoked = False
        self.lost = False
        """True when nothing may be written for it any more: it is another worker's, or has ended."""
        self.spoke_at_s = 0.0
        """When its last token came; 0 before the first."""


class Worker:
    """Runs one model, while it is loaded. At most `slots` responses at a time, as many as the engine takes.

    Implements Consumer and Work. Bound: twice `slots` deliveries, those included whose results are being
    stored.
    """

    def __init__(
        self,
        model: str,
        generator: Generator,
        queue: WorkQueue,
        history: History,
        settle: Callable[[Sequence[Response]], Awaitable[None]],
        meter: Meter,
        images: Images | None = None,
        *,
        idle_unload_s: float = 0.0,
        unload_timeout_s: float = 30.0,
    ) -> None:
        """`settle` stores how responses ended. `images`: for engines that look at them. `idle_unload_s` as
        for ModelLife; what still runs `unload_timeout_s` after an operator had the model unloaded is given
        back."""
        self.model = model
        self._generator = generator
        self._queue = queue
        self._history = history
        self._settle = settle
        self._meter = meter
        self._images = images
        self._unload_timeout_s = unload_timeout_s
        self._life = ModelLife(model, generator, self._tell, idle_unload_s)
        self._runs: dict[Delivery, _Run] = {}
        """All deliveries that have not been settled."""
        self._generating = 0
        self._waits_for_room = False
        self._changed = asyncio.Event()
        self._idle_since_s = time.monotonic()
        self._tasks: asyncio.TaskGroup | None = None
        self._ends: asyncio.TaskGroup | None = None
        """Stores how responses ended. Goes on when all others end for a lost engine."""
        self._claims: asyncio.Task[None] | None = None
        """While requests are taken."""
        self._claiming: asyncio.Task[None] | None = None
        """While it waits for a request, and nothing is lost when it is cancelled."""
        self._inbox: StepInbox | None = None
        self._is_open = False
        self._draining = False
        self._forsakes = False
        """From when its engine is lost on, whatever it was told before."""
        self._over = asyncio.Event()
        """It runs no more."""

    async def run(self, progress: Progress) -> None:
        """Load the model, then work until cancelled. What still runs then ends without a word.

        Raises GenerationFailed when the model cannot be loaded, and EngineLost, in a group perhaps.
        """
        self._inbox = inbox = StepInbox(asyncio.get_running_loop())
        is_lost = False
        self._tell()
        try:
            await self._life.start(inbox, progress)
            async with asyncio.TaskGroup() as self._ends:
                try:
                    async with asyncio.TaskGroup() as self._tasks:
                        self._tasks.create_task(self._life.run(self))
                        self._tasks.create_task(self._write_steps(inbox, self._ends))
                except* EngineLost:
                    await self._forsake()
                    raise
        except* EngineLost:
            is_lost = True
            raise
        finally:
            inbox.close()
            self._over.set()
            if not is_lost:
                await self._life.stop()

    async def _forsake(self) -> None:
        """The engine says nothing more: hand on what it did. Where nobody could take it, it has failed."""
        self._draining = self._forsakes = True
        runs = [run for run in self._runs.values() if run.running and not run.lost]
        log.warning("handing over", extra={"model": self.model, "responses": len(runs)})
        for run in runs:
            self._stopped(run)
        with contextlib.suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(LAST_WORDS_S):
                left = set(await self._queue.forsake(self.model, self, [run.delivery for run in runs]))
                for run in [run for run in runs if run.delivery not in left]:
                    run.lost = True
                    self._settled(run)
                failure = GenerationFailed("the engine broke off; ask again", code=EngineLost.default_code)
                end = Finished(FinishReason.ERROR, error=failure)
                await self._end([(run, end) for run in runs if not run.lost])
                await self._wait_until_free()

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let what runs finish, and give the rest back to the queue.

        Where its engine is lost, what runs may be why: that is not given back, but forsaken as soon as `run`
        hears of it."""
        self._draining = True
        self._stop_claiming()
        if self._forsakes or (self._inbox is not None and self._inbox.is_lost):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self._over.wait()
            return
        self._queue.leave(self.model, self)
        await self._finish(timeout_s)

    def _stop_claiming(self) -> None:
        if self._claiming is not None:
            self._claiming.cancel()

    async def _wait_until_free(self) -> None:
        """Until the queue has done with all deliveries."""
        while self._runs:
            self._changed.clear()
            await self._changed.wait()

    async def _finish(self, timeout_s: float) -> None:
        """Let what runs finish, and give the rest back to the queue."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait_until_free()
        except TimeoutError:
            log.warning("handing over", extra={"model": self.model, "responses": len(self._runs)})
        runs = list(self._runs.values())
        for run in runs:
            self.lose(run.delivery)
        for start in range(0, len(runs), RELEASED_AT_ONCE):
            some = runs[start : start + RELEASED_AT_ONCE]
            await asyncio.gather(*(self._release(run) for run in some))

    async def finish_background(self, timeout_s: float) -> None:
        """Let finish what runs in the background: there is nobody whose leaving would tell that it has."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while any(run.settings.background for run in self._runs.values()):
                    self._changed.clear()
                    await self._changed.wait()

    async def cut_short(self, timeout_s: float) -> None:
        """Take nothing new, and cancel what runs, so that what was said is stored: where the queue dies with
        its process, nobody else could go on with it."""
        self._draining = True
        self._stop_claiming()
        for run in list(self._runs.values()):
            self.revoke(run.delivery)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wait_until_free()

    async def _release(self, run: _Run) -> None:
        # If that fails, its lease runs out.
        with contextlib.suppress(Unavailable):
            await self._queue.release(run.delivery)

    # ── as its model sees it ─────────────────────────────────────────────────────────────────────

    @property
    def idle_s(self) -> float:
        return 0.0 if self._runs else time.monotonic() - self._idle_since_s

    def open(self) -> None:
        if self._draining:
            return
        assert self._tasks is not None
        self._is_open = True
        self._claims = self._tasks.create_task(self._claim_requests())

    async def close(self) -> None:
        self._is_open = False
        self._stop_claiming()
        # It may not have been claiming just now: full, or busy with what it claimed before.
        self._queue.pause(self.model, self)
        await self._finish(self._unload_timeout_s)
        if self._claims is not None:
            # It may wait for what was said before, of requests that were given back by now.
            self._claims.cancel()
            await asyncio.wait([self._claims])

    def drop(self) -> None:
        for run in [run for run in self._runs.values() if run.running and run.lost]:
            self._stopped(run)
            self._settled(run)

    @property
    def condition(self) -> Condition:
        """How the model is."""
        return self._life.condition

    @property
    def takes_requests(self) -> bool:
        """Whether a request may wait for it."""
        return self._is_open and not self._draining

    def _tell(self) -> None:
        if not self._draining:
            self._queue.attend(self.model, self._life)
        condition = self._life.condition
        if condition.state is ModelState.LOADING:
            update = QueueUpdate(0, loading=round(condition.progress, 2))
            for run in self._runs.values():  # none of which is on the engine yet
                self._queue.announce(run.delivery, update)

    # ── as the queue sees it ─────────────────────────────────────────────────────────────────────

    @property
    def slots(self) -> int:
        return self._generator.capabilities.slots

    @property
    def room(self) -> int:
        return min(self.slots - self._generating, 2 * self.slots - len(self._runs))

    def revoke(self, delivery: Delivery) -> None:
        run = self._runs.get(delivery)
        if run is not None:
            run.revoked = True  # for when it is not submitted yet
            if self._life.is_loaded:
                self._generator.cancel(run)
            elif run.running and not run.lost:
                self._spurn(run)

    def _spurn(self, run: _Run) -> None:
        """It waits for the model to be loaded, which may take minutes; its user does not."""
        assert self._ends is not None
        self._stopped(run)
        self._ends.create_task(self._end([(run, Finished(FinishReason.CANCELLED))]))

    def lose(self, delivery: Delivery) -> None:
        run = self._runs.get(delivery)
        if run is not None:
            run.lost = True
            self.revoke(delivery)

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    async def _claim_requests(self) -> None:
        while self._is_open and not self._draining:
            self._claiming = asyncio.current_task()
            while self.room <= 0:
                self._waits_for_room = True
                self._changed.clear()
                await self._changed.wait()
            self._waits_for_room = False
            runs = [_Run(delivery) for delivery in await self._queue.claim(self.model, self)]
            self._claiming = None
            for run in runs:
                self._runs[run.delivery] = run
                self._generating += 1
            await self._prepare(runs)
            runs = [run for run in runs if run.running]
            for run in runs:
                run.start()
            await self._append([run for run in runs if run.events])
            for run in runs:
                if run.lost:
                    self._stopped(run)
                    self._settled(run)
                    continue
                self._generator.submit(run)
                if run.revoked:
                    self._generator.cancel(run)

    async def _prepare(self, runs: Sequence[_Run]) -> None:
        """Have the model loaded, and the runs know what was said before. When that fails, and not because the
        storage is away, they have failed."""
        try:
            await self._wake()
            await self._recall(runs)
        except GenerationFailed as error:
            failed = [run for run in runs if run.running]
            for run in failed:
                self._stopped(run)
            await self._end([(run, Finished(FinishReason.ERROR, error=error)) for run in failed])

    async def _wake(self) -> None:
        """Have the model loaded. Raises GenerationFailed, without the reason: it may name paths of this
        machine, which are for operators."""
        try:
            await self._life.wake()
        except GenerationFailed:
            raise _not_loaded() from None

    async def _recall(self, runs: Sequence[_Run]) -> None:
        """Give the runs what was said before, as far as the engine looks at it. Raises GenerationFailed."""
        capabilities = self._generator.capabilities
        before: Sequence[tuple[Message, ...]] = [()] * len(runs)
        if capabilities.remembers and any(run.delivery.request.continues for run in runs):
            requests = [run.delivery.request for run in runs]
            max_chars = capabilities.context_length * MAX_CHARS_PER_TOKEN
            try:
                before = await self._insist(lambda: self._history.before(requests, max_chars))
            except Exception:
                log.exception("what was said before cannot be read", extra={"responses": len(runs)})
                raise _forgotten() from None
        for run, messages in zip(runs, before, strict=True):
            run.recall(messages)
            if self._images is not None:
                run.messages = await self._images.loaded(run.messages)

    def _stopped(self, run: _Run) -> None:
        """The engine has done with it."""
        if run.running:
            run.running = False
            self._generating -= 1
            self._changed.set()

    def _settled(self, run: _Run) -> None:
        """The queue has done with it."""
        if self._runs.pop(run.delivery, None) is not None and not self._runs:
            self._idle_since_s = time.monotonic()
        self._changed.set()

    # ── out ──────────────────────────────────────────────────────────────────────────────────────

    async def _write_steps(self, inbox: StepInbox, ends: asyncio.TaskGroup) -> None:
        while True:
            spoke, ended = self._read_step(await inbox.take())
            if spoke:
                # While the queue cannot be reached the step waits here, and soon the engine behind it.
                await self._append(spoke)
            if ended:
                ends.create_task(self._end(ended))
            if self._waits_for_room and self.room > 0:
                # An engine may be full for other reasons than a number, and then no end tells that it is not.
                self._changed.set()

    async def _append(self, runs: Sequence[_Run]) -> None:
        """Append what the runs have to say; those that may not are lost."""
        if not runs:
            return
        for refused in await self._insist(lambda: self._queue.append(runs)):
            run: _Run = refused  # type: ignore[assignment]
            self.lose(run.delivery)

    async def _store(self, responses: Sequence[Response]) -> None:
        """Store how responses ended. One that cannot be stored must not keep the others from it, nor end
        the worker: it is told, and lost to the history."""
        try:
            await self._insist(lambda: self._settle(responses))
        except Exception:
            if len(responses) == 1:
                log.exception("an answer cannot be stored", extra={"response": responses[0].id})
                return
            for response in responses:
                await self._store([response])

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Try until the other side can be reached."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await call()
            except Unavailable as error:
                log.debug("trying again: %s", error.message)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _read_step(self, step: list[Chunk]) -> tuple[list[_Run], list[tuple[_Run, Finished]]]:
        """Turn a step into events; returns who said something and who ended. Loops once per token."""
        spoke: list[_Run] = []
        ended: list[tuple[_Run, Finished]] = []
        now = time.monotonic()
        before, tokens = now, 0
        for job, output in step:
            run: _Run = job  # type: ignore[assignment]  # a cast() would cost a call per token
            if not run.running:
                continue
            kind = type(output)
            if kind is TextDelta or kind is ReasoningDelta or kind is ToolCall or kind is ScoredDelta:
                if run.spoke_at_s != now:  # its first chunk in this step
                    if run.lost:
                        continue
                    spoke.append(run)
                    run.appended()
                    # Nearly all of a step's runs spoke at the same time before: they are metered together.
                    if run.spoke_at_s != before:
                        self._meter_gap(now - before, tokens)
                        before, tokens = run.spoke_at_s, 0
                    if before:
                        tokens += 1
                    else:
                        self._meter_first_token(run)
                    run.spoke_at_s = now
                run.add(output)  # type: ignore[arg-type]
            elif isinstance(output, Finished):
                self._stopped(run)
                ended.append((run, output))
            elif isinstance(output, Prefilled):
                self._queue.announce(run.delivery, QueueUpdate(0, output.done, output.total))
        self._meter_gap(now - before, tokens)
        return spoke, ended

    def _meter_first_token(self, run: _Run) -> None:
        run.first_token_at = time.time()
        if run.attempt == 1:
            self._meter.first_token(self.model, run.first_token_at - run.delivery.request.created_at)

    def _meter_gap(self, seconds: float, tokens: int) -> None:
        if tokens:
            self._meter.token_gap(self.model, seconds, tokens)

    async def _end(self, ended: list[tuple[_Run, Finished]]) -> None:
        """Store and tell how responses ended, all those of one step at once."""
        settled = []
        for run, end in ended:
            if run.lost:
                continue
            if end.error is not None and end.error.retryable:
                delivery, reason = run.delivery, end.error.message
                await self._insist(lambda d=delivery, r=reason: self._queue.retry(d, r))  # type: ignore[misc]
                continue
            if end.error is not None:
                fields = {"response": run.response_id, "code": end.error.code}
                log.warning("response failed", extra=fields)
            run.appended()
            settled.append((run, run.finish(end)))
        # The result is stored before the log says that it is complete: whoever reads the end of the
        # log may continue from it at once.
        await self._store([response for _, response in settled])
        await self._append([run for run, _ in settled])
        for run, _ in ended:
            self._settled(run)
        now = time.time()
        for run, response in settled:
            if not run.lost:
                self._meter.response_ended(self.model, response.status, now - response.created_at)
