"""Who waits and who is in the step, on a library of pages and nothing else."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from internal.biz.errors import EngineLost
from internal.biz.generation import Chunk, Finished, Job
from internal.biz.models import Settings
from internal.generator.exllamav2.batch import Batch, Steps
from internal.generator.exllamav2.options import LoraOptions
from internal.generator.exllamav2.run import Order, Run
from internal.generator.exllamav2.stats import EngineStats
from internal.generator.reasoning import ReasoningSplitter
from internal.generator.speech import Speech

PAGE = 256


class Tokens:
    def __init__(self, token: int) -> None:
        self._token = token

    def tolist(self) -> list[list[int]]:
        return [[self._token]]


class Pages:
    """Reads one prompt's part in a step and says one token of each answer whose prompt it has read."""

    chunk_size, slots, is_paged = PAGE, 8, True

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.jobs: dict[Run, SimpleNamespace] = {}
        self.enqueued = 0
        self._read: dict[Run, int] = {}

    @property
    def free_pages(self) -> int:
        taken: int = sum(job.pages for job in self.jobs.values())
        return self.pages - taken

    def job(self, run: Run, max_new_tokens: int) -> SimpleNamespace:
        return SimpleNamespace(
            run=run, left=max_new_tokens, pages=-(-(len(run.tokens) + max_new_tokens) // PAGE)
        )

    def enqueue(self, job: SimpleNamespace) -> int:
        self.enqueued += 1
        self.jobs[job.run] = job
        pages: int = job.pages
        return pages

    def cancel(self, job: SimpleNamespace) -> None:
        del self.jobs[job.run]

    def iterate(self) -> Sequence[Mapping[str, Any]]:
        results: list[dict[str, Any]] = []
        for run, job in list(self.jobs.items()):
            read = self._read.get(run, 0)
            if read < len(run.brief.prompt):
                self._read[run] = read + PAGE
                continue
            job.left -= 1
            result = {"stage": "streaming", "identifier": run, "text": "x", "token_ids": Tokens(1)}
            if job.left:
                results.append({**result, "eos": False})
            else:
                results.append({**result, "eos": True, "eos_reason": "max_new_tokens"})
                del self.jobs[run]
        return results

    def cached_tokens(self, job: SimpleNamespace) -> int:
        return 0

    def use(self, adapters: tuple[LoraOptions, ...]) -> None: ...

    def recover(self) -> None: ...


class Owner:
    def put(self, step: list[Chunk]) -> None: ...

    def ended(self, job: Job) -> None: ...

    def remember(self, prompt: Sequence[int], text: str, tokens: Sequence[int]) -> None: ...

    def lose(self, error: EngineLost) -> None: ...


class Bench:
    """A batch, and who said something in its steps."""

    def __init__(self, pages: int) -> None:
        self.library = Pages(pages)
        self.batch = Batch(self.library, EngineStats())
        self.ended: list[str] = []

    def ask(self, name: str, *, prompt: int = 10, answer: int = 1000) -> Run:
        job = Job(name, (), Settings())
        speech = Speech(job, ReasoningSplitter("answering"), is_answer_kept=False, replay=None)
        brief: Any = SimpleNamespace(
            speech=speech,
            prompt=[1] * prompt,
            said=[],
            max_tokens=answer,
            said_tokens=0,
            reasoning_tokens=0,
        )
        run = Run(job, Owner(), brief, Order(None, frozenset()))
        self.batch.add(run)
        return run

    def step(self) -> set[str]:
        return self._said(self.batch.step())

    def _said(self, steps: Steps) -> set[str]:
        chunks = [chunk for step in steps.values() for chunk in step]
        self.ended += [job.response_id for job, output in chunks if isinstance(output, Finished)]
        return {job.response_id for job, _ in chunks}

    def until_ended(self, *names: str) -> None:
        for _ in range(5000):
            if set(names) <= set(self.ended):
                return
            self.step()
        pytest.fail(f"ended: {self.ended}")


def test_an_answer_goes_on_while_somebodys_long_prompt_is_read() -> None:
    bench = Bench(pages=100)
    bench.ask("answer")
    for _ in range(490):  # nearly to the end of its first part
        bench.step()
    bench.ask("long", prompt=30 * PAGE)
    silent = 0
    for _ in range(30):
        silent += "answer" not in bench.step()
    assert silent == 0  # not even where it goes on with its next part


def test_who_began_first_ends_first_when_there_is_no_place_for_both() -> None:
    bench = Bench(pages=5)  # both begin, and have no room to go on
    bench.ask("first", answer=1000)
    bench.ask("second", answer=1000)
    bench.until_ended("first", "second")
    assert bench.ended == ["first", "second"]


def test_who_waits_for_a_place_is_not_tried_in_every_step() -> None:
    bench = Bench(pages=8)
    bench.ask("runs", answer=500)
    bench.ask("waits", prompt=6 * PAGE, answer=10)
    for _ in range(200):
        bench.step()
    assert bench.batch.is_full
    assert bench.library.enqueued == 2
    bench.until_ended("runs", "waits")
    assert not bench.batch.is_full


def test_it_is_full_only_while_somebody_waits_for_a_place() -> None:
    bench = Bench(pages=8)
    bench.ask("runs", answer=500)
    waiting = bench.ask("waits", prompt=6 * PAGE)
    bench.step()
    assert bench.batch.is_full
    bench.batch.cancel(waiting)
    bench.step()
    assert not bench.batch.is_full
