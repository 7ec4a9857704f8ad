"""Sluice's engine for a model on a GPU, without server and queue: what is asked of it, and what it says."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from internal.biz.errors import EngineLost
from internal.biz.events import TextDelta
from internal.biz.generation import Chunk, Finished, FinishReason, Job
from internal.biz.models import Message, Role, Sampling, Settings, Usage
from internal.biz.sampling import RareSampling
from internal.generator.exllamav2.engine import ExLlamaV2Generator
from internal.generator.exllamav2.host import Host
from internal.generator.exllamav2.loader import load_model
from internal.generator.exllamav2.options import ExLlamaV2Options, LoadOptions
from internal.generator.exllamav2.stats import EngineStats

PATIENCE_S = 180.0


@dataclass(slots=True, eq=False)
class Answer:
    """As it comes; `end` when it has ended. `steps` said something of it."""

    job: Job
    text: str = ""
    steps: int = 0
    end: Finished | None = None
    ended_at_s: float = 0.0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def reason(self) -> FinishReason | None:
        return self.end.reason if self.end is not None else None

    @property
    def usage(self) -> Usage:
        return self.end.usage if self.end is not None else Usage()

    async def wait(self, *, steps: int = 0) -> None:
        """Until so many steps have said something, or (0) until it has ended."""
        async with asyncio.timeout(PATIENCE_S):
            while self.end is None and not (steps and self.steps >= steps):
                self.news.clear()
                await self.news.wait()


class Heard:
    """Implements Sink: passes on what the engine says to the answers."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._answers: dict[Job, Answer] = {}

    def expect(self, job: Job) -> Answer:
        answer = self._answers[job] = Answer(job)
        return answer

    def put(self, step: list[Chunk]) -> None:
        self._loop.call_soon_threadsafe(self._take, step)

    def give(self, step: list[Chunk]) -> bool:
        self._take(step)
        return False

    async def room(self) -> None: ...

    def fail(self, error: EngineLost) -> None:
        self._loop.call_soon_threadsafe(self._lose, error)

    def _lose(self, error: EngineLost) -> None:
        self._take([(job, Finished(FinishReason.ERROR, error=error)) for job in self._answers])

    def _take(self, step: list[Chunk]) -> None:
        for job, output in step:
            answer = self._answers[job]
            if isinstance(output, TextDelta):
                answer.text += output
                answer.steps += 1
            elif isinstance(output, Finished):
                answer.end, answer.ended_at_s = output, time.perf_counter()
                del self._answers[job]
            answer.news.set()


class Engine:
    """One that has its model loaded."""

    def __init__(self, generator: ExLlamaV2Generator, host: Host, heard: Heard) -> None:
        self.generator = generator
        self.host = host
        self._heard = heard
        self._asked = 0

    @property
    def model(self) -> Any:
        assert self.host.model is not None
        return self.host.model

    def submit(self, question: str | Sequence[Message], settings: Settings) -> Answer:
        messages = (Message(Role.USER, question),) if isinstance(question, str) else tuple(question)
        self._asked += 1
        job = Job(f"resp_{self._asked}", messages, settings)
        answer = self._heard.expect(job)
        self.generator.submit(job)
        return answer

    async def ask(self, question: str | Sequence[Message], settings: Settings) -> Answer:
        answer = self.submit(question, settings)
        await answer.wait()
        return answer

    async def ask_together(self, questions: Sequence[str], settings: Settings) -> list[Answer]:
        answers = [self.submit(question, settings) for question in questions]
        for answer in answers:
            await answer.wait()
        return answers


def greedy(tokens: int, *, least: int = 0, **more: Any) -> Settings:
    """The likeliest token each time; at most `tokens`, and at least `least`."""
    sampling = Sampling(temperature=0.0, rare=RareSampling(min_tokens=least))
    return Settings(max_output_tokens=tokens, sampling=sampling, **more)


@contextlib.asynccontextmanager
async def running(load: LoadOptions) -> AsyncIterator[Engine]:
    """Loads the model, and gives its memory back in the end. Raises GenerationFailed."""
    host = Host(load, (), load_model, EngineStats())
    options = ExLlamaV2Options(
        load=load, loras=(), template=None, stop=(), max_output_tokens=1024, sampling=Sampling()
    )
    generator, heard = ExLlamaV2Generator(options, host), Heard()
    await generator.start(heard, lambda done: None)
    try:
        yield Engine(generator, host, heard)
    finally:
        await generator.stop()
