"""The answers on one loaded model: who waits, who is in the step, who ended. Lives on the engine's thread.

The library starts its jobs in the order in which it gets them, and reads a part of every new prompt in each
step. So it gets a job only when there is room for it, in the order of our own queue, and few unread prompts
at a time.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from internal.biz.errors import GenerationFailed, SluiceError
from internal.biz.generation import Chunk, Finished, FinishReason, Output
from internal.generator.exllamav2.options import LoraOptions
from internal.generator.exllamav2.run import Owner, Run
from internal.generator.exllamav2.stats import EngineStats

log = logging.getLogger(__name__)

TURN_S = 2.0
"""How long answers with other adapters wait before those in the step make way for them."""

Steps = dict[Owner, list[Chunk]]
"""What is said in a step, for each model that shares the engine."""


class Library(Protocol):
    """A loaded model. `chunk_size` and `slots` as in LoadOptions; pages are those of the cache, which is one
    page, for one answer, where it `is_paged` not."""

    @property
    def chunk_size(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def is_paged(self) -> bool: ...
    @property
    def pages(self) -> int: ...
    @property
    def free_pages(self) -> int: ...

    def job(self, run: Run, max_new_tokens: int) -> Any:
        """A job of the library, which goes on from `run.library_job`, if there was one."""

    def enqueue(self, job: Any) -> int:
        """How many free pages it will take when it starts. Raises what the library does when it never
        will."""

    def cancel(self, job: Any) -> None:
        """Take a job out, unless it has ended."""

    def iterate(self) -> Sequence[Mapping[str, Any]]:
        """One step; of each result `identifier` is the run."""

    def cached_tokens(self, job: Any) -> int:
        """How much of its prompt was in the cache."""

    def use(self, adapters: tuple[LoraOptions, ...]) -> None:
        """While nothing runs. What was cached is of no use to others."""

    def recover(self) -> None:
        """Forget all jobs and the cache, after a step that failed. Raises EngineLost when the GPU is of no
        more use to this process."""


class Batch:
    """Bound: what is added, which is as many as the models' workers take at a time."""

    def __init__(
        self, library: Library, stats: EngineStats, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._library = library
        self._stats = stats
        self._clock = clock
        self._waiting: deque[Run] = deque()
        self._active: dict[Run, None] = {}
        self._adapters: tuple[LoraOptions, ...] = ()
        self._added = 0
        self._lacking: Run | None = None
        """Who was the last to find no place, and how many pages that takes."""
        self._lacking_pages = 0
        self.is_full = False
        """Somebody waits for a place in the cache."""

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._active)

    def add(self, run: Run) -> None:
        self._added += 1
        run.number, run.waiting_since_s = self._added, self._clock()
        self._waiting.append(run)

    def cancel(self, run: Run) -> Steps:
        """End it, unless it has ended."""
        if run in self._active:
            self._library.cancel(run.library_job)
        elif run not in self._waiting:
            return {}
        run.end = FinishReason.CANCELLED
        steps: Steps = {}
        self._end(run, steps)
        return steps

    def leave(self, owner: Owner) -> None:
        """End its answers without a word."""
        for run in [it for it in (*self._active, *self._waiting) if it.owner is owner]:
            if run in self._active:
                self._library.cancel(run.library_job)
            self._forget(run)

    def step(self) -> Steps:
        """Start what there is room for, and take one step of the library."""
        steps: Steps = {}
        self.is_full = bool(self._waiting) and not self._admit(steps)
        if self._active:
            begun_s = self._clock()
            for result in self._library.iterate():
                run: Run = result["identifier"]
                if run in self._active:  # its own fault may have ended it
                    self._read(run, result, steps)
            self._stats.observe_step(self._clock() - begun_s)
        self._count()
        return steps

    def fail(self, error: SluiceError) -> Steps:
        """End all that were in a step that failed, each with `error`. Those that wait go on waiting. Raises
        EngineLost, and then nobody has ended."""
        self._library.recover()
        steps: Steps = {}
        # Where nobody was in it yet, those who wait are why it failed.
        for run in list(self._active or self._waiting):
            self._fail(run, error, steps)
        return steps

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    def _admit(self, steps: Steps) -> bool:
        """Hand over to the library what fits, in order. False: somebody waits for a place in the cache."""
        library, free = self._library, self._library.free_pages
        unread = sum(min(len(it.tokens), library.chunk_size) for it in self._active if not it.has_spoken)
        for run in self._candidates():
            if len(self._active) >= library.slots:
                return True
            if not run.has_spoken and unread >= library.chunk_size and self._active:
                continue  # what was read once is in the cache
            if run is self._lacking and free < self._lacking_pages:
                return False
            try:
                run.library_job = library.job(run, run.next_part(is_paged=library.is_paged))
                pages = library.enqueue(run.library_job)
            except Exception as error:
                log.exception("exllamav2 refuses a job", extra={"response": run.job.response_id})
                self._fail(run, _failure(error), steps)
                continue
            if pages > free:
                library.cancel(run.library_job)
                # To find that out takes milliseconds for a long prompt.
                self._lacking, self._lacking_pages = run, pages
                return False
            free -= pages
            self._found_place(run)
            self._waiting.remove(run)
            self._active[run] = None
            if not run.has_spoken:
                unread += min(len(run.tokens), library.chunk_size)
        return True

    def _found_place(self, run: Run) -> None:
        """Or needs none any more."""
        if run is self._lacking:
            self._lacking = None

    def _candidates(self) -> list[Run]:
        """Those that wait and go with the adapters in use, in order. Others get their turn after TURN_S: then
        nobody is started until the step is empty, which takes no longer than a part of an answer."""
        if not self._active:
            adapters = min(self._waiting, key=lambda run: run.waiting_since_s).order.adapters
            if adapters != self._adapters:
                self._library.use(adapters)
                self._adapters = adapters
        others = [it.waiting_since_s for it in self._waiting if it.order.adapters != self._adapters]
        if self._active and others and self._clock() - min(others) > TURN_S:
            return []
        return [run for run in self._waiting if run.order.adapters == self._adapters]

    # ── out ──────────────────────────────────────────────────────────────────────────────────────

    def _read(self, run: Run, result: Mapping[str, Any], steps: Steps) -> None:
        """Called once per token."""
        if not run.has_spoken and result["stage"] == "streaming":
            run.cached_tokens = self._library.cached_tokens(run.library_job)
            self._stats.prompt_tokens += len(run.tokens)
            self._stats.cached_tokens += run.cached_tokens
        before = len(run.tokens)
        try:
            said = run.read(result)
        except Exception as error:  # must not end the others
            if not result["eos"]:
                self._library.cancel(run.library_job)
            self._fail(run, _failure(error), steps)
            return
        self._stats.generated_tokens += len(run.tokens) - before
        if said:
            _say(steps, run, said)
        if run.end is not None:
            if not result["eos"]:
                self._library.cancel(run.library_job)
            self._end(run, steps)
        elif run.is_paused:
            if not result["eos"]:
                self._library.cancel(run.library_job)
            del self._active[run]
            run.waiting_since_s = self._clock()
            self._put_back(run)

    def _put_back(self, run: Run) -> None:
        """Ahead of all who have not begun, behind those who began before it."""
        place = 0
        for other in self._waiting:
            if not other.has_spoken or other.number > run.number:
                break
            place += 1
        self._waiting.insert(place, run)

    def _end(self, run: Run, steps: Steps) -> None:
        try:
            outputs = run.finish()
        except Exception as error:
            self._fail(run, _failure(error), steps)
            return
        self._forget(run)
        _say(steps, run, outputs)

    def _fail(self, run: Run, error: SluiceError, steps: Steps) -> None:
        self._forget(run)
        _say(steps, run, [Finished(FinishReason.ERROR, run.usage(), error)])

    def _forget(self, run: Run) -> None:
        self._active.pop(run, None)
        self._found_place(run)
        if run in self._waiting:
            self._waiting.remove(run)
        run.owner.ended(run.job)

    def _count(self) -> None:
        stats, pages = self._stats, self._library.pages
        stats.running, stats.waiting = len(self._active), len(self._waiting)
        stats.pages, stats.pages_used = pages, pages - self._library.free_pages


def _say(steps: Steps, run: Run, outputs: Iterable[Output]) -> None:
    step = steps.get(run.owner)
    if step is None:
        steps[run.owner] = step = []
    job = run.job
    step += [(job, output) for output in outputs]


def _failure(error: Exception) -> SluiceError:
    if isinstance(error, SluiceError):
        return error
    return GenerationFailed(f"the engine failed: {type(error).__name__}")
