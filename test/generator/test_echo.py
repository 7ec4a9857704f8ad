"""The echo engine: exactly the chunks it promises, one step for all."""

import asyncio
import threading
from collections.abc import AsyncIterator
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import EngineLost, GenerationFailed
from internal.biz.events import Delta, ReasoningDelta, TextDelta
from internal.biz.generation import Chunk, Finished, FinishReason, Job
from internal.biz.models import Message, Role, Settings, Usage
from internal.generator.echo import EchoGenerator

if TYPE_CHECKING:
    from test.conftest import Sink


class Echoes:
    def __init__(self, sink: "Sink") -> None:
        self.sink = sink
        self._engines: list[EchoGenerator] = []

    async def start(self, chunks: int = 5, interval_s: float = 0.0, thinking: int = 0) -> EchoGenerator:
        engine = EchoGenerator(chunks, interval_s, 100, thinking)
        self._engines.append(engine)
        await engine.start(self.sink, lambda _: None)
        return engine

    async def stop(self) -> None:
        for engine in self._engines:
            await engine.stop()


@pytest.fixture
async def echoes(watched_loop: None, sink: "Sink") -> AsyncIterator[Echoes]:
    echoes = Echoes(sink)
    yield echoes
    await echoes.stop()


def job(name: str, *turn: str, emitted: str = "", limit: int | None = None) -> Job:
    messages = tuple(Message(Role.USER, text) for text in turn)
    return Job(name, messages, Settings(max_output_tokens=limit), emitted)


def said(steps: list[list[Chunk]], one: Job) -> list[str]:
    return [str(output) for step in steps for j, output in step if j is one and isinstance(output, TextDelta)]


def deltas(steps: list[list[Chunk]], one: Job) -> list[Delta]:
    """What was said, and what was thought."""
    return [
        output
        for step in steps
        for j, output in step
        if j is one and isinstance(output, (TextDelta, ReasoningDelta))
    ]


def end(steps: list[list[Chunk]], one: Job) -> Finished:
    (finished,) = (
        output for step in steps for j, output in step if j is one and isinstance(output, Finished)
    )
    return finished


async def test_a_message_comes_back_in_numbered_chunks(echoes: Echoes) -> None:
    engine, one = await echoes.start(), job("r", "hello")
    engine.submit(one)
    steps = await echoes.sink.until_ended(one)
    assert said(steps, one) == [f"chunk {n}: hello" for n in range(1, 6)]
    assert [len(step) for step in steps] == [1, 1, 1, 1, 2]  # the end comes with the last chunk
    assert end(steps, one).reason is FinishReason.STOP
    assert end(steps, one).error is None


async def test_the_last_message_of_the_user_is_echoed(echoes: Echoes) -> None:
    engine = await echoes.start(chunks=1)
    one = Job(
        "r", (Message(Role.USER, "a"), Message(Role.USER, "b"), Message(Role.ASSISTANT, "c")), Settings()
    )
    engine.submit(one)
    assert said(await echoes.sink.until_ended(one), one) == ["chunk 1: b"]


@pytest.mark.parametrize("message", ["", "line\nline", "héllo 🦆", "x" * 300, "x" * 100_000])
async def test_any_message_comes_back_as_it_is(echoes: Echoes, message: str) -> None:
    engine, one = await echoes.start(chunks=2), job("r", message)
    engine.submit(one)
    assert said(await echoes.sink.until_ended(one), one) == [f"chunk 1: {message}", f"chunk 2: {message}"]


async def test_all_that_run_step_together(echoes: Echoes) -> None:
    engine = await echoes.start(interval_s=0.01)
    jobs = [job(f"r{n}", str(n)) for n in range(20)]
    for one in jobs:
        engine.submit(one)
    steps = await echoes.sink.until_ended(*jobs)
    for n, one in enumerate(jobs):
        assert said(steps, one) == [f"chunk {i}: {n}" for i in range(1, 6)]
    for step in steps:
        spoke = [j.response_id for j, output in step if isinstance(output, TextDelta)]
        assert len(spoke) == len(set(spoke))  # one chunk each
    # Those that were submitted together are stepped together.
    assert len(steps) <= 7


async def test_a_cancel_ends_within_one_step(echoes: Echoes) -> None:
    engine, one, other = await echoes.start(chunks=1000, interval_s=0.005), job("a", "x"), job("b", "y")
    engine.submit(one)
    engine.submit(other)
    before = [await echoes.sink.step(), await echoes.sink.step()]
    engine.cancel(one)
    steps = await echoes.sink.until_ended(one)
    assert end(steps, one).reason is FinishReason.CANCELLED
    # At most one step was on its way.
    assert len(steps) <= 2
    assert end(steps, one).usage.output_tokens == len(said(before + steps, one))
    engine.cancel(other)
    assert end(await echoes.sink.until_ended(other), other).reason is FinishReason.CANCELLED


async def test_a_cancel_does_not_wait_for_the_interval(echoes: Echoes) -> None:
    engine, one = await echoes.start(interval_s=1000.0), job("a", "x")
    engine.submit(one)
    await echoes.sink.step()
    engine.cancel(one)
    assert end(await echoes.sink.until_ended(one), one).reason is FinishReason.CANCELLED


async def test_cancelling_an_unknown_job_is_ignored(echoes: Echoes) -> None:
    engine, one = await echoes.start(), job("r", "x")
    engine.cancel(job("r", "the same id"))
    engine.submit(one)
    steps = await echoes.sink.until_ended(one)
    engine.cancel(one)
    other = job("s", "y")
    engine.submit(other)
    assert len(said(await echoes.sink.until_ended(other), other)) == 5
    assert end(steps, one).reason is FinishReason.STOP


async def test_two_attempts_at_one_response_are_two_jobs(echoes: Echoes) -> None:
    """An attempt that was lost may still run when the next one begins."""
    engine = await echoes.start(chunks=1000, interval_s=0.002)
    lost, taken_over = job("r", "x"), job("r", "x")
    engine.submit(lost)
    engine.submit(taken_over)
    engine.cancel(lost)
    steps = await echoes.sink.until_ended(lost)
    assert end(steps, lost).reason is FinishReason.CANCELLED
    assert said([await echoes.sink.step()], taken_over)
    engine.cancel(taken_over)
    assert end(await echoes.sink.until_ended(taken_over), taken_over).reason is FinishReason.CANCELLED


@pytest.mark.parametrize(("limit", "reason"), [(None, FinishReason.STOP), (2, FinishReason.LENGTH)])
@pytest.mark.parametrize("message", ["hello", "", "chunk 1: ", "x" * 257])
async def test_an_answer_goes_on_behind_what_was_said(
    echoes: Echoes, message: str, limit: int | None, reason: FinishReason
) -> None:
    """Wherever the earlier attempt was cut, also inside a chunk."""
    engine = await echoes.start(chunks=3)
    chunks = [f"chunk {n}: {message}" for n in range(1, 4)][:limit]
    whole, starts = "".join(chunks), [0, *accumulate(map(len, chunks))]
    for cut in range(len(whole) + 1):
        one = job("r", message, emitted=whole[:cut], limit=limit)
        engine.submit(one)
        steps = await echoes.sink.until_ended(one)
        # The rest of the chunk at hand, if there is one, and then whole chunks.
        begins = [cut, *(start for start in starts if start > cut)]
        assert said(steps, one) == [whole[start:stop] for start, stop in pairwise(begins)]
        assert end(steps, one).reason is reason
        assert end(steps, one).usage.output_tokens == len(chunks)


async def test_it_thinks_before_it_answers(echoes: Echoes) -> None:
    engine, one = await echoes.start(chunks=2, thinking=3), job("r", "hello")
    engine.submit(one)
    steps = await echoes.sink.until_ended(one)
    thoughts = [ReasoningDelta(f"thought {n}: hello") for n in range(1, 4)]
    assert deltas(steps, one) == [*thoughts, TextDelta("chunk 1: hello"), TextDelta("chunk 2: hello")]
    assert [type(delta) for delta in deltas(steps, one)] == [ReasoningDelta] * 3 + [TextDelta] * 2
    assert [len(step) for step in steps] == [1, 1, 1, 1, 2]
    assert end(steps, one).reason is FinishReason.STOP
    assert end(steps, one).usage == Usage(input_tokens=1, output_tokens=5, reasoning_tokens=3)


@pytest.mark.parametrize("message", ["hello", "x" * 300])
async def test_thoughts_go_on_behind_what_was_thought(echoes: Echoes, message: str) -> None:
    """Wherever the earlier attempt was cut."""
    engine = await echoes.start(chunks=2, thinking=2)
    thoughts = [f"thought {n}: {message}" for n in (1, 2)]
    whole, starts = "".join(thoughts), [0, *accumulate(map(len, thoughts))]
    for cut in range(len(whole) + 1):
        one = Job("r", (Message(Role.USER, message),), Settings(), reasoning=whole[:cut])
        engine.submit(one)
        steps = await echoes.sink.until_ended(one)
        begins = [cut, *(start for start in starts if start > cut)]
        thought = [delta for delta in deltas(steps, one) if isinstance(delta, ReasoningDelta)]
        assert thought == [whole[start:stop] for start, stop in pairwise(begins)]
        assert said(steps, one) == [f"chunk 1: {message}", f"chunk 2: {message}"]
        assert end(steps, one).usage.output_tokens == 4


@pytest.mark.parametrize("thought", ["", "thought 1: x", "thought 1: xthought 2: xthought 3: x"])
@pytest.mark.parametrize("emitted", ["", "chunk 1", "chunk 1: x"])
async def test_who_has_begun_to_answer_thinks_no_more(echoes: Echoes, thought: str, emitted: str) -> None:
    """Also where an earlier attempt had another number of thoughts."""
    engine = await echoes.start(chunks=2, thinking=2)
    one = Job("r", (Message(Role.USER, "x"),), Settings(), emitted, thought, answering=True)
    engine.submit(one)
    steps = await echoes.sink.until_ended(one)
    assert all(isinstance(delta, TextDelta) for delta in deltas(steps, one))
    assert emitted + "".join(said(steps, one)) == "chunk 1: xchunk 2: x"


@pytest.mark.parametrize(
    ("limit", "thoughts", "chunks", "reason"),
    [
        (1, 1, 0, FinishReason.LENGTH),
        (2, 2, 0, FinishReason.LENGTH),
        (3, 2, 1, FinishReason.LENGTH),
        (4, 2, 2, FinishReason.STOP),
    ],
)
async def test_thoughts_count_as_what_is_said(
    echoes: Echoes, limit: int, thoughts: int, chunks: int, reason: FinishReason
) -> None:
    engine, one = await echoes.start(chunks=2, thinking=2), job("r", "x", limit=limit)
    engine.submit(one)
    steps = await echoes.sink.until_ended(one)
    assert len(said(steps, one)) == chunks
    assert len(deltas(steps, one)) == limit
    assert end(steps, one).reason is reason
    assert end(steps, one).usage.reasoning_tokens == thoughts


async def test_more_said_than_there_is_to_say_ends_the_answer(echoes: Echoes) -> None:
    """An earlier attempt may have run where more chunks were configured."""
    engine = await echoes.start(chunks=2)
    one = job("r", "x", emitted="".join(f"chunk {n}: x" for n in range(1, 6)))
    engine.submit(one)
    steps = await echoes.sink.until_ended(one)
    assert said(steps, one) == []
    assert end(steps, one).reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("limit", "chunks", "reason"),
    [
        (1, 1, FinishReason.LENGTH),
        (4, 4, FinishReason.LENGTH),
        (5, 5, FinishReason.STOP),
        (9, 5, FinishReason.STOP),
    ],
)
async def test_an_answer_has_at_most_as_many_chunks_as_asked_for(
    echoes: Echoes, limit: int, chunks: int, reason: FinishReason
) -> None:
    engine, one = await echoes.start(), job("r", "x", limit=limit)
    engine.submit(one)
    steps = await echoes.sink.until_ended(one)
    assert len(said(steps, one)) == chunks
    assert end(steps, one).reason is reason


async def test_an_interval_of_zero_does_not_wait(echoes: Echoes) -> None:
    engine, one = await echoes.start(chunks=2000), job("r", "x")
    engine.submit(one)
    async with asyncio.timeout(5):
        steps = await echoes.sink.until_ended(one)
    assert len(said(steps, one)) == 2000


async def test_chunks_keep_their_distance(echoes: Echoes) -> None:
    loop = asyncio.get_running_loop()
    engine, one = await echoes.start(chunks=3, interval_s=0.05), job("r", "x")
    engine.submit(one)
    await echoes.sink.step()
    first = loop.time()
    await echoes.sink.step()
    await echoes.sink.step()
    assert loop.time() - first >= 0.045


async def test_stop_ends_the_thread_also_while_jobs_run(echoes: Echoes) -> None:
    before = set(threading.enumerate())
    engine = await echoes.start(interval_s=1000.0)
    (thread,) = (thread for thread in set(threading.enumerate()) - before if thread.name == "echo")
    engine.submit(job("r", "x"))
    await echoes.sink.step()
    async with asyncio.timeout(5):
        await engine.stop()
    assert not thread.is_alive()


async def test_an_engine_that_breaks_ends_its_jobs_and_all_later_ones(
    echoes: Echoes, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await echoes.start(interval_s=0.01)
    running, broken = job("a", "x"), job("b", "y")
    engine.submit(running)
    await echoes.sink.step()
    broken.messages = (None,)  # type: ignore[assignment]
    waiting = job("c", "z")
    engine.submit(broken)
    engine.submit(waiting)
    steps = await echoes.sink.until_ended(running, broken, waiting)
    late = job("d", "x")
    engine.submit(late)
    engine.cancel(late)
    steps += await echoes.sink.until_ended(late)
    for one in (running, broken, waiting, late):
        assert end(steps, one).reason is FinishReason.ERROR
        assert isinstance(end(steps, one).error, GenerationFailed)
    assert [record.name for record in caplog.records].count("internal.generator.echo") == 1


async def test_an_engine_that_never_started_can_be_stopped() -> None:
    await EchoGenerator(5, 0.0, 1).stop()


async def test_an_idle_engine_wakes_for_a_job(echoes: Echoes) -> None:
    engine = await echoes.start(chunks=1)
    for n in range(20):
        one = job(f"r{n}", str(n))
        engine.submit(one)
        assert said(await echoes.sink.until_ended(one), one) == [f"chunk 1: {n}"]


async def test_an_engine_may_be_started_again_and_remembers_nothing(echoes: Echoes) -> None:
    engine = await echoes.start(chunks=2, interval_s=0.001)
    for n in range(3):
        for old in range(3):
            engine.submit(job(f"old{old}", "x" * 1000))  # ends without a word
        await engine.stop()
        await engine.stop()  # which is harmless
        echoes.sink.forget()
        await engine.start(echoes.sink, lambda _: None)
        one = job(f"r{n}", str(n))
        engine.submit(one)
        steps = await echoes.sink.until_ended(one)
        assert said(steps, one) == [f"chunk 1: {n}", f"chunk 2: {n}"]
        assert {told for step in steps for told, _ in step} == {one}


async def test_an_engine_that_broke_works_when_it_is_started_again(echoes: Echoes) -> None:
    engine = await echoes.start(chunks=1)
    broken = job("a", "y")
    broken.messages = (None,)  # type: ignore[assignment]
    engine.submit(broken)
    await echoes.sink.until_ended(broken)
    await engine.stop()
    await engine.start(echoes.sink, lambda _: None)
    one = job("b", "x")
    engine.submit(one)
    assert said(await echoes.sink.until_ended(one), one) == ["chunk 1: x"]


async def test_a_stop_does_not_hold_up_the_loop_that_the_last_step_waits_for(echoes: Echoes) -> None:
    at_put, go_on = threading.Event(), threading.Event()

    class Full:
        """A sink with no room until the loop has time."""

        def put(self, step: list[Chunk]) -> None:
            at_put.set()
            go_on.wait(5)

        def give(self, step: list[Chunk]) -> bool:
            raise AssertionError

        async def room(self) -> None:
            raise AssertionError

        def fail(self, error: EngineLost) -> None:
            raise AssertionError

    engine = EchoGenerator(5, 0.0, 1)
    await engine.start(Full(), lambda _: None)
    engine.submit(job("r", "x"))
    await asyncio.to_thread(at_put.wait, 5)
    asyncio.get_running_loop().call_soon(go_on.set)
    async with asyncio.timeout(4):
        await engine.stop()
