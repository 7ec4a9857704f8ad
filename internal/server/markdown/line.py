"""Who waits for what is to be rendered. Callers take turns: nobody stands behind another's hundred."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from internal.biz.errors import SluiceError, Unavailable

MAX_WAITING = 64
MAX_WAITING_OF_ONE = 16
MAX_WAITING_CHARS = 8 << 20
"""Of all together; one alone may be larger."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Texts of one request. `done` gets as many pieces of HTML."""

    caller: str
    texts: Sequence[str]
    done: "asyncio.Future[Sequence[str]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def chars(self) -> int:
        return sum(map(len, self.texts))


class Line:
    """One for each caller, of jobs in the order of their arrival. Refuses what passes a bound above."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, dict[Job, None]] = OrderedDict()
        self._waiting = 0
        self._chars = 0
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return self._waiting

    def push(self, job: Job) -> None:
        """Raises Unavailable."""
        if (
            self._waiting >= MAX_WAITING
            or len(self._lines.get(job.caller, ())) >= MAX_WAITING_OF_ONE
            or (self._waiting and self._chars + job.chars > MAX_WAITING_CHARS)
        ):
            raise Unavailable(
                "more is waiting to be rendered than can be soon; try again", code="markdown_busy"
            )
        self._lines.setdefault(job.caller, {})[job] = None
        self._count(job, 1)
        self._news.set()

    async def pop(self) -> Job:
        """The next one, as soon as there is one."""
        while not self._lines:
            self._news.clear()
            await self._news.wait()
        caller, jobs = next(iter(self._lines.items()))
        job = next(iter(jobs))
        self.remove(job)
        if caller in self._lines:
            self._lines.move_to_end(caller)
        return job

    def remove(self, job: Job) -> None:
        """Nothing happens when it does not wait here."""
        jobs = self._lines.get(job.caller, {})
        if job not in jobs:
            return
        del jobs[job]
        self._count(job, -1)
        if not jobs:
            del self._lines[job.caller]

    def _count(self, job: Job, sign: int) -> None:
        self._waiting += sign
        self._chars += sign * job.chars

    def refuse_all(self, error: SluiceError) -> None:
        """Nobody will be served any more."""
        for jobs in list(self._lines.values()):
            for job in list(jobs):
                self.remove(job)
                if not job.done.done():
                    job.done.set_exception(error)
