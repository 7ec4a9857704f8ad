"""Takes requests of one model from the queue, runs them on an engine, writes what it says into the logs.

Knows engines and the queue, not who reads.
"""

import asyncio
import logging
import time

from internal.biz.events import QueueUpdate, ReasoningDelta, TextDelta
from internal.biz.generation import Chunk, Delivery, Finished, Prefilled, Transcript
from internal.biz.inbox import StepInbox
from internal.biz.ports import Generator, History, Meter, Progress, Queue

log = logging.getLogger(__name__)


class _Run(Transcript):
    """One response on the engine."""

    __slots__ = ("delivery", "lost", "revoked", "running", "spoke_at_s")

    def __init__(self, delivery: Delivery) -> None:
        super().__init__(delivery)
        self.delivery = delivery
        self.running = True
        self.revoked = False
        self.lost = False
        """True when the queue refused its events: it has ended, or is another worker's by now."""
        self.spoke_at_s = 0.0
        """When its last token came; 0 before the first."""


class Worker:
    """Runs one model. At most `slots` responses at a time, as many as the engine takes."""

    def __init__(
        self, model: str, generator: Generator, queue: Queue, history: History, meter: Meter
    ) -> None:
        self.model = model
        self._generator = generator
        self._queue = queue
        self._history = history
        self._meter = meter
        self._runs: dict[str, _Run] = {}
        self._free = asyncio.Event()

    async def run(self, progress: Progress) -> None:
        """Load the model, then work until cancelled. What still runs then ends without a word."""
        inbox = StepInbox(asyncio.get_running_loop())
        try:
            await self._generator.start(inbox, progress)
            progress(1.0)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._claim_requests())
                tasks.create_task(self._write_steps(inbox, tasks))
        finally:
            inbox.close()
            await self._generator.stop()

    @property
    def room(self) -> int:
        return self._generator.capabilities.slots - len(self._runs)

    async def _claim_requests(self) -> None:
        while True:
            while self.room <= 0:
                self._free.clear()
                await self._free.wait()
            run = _Run(await self._queue.claim(self.model, self))
            self._runs[run.response_id] = run
            run.start()
            if run.events and await self._queue.append([run]):
                self._release(run)
                continue
            self._generator.submit(run)
            if run.revoked:
                self._generator.cancel(run)

    def revoke(self, response_id: str) -> None:
        run = self._runs.get(response_id)
        if run is not None:
            run.revoked = True  # for when it is not submitted yet
            self._generator.cancel(run)

    def _release(self, run: _Run) -> None:
        del self._runs[run.response_id]
        self._free.set()

    async def _write_steps(self, inbox: StepInbox, tasks: asyncio.TaskGroup) -> None:
        while True:
            spoke, ended = self._read_step(await inbox.take())
            if spoke:
                for response_id in await self._queue.append(spoke):
                    if (run := self._runs.get(response_id)) is not None:
                        run.lost = True
                        self._generator.cancel(run)
            for run, _ in ended:
                self._release(run)
            if mine := [(run, end) for run, end in ended if not run.lost]:
                tasks.create_task(self._end(mine))

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
            if kind is TextDelta or kind is ReasoningDelta:
                if run.spoke_at_s != now:  # its first chunk in this step
                    spoke.append(run)
                    run.appended()
                    # Nearly all of a step's runs spoke at the same time before: they are metered together.
                    if run.spoke_at_s != before:
                        self._meter_gap(now - before, tokens)
                        before, tokens = run.spoke_at_s, 0
                    if before:
                        tokens += 1
                    else:
                        self._meter.first_token(self.model, time.time() - run.request.created_at)
                    run.spoke_at_s = now
                run.add(output)  # type: ignore[arg-type]
            elif isinstance(output, Finished):
                run.running = False
                ended.append((run, output))
            elif isinstance(output, Prefilled):
                self._tell_progress(run, output)
        self._meter_gap(now - before, tokens)
        return spoke, ended

    def _meter_gap(self, seconds: float, tokens: int) -> None:
        if tokens:
            self._meter.token_gap(self.model, seconds, tokens)

    def _tell_progress(self, run: _Run, prefilled: Prefilled) -> None:
        update = QueueUpdate(0, prefilled.done, prefilled.total)
        self._queue.announce(run.response_id, update)

    async def _end(self, ended: list[tuple[_Run, Finished]]) -> None:
        """Store and tell how responses ended, all those of one step at once."""
        settled = []
        for run, end in ended:
            if end.error is not None and end.error.retryable:
                await self._queue.retry(run.delivery, end.error.message)
                continue
            if end.error is not None:
                fields = {"response": run.response_id, "code": end.error.code}
                log.warning("response failed", extra=fields)
            run.appended()
            settled.append((run, run.finish(end)))
        # The result is stored before the log says that it is complete: whoever reads the end of the
        # log may continue from it at once.
        await self._history.finish([response for _, response in settled])
        await self._queue.append([run for run, _ in settled])
        now = time.time()
        for run, response in settled:
            await self._queue.ack(run.delivery)
            seconds = now - run.request.created_at
            self._meter.response_ended(self.model, response.status, seconds)
