"""The echo engine: says every message back in numbered chunks, and may think it over before. For
demonstrations and load tests.

It behaves as a batching engine does: one thread steps all running responses together, one chunk each.
"""

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from internal.biz.errors import GenerationFailed
from internal.biz.events import Delta, ReasoningDelta, TextDelta
from internal.biz.generation import Chunk, Finished, FinishReason, Job
from internal.biz.models import SAMPLING_FEATURES, Role, Usage
from internal.biz.ports import Capabilities, Progress, Sink

log = logging.getLogger(__name__)

CACHED_CHARS = 256


@dataclass(slots=True)
class _Echo:
    """A running response: what it will say, and how much of that it has said."""

    job: Job
    message: str
    texts: Sequence[Delta]
    said: int
    complete: bool
    thoughts: int = 0
    """How many of `texts` come before the answer."""


@dataclass(slots=True)
class _Commands:
    """What the event loop asked for since the last step."""

    jobs: list[Job] = field(default_factory=list)
    cancelled: list[Job] = field(default_factory=list)


class EchoGenerator:
    """Implements Generator. `interval_s` 0 steps as fast as the event loop takes it; `thinking` is the number
    of chunks of reasoning before the answer."""

    # What it says is not chosen: how to choose changes nothing.
    FEATURES = SAMPLING_FEATURES

    def __init__(self, chunks: int, interval_s: float, slots: int, thinking: int = 0) -> None:
        self._chunks = chunks
        self._thinking = thinking
        self._interval_s = interval_s
        self._changed = threading.Condition()
        self._commands = _Commands()
        self._unfinished: set[Job] = set()
        """All whose end was not told yet. Bound: `slots`."""
        self._ended: list[Job] = []
        """Those that ended in the step at hand."""
        self._stopping = False
        self._idle = True
        self._thread: threading.Thread | None = None
        self.capabilities = Capabilities(context_length=0, slots=slots, remembers=False)

    async def start(self, sink: Sink, progress: Progress) -> None:
        self._stopping, self._idle = False, True
        self._commands, self._unfinished, self._ended = _Commands(), set(), []
        self._thread = threading.Thread(target=self._run, args=(sink,), name="echo", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        with self._changed:
            self._commands.jobs.append(job)
            self._unfinished.add(job)
            if self._idle:
                # While something runs, the next step finds the job; a wake-up for each would cost a
                # thread switch.
                self._changed.notify()

    def cancel(self, job: Job) -> None:
        with self._changed:
            self._commands.cancelled.append(job)
            self._changed.notify()

    async def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            # Not here: it may wait for the event loop to take its last step.
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _run(self, sink: Sink) -> None:
        """Step until told to stop. A fault ends the jobs there are, and all that come later."""
        try:
            self._serve(sink)
        except Exception:
            log.exception("the echo engine failed")
            self._refuse(sink)

    def _refuse(self, sink: Sink) -> None:
        error = GenerationFailed("the engine failed")
        while True:
            with self._changed:
                self._idle = True
                while not self._stopping and not self._unfinished:
                    self._changed.wait()
                if self._stopping:
                    return
                jobs, self._unfinished = self._unfinished, set()
                self._commands = _Commands()
            sink.put([(job, Finished(FinishReason.ERROR, error=error)) for job in jobs])

    def _serve(self, sink: Sink) -> None:
        running: dict[Job, _Echo] = {}
        due = 0.0
        while True:
            with self._changed:
                self._unfinished.difference_update(self._ended)
                self._ended = []
                self._idle = not running
                while not self._stopping and not self._due(running, due):
                    self._changed.wait(due - time.monotonic() if running else None)
                if self._stopping:
                    return
                commands, self._commands = self._commands, _Commands()
            if not running:
                due = max(due, time.monotonic())
            step = self._begin(commands, running)
            if time.monotonic() >= due:
                step += self._step(running)
                # A late step does not make the next one early.
                due = max(due + self._interval_s, time.monotonic() + self._interval_s / 2)
            if step:
                sink.put(step)

    def _due(self, running: dict[Job, _Echo], due: float) -> bool:
        """Whether there is something to do: a command, or the time of the next step."""
        commands = self._commands
        if commands.cancelled or (commands.jobs and not running):
            return True
        return bool(running or commands.jobs) and time.monotonic() >= due

    def _begin(self, commands: _Commands, running: dict[Job, _Echo]) -> list[Chunk]:
        """Admit new jobs and end the cancelled ones."""
        for job in commands.jobs:
            running[job] = self._echo(job)
        return [
            self._end(echo, FinishReason.CANCELLED)
            for job in commands.cancelled
            if (echo := running.pop(job, None)) is not None
        ]

    def _end(self, echo: _Echo, reason: FinishReason) -> Chunk:
        self._ended.append(echo.job)
        return echo.job, Finished(reason, _usage(echo))

    def _echo(self, job: Job) -> _Echo:
        message = next((m.content for m in reversed(job.messages) if m.role is Role.USER), "")
        # A load test sends one message from thousands of sessions: its chunks are made once.
        make = _cached_chunks if len(message) <= CACHED_CHARS else _chunks
        thoughts = self._thinking
        texts: Sequence[Delta] = make(message, self._chunks, thoughts)
        limit = job.settings.max_output_tokens
        complete = limit is None or limit >= len(texts)
        # Where the answer has begun, the thoughts are over, however many there were.
        said, end, rest = 0, thoughts, len(job.reasoning)
        if job.answering:
            said, end, rest = thoughts, len(texts), len(job.emitted)
        while said < end and rest >= len(texts[said]):
            rest -= len(texts[said])
            said += 1
        if rest and said < end:  # an earlier attempt ended inside a chunk
            texts = (*texts[:said], type(texts[said])(texts[said][rest:]), *texts[said + 1 :])
        return _Echo(job, message, texts if complete else texts[:limit], said, complete, thoughts)

    def _step(self, running: dict[Job, _Echo]) -> list[Chunk]:
        """One chunk for each running response. The loop runs once per token."""
        step: list[Chunk] = []
        ended = []
        for echo in running.values():
            texts, said = echo.texts, echo.said
            if said < len(texts):
                step.append((echo.job, texts[said]))
                echo.said = said = said + 1
            if said >= len(texts):
                ended.append(echo)
        for echo in ended:
            del running[echo.job]
            step.append(self._end(echo, FinishReason.STOP if echo.complete else FinishReason.LENGTH))
        return step


def _chunks(message: str, count: int, thoughts: int) -> tuple[Delta, ...]:
    return (
        *(ReasoningDelta(f"thought {number}: {message}") for number in range(1, thoughts + 1)),
        *(TextDelta(f"chunk {number}: {message}") for number in range(1, count + 1)),
    )


_cached_chunks = functools.lru_cache(maxsize=256)(_chunks)


def _usage(echo: _Echo) -> Usage:
    """An echo's token is a word of the message, or a chunk of a thought or of the answer."""
    return Usage(
        input_tokens=len(echo.message.split()),
        output_tokens=echo.said,
        reasoning_tokens=min(echo.said, echo.thoughts),
    )
