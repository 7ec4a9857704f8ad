"""The jobs that an engine works on, a task for each. Knows how they end, not what they do."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from internal.biz.errors import GenerationFailed, SluiceError
from internal.biz.generation import Finished, FinishReason, Job, Output
from internal.biz.ports import Sink
from internal.generator.openai.answer import Answer

log = logging.getLogger(__name__)


class Work(Protocol):
    """What generates the answer to one job."""

    @property
    def answer(self) -> Answer:
        """What is said at the moment."""

    async def generate(self) -> Finished:
        """Returns how it ended. Raises SluiceError. Cancelling it ends the request, too."""


class Jobs:
    """Bound: what the worker submits, which is as much as the engine has slots."""

    def __init__(self, *, is_discreet: bool = False) -> None:
        """`is_discreet`: of an error that nobody expected the log tells where it was, and not in which words:
        these may hold an address."""
        self._is_discreet = is_discreet
        self._sink: Sink | None = None
        self._tasks: dict[Job, asyncio.Task[Finished]] = {}
        self._stopping = False

    def start(self, sink: Sink) -> None:
        self._sink, self._stopping = sink, False

    def submit(self, job: Job, work: Work) -> None:
        task = asyncio.create_task(work.generate())
        self._tasks[job] = task
        task.add_done_callback(partial(self._ended, job, work))

    def cancel(self, job: Job) -> None:
        if (task := self._tasks.get(job)) is not None:
            task.cancel()

    async def stop(self) -> None:
        """Nothing more is said, and no task is left."""
        self._stopping = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def tell(self, job: Job, outputs: Sequence[Output]) -> bool:
        """Hand over what is said of a job. True: wait for `room` before there is more."""
        assert self._sink is not None
        return self._sink.give([(job, output) for output in outputs])

    async def room(self) -> None:
        assert self._sink is not None
        await self._sink.room()

    def _ended(self, job: Job, work: Work, task: asyncio.Task[Finished]) -> None:
        """The last word on a job, also on one that was cancelled before it began."""
        del self._tasks[job]
        if self._stopping or self._sink is None:
            return
        end = self._end(job, work, task)
        self._sink.give([*((job, output) for output in work.answer.held()), (job, end)])

    def _end(self, job: Job, work: Work, task: asyncio.Task[Finished]) -> Finished:
        if task.cancelled():
            return Finished(FinishReason.CANCELLED, work.answer.usage())
        error = task.exception()
        if error is None:
            return task.result()
        if not isinstance(error, SluiceError):
            self._log(job, error)
            error = GenerationFailed(f"the engine failed: {type(error).__name__}")
        return Finished(FinishReason.ERROR, work.answer.usage(), error)

    def _log(self, job: Job, error: BaseException) -> None:
        if not self._is_discreet:
            log.error("the upstream engine failed", exc_info=error, extra={"response": job.response_id})
            return
        fields = {"response": job.response_id, "error": type(error).__name__, "at": _place(error)}
        log.error("the upstream engine failed", extra=fields)


def _place(error: BaseException) -> str:
    """Where an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else ""
