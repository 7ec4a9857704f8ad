"""A worker between the real queue and an engine that does what the test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import GenerationFailed, InvalidRequest, Unavailable
from internal.biz.events import Event, QueueUpdate, ReasoningDelta, ResponseInProgress, TextDelta
from internal.biz.generation import Chunk, Finished, FinishReason, Job, Output, Prefilled
from internal.biz.models import Message, Request, Response, Status, Usage
from internal.biz.ports import Append, Capabilities, Progress, Sink
from internal.biz.worker import Worker
from internal.data.memory_queue import MemoryQueue, QueueLimits

if TYPE_CHECKING:
    from test.biz.conftest import FakeMeter
    from test.conftest import Reader, RequestFactory

    Settle = Callable[[], Awaitable[None]]
    MakeReader = Callable[[], Reader]

STOP = Finished(FinishReason.STOP, Usage(1, 0, 2))
CANCELLED = Finished(FinishReason.CANCELLED)


class FakeEngine:
    """Says what the test makes it say."""

    def __init__(self, slots: int = 4) -> None:
        self.capabilities = Capabilities(0, slots)
        self.jobs: list[Job] = []
        self.cancelled: list[Job] = []
        self.stopped = False
        self.refusal: Exception | None = None
        self._sink: Sink | None = None
        self._news = asyncio.Event()

    async def start(self, sink: Sink, progress: Progress) -> None:
        progress(0.5)
        if self.refusal is not None:
            raise self.refusal
        self._sink = sink

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        self._news.set()

    def cancel(self, job: Job) -> None:
        # As the port says: a job that the engine does not know is ignored.
        if job in self.jobs:
            self.cancelled.append(job)
            self._news.set()

    async def stop(self) -> None:
        self.stopped = True

    async def job(self, number: int) -> Job:
        """The job that was submitted as the `number`th, from 0."""
        async with asyncio.timeout(5):
            while len(self.jobs) <= number:
                self._news.clear()
                await self._news.wait()
        return self.jobs[number]

    async def cancellation(self) -> Job:
        async with asyncio.timeout(5):
            while not self.cancelled:
                self._news.clear()
                await self._news.wait()
        return self.cancelled[-1]

    def step(self, *chunks: Chunk) -> None:
        assert self._sink is not None
        self._sink.put(list(chunks))

    def say(self, job: Job, *outputs: Output | str) -> None:
        self.step(*((job, _output(output)) for output in outputs))


def _output(output: Output | str) -> Output:
    if isinstance(output, (TextDelta, ReasoningDelta, Prefilled, Finished)):
        return output
    return TextDelta(output)


class FakeHistory:
    """Keeps what it was told, in the order of what else happened."""

    def __init__(self) -> None:
        self.finished: list[Response] = []
        self.before_end: list[bool] = []
        self.log_ended: Callable[[str], bool] = lambda _: False

    async def messages(self, response_id: str) -> tuple[Message, ...]:
        raise AssertionError("a worker does not ask")

    async def begin(self, request: Request, turn: tuple[Message, ...]) -> None:
        raise AssertionError("a worker does not begin")

    async def finish(self, responses: Sequence[Response]) -> None:
        await asyncio.sleep(0)
        self.before_end += [not self.log_ended(response.id) for response in responses]
        self.finished += responses


class Shop:
    """A worker at work."""

    def __init__(self, meter: "FakeMeter", make_request: "RequestFactory", make_reader: "MakeReader") -> None:
        self.engine = FakeEngine()
        self.history = FakeHistory()
        self.queue = MemoryQueue(QueueLimits(max_attempts=2), self.history.finish)
        self.meter = meter
        self.progress: list[float] = []
        self.make_request = make_request
        self.make_reader = make_reader
        self.worker: Worker | None = None
        self._task: asyncio.Task[None] | None = None
        self._readings: list[asyncio.Task[list[Event]]] = []

    def open(self, *, slots: int = 4, queue: MemoryQueue | None = None) -> None:
        self.engine.capabilities = Capabilities(0, slots)
        self.worker = Worker("m", self.engine, queue or self.queue, self.history, self.meter)
        self._task = asyncio.create_task(self.worker.run(self.progress.append))

    async def close(self) -> None:
        for reading in self._readings:
            reading.cancel()
        await asyncio.gather(*self._readings, return_exceptions=True)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            error = None if self._task.cancelled() else self._task.exception()
            assert error is None, f"the worker died: {error!r}"

    async def ask(self, *turn: str, queue_updates: bool = False) -> "Answer":
        request, reader = self.make_request(*turn), self.make_reader()
        await self.queue.publish(request)
        cursor = await self.queue.follow(request.response_id, -1, reader, queue_updates=queue_updates)
        reading = asyncio.create_task(reader.read(cursor))
        self._readings.append(reading)
        return Answer(request, reader, reading)


class Answer:
    def __init__(self, request: Request, reader: "Reader", reading: asyncio.Task[list[Event]]) -> None:
        self.id = request.response_id
        self.request = request
        self.reader = reader
        self._reading = reading

    async def events(self) -> list[Event]:
        return await self._reading

    async def response(self) -> Response:
        last = (await self.events())[-1]
        response: Response = last.response  # type: ignore[union-attr]
        return response

    async def text(self) -> str:
        return "".join(event for event in await self.events() if isinstance(event, TextDelta))


@pytest.fixture
async def shop(
    watched_loop: None, meter: "FakeMeter", make_request: "RequestFactory", make_reader: "MakeReader"
) -> AsyncIterator[Shop]:
    shop = Shop(meter, make_request, make_reader)
    yield shop
    await shop.close()


async def test_what_the_engine_says_becomes_the_answer(shop: Shop) -> None:
    shop.open()
    answer = await shop.ask("hello")
    job = await shop.engine.job(0)
    assert job.response_id == answer.id
    assert job.messages == answer.request.messages
    assert job.emitted == ""
    shop.engine.say(job, ReasoningDelta("hm"), "Hel")
    shop.engine.say(job, "lo")
    shop.engine.say(job, STOP)
    assert await answer.text() == "Hello"
    response = await answer.response()
    assert response.status is Status.COMPLETED
    assert response.usage == STOP.usage
    assert [item.text for item in response.output] == ["hm", "Hello"]
    assert shop.meter.first_tokens == 1
    assert shop.progress == [0.5, 1.0]


async def test_the_result_is_stored_before_the_log_ends(shop: Shop, settle: "Settle") -> None:
    shop.open()
    answer = await shop.ask()
    cursor = await shop.queue.follow(answer.id, -1, shop.make_reader())
    shop.history.log_ended = lambda _: cursor.log.ended
    job = await shop.engine.job(0)
    shop.engine.say(job, "x", STOP)
    response = await answer.response()
    assert shop.history.finished == [response]
    assert shop.history.before_end == [True]
    await settle()
    assert shop.meter.ended == [("m", Status.COMPLETED)]


async def test_one_step_speaks_for_all_responses(shop: Shop) -> None:
    shop.open()
    answers = [await shop.ask(str(n)) for n in range(4)]
    jobs = [await shop.engine.job(n) for n in range(4)]
    for word in ("a", "b"):
        shop.engine.step(*((job, TextDelta(word + job.messages[-1].content)) for job in jobs))
    shop.engine.step(*((job, STOP) for job in jobs))
    assert [await answer.text() for answer in answers] == [f"a{n}b{n}" for n in range(4)]
    assert len(shop.history.finished) == 4


async def test_a_worker_takes_no_more_than_its_slots(shop: Shop, settle: "Settle") -> None:
    shop.open(slots=2)
    for _ in range(5):
        await shop.ask()
    await settle()
    assert len(shop.engine.jobs) == 2
    assert shop.queue.depth("m") == 3
    shop.engine.say(shop.engine.jobs[1], STOP)
    await shop.engine.job(2)
    await settle()
    assert len(shop.engine.jobs) == 3
    for job in list(shop.engine.jobs):
        shop.engine.say(job, STOP)
    await shop.engine.job(4)
    for job in shop.engine.jobs[3:]:
        shop.engine.say(job, STOP)
    await settle()
    assert len(shop.history.finished) == 5


async def test_a_cancelled_response_stops_the_engine_and_keeps_its_text(shop: Shop, settle: "Settle") -> None:
    shop.open()
    answer = await shop.ask()
    job = await shop.engine.job(0)
    shop.engine.say(job, "so far")
    await settle()
    await shop.queue.cancel(answer.id)
    assert await shop.engine.cancellation() is job
    shop.engine.say(job, CANCELLED)
    response = await answer.response()
    assert response.incomplete_reason == "cancelled"
    assert response.text == "so far"
    assert shop.history.finished == [response]


async def test_a_cancel_behind_the_end_is_not_passed_on(shop: Shop, settle: "Settle") -> None:
    shop.open()
    answer = await shop.ask()
    shop.engine.say(await shop.engine.job(0), "x", STOP)
    await answer.events()
    await settle()
    await shop.queue.cancel(answer.id)
    assert shop.engine.cancelled == []


async def test_an_engines_error_fails_the_response_only(shop: Shop) -> None:
    shop.open()
    bad, good = await shop.ask("bad"), await shop.ask("good")
    jobs = [await shop.engine.job(n) for n in range(2)]
    error = InvalidRequest("too long", code="context_length_exceeded")
    shop.engine.step((jobs[0], Finished(FinishReason.ERROR, error=error)), (jobs[1], TextDelta("fine")))
    shop.engine.say(jobs[1], STOP)
    response = await bad.response()
    assert response.status is Status.FAILED
    assert response.failure is not None
    assert (response.failure.code, response.failure.message) == ("context_length_exceeded", "too long")
    assert await good.text() == "fine"


async def test_a_retryable_error_is_tried_again_behind_what_was_said(shop: Shop) -> None:
    shop.open()
    answer = await shop.ask()
    job = await shop.engine.job(0)
    hiccup = Finished(FinishReason.ERROR, error=Unavailable("out of memory for now"))
    shop.engine.say(job, "half ", hiccup)
    again = await shop.engine.job(1)
    assert again.response_id == answer.id
    assert again.emitted == "half "
    shop.engine.say(again, "whole", STOP)
    assert await answer.text() == "half whole"
    events = await answer.events()
    assert sum(isinstance(event, ResponseInProgress) for event in events) == 1
    assert (await answer.response()).text == "half whole"


async def test_after_the_last_attempt_the_response_fails(shop: Shop) -> None:
    shop.open()
    answer = await shop.ask()
    for attempt in range(2):
        hiccup = Finished(FinishReason.ERROR, error=Unavailable("out of memory"))
        shop.engine.say(await shop.engine.job(attempt), hiccup)
    response = await answer.response()
    assert response.failure is not None
    assert response.failure.code == "max_attempts_exceeded"
    assert shop.history.finished == [response]


async def test_what_an_engine_says_behind_the_end_is_ignored(shop: Shop, settle: "Settle") -> None:
    shop.open()
    answer, other = await shop.ask(), await shop.ask()
    jobs = [await shop.engine.job(n) for n in range(2)]
    shop.engine.say(jobs[0], "x", STOP)
    await answer.events()
    shop.engine.say(jobs[0], "ghost", STOP, CANCELLED)
    shop.engine.say(jobs[1], "y", STOP)
    assert await other.text() == "y"
    assert len(shop.history.finished) == 2


async def test_an_end_in_the_same_step_as_another_end_counts_once(shop: Shop, settle: "Settle") -> None:
    """An engine may notice a cancel in the step in which the response ends by itself."""
    shop.open()
    answer = await shop.ask()
    shop.engine.say(await shop.engine.job(0), "x", STOP, CANCELLED)
    assert (await answer.response()).status is Status.COMPLETED
    await settle()
    other = await shop.ask()
    shop.engine.say(await shop.engine.job(1), STOP)
    await other.events()


async def test_an_answer_that_the_queue_ends_stops_the_engine(
    shop: Shop, settle: "Settle", meter: "FakeMeter"
) -> None:
    shop.queue = MemoryQueue(QueueLimits(max_response_bytes=20_000), shop.history.finish)
    shop.open()
    answer = await shop.ask()
    job = await shop.engine.job(0)
    for _ in range(200):
        shop.engine.say(job, "x" * 200)
        await settle()
    assert await shop.engine.cancellation() is job
    response = await answer.response()
    assert response.failure is not None
    assert response.failure.code == "answer_too_long"
    shop.engine.say(job, CANCELLED)
    await settle()
    # The slot is free, and the end was told once.
    assert (await answer.response()) == response
    other = await shop.ask()
    shop.engine.say(await shop.engine.job(1), "y", STOP)
    assert await other.text() == "y"


async def test_progress_of_the_prompt_is_told_to_who_asked(shop: Shop) -> None:
    shop.open()
    answer = await shop.ask(queue_updates=True)
    job = await shop.engine.job(0)
    shop.engine.say(job, Prefilled(64, 300))
    while QueueUpdate(0, 64, 300) not in answer.reader.updates:
        await answer.reader.news()
    shop.engine.say(job, STOP)
    await answer.events()


async def test_gaps_are_counted_between_the_tokens_of_one_response(shop: Shop, settle: "Settle") -> None:
    """Engines such as llama.cpp report each response of a step by itself."""
    shop.open()
    await shop.ask()
    await shop.ask()
    jobs = [await shop.engine.job(n) for n in range(2)]
    shop.engine.step(*((job, TextDelta("first")) for job in jobs))
    await settle()
    assert shop.meter.gaps == []  # nobody waited for a second token yet
    await asyncio.sleep(0.03)
    for job in jobs:
        shop.engine.say(job, "second")
        await settle()
    assert sum(tokens for _, tokens in shop.meter.gaps) == 2
    # Both waited at least so long, in whatever order they were reported.
    assert all(seconds >= 0.029 for seconds, _ in shop.meter.gaps)
    for job in jobs:
        shop.engine.say(job, STOP)
    await settle()


async def test_a_worker_that_ends_stops_its_engine(shop: Shop, settle: "Settle") -> None:
    shop.open()
    await settle()
    await shop.close()
    assert shop.engine.stopped


async def test_a_model_that_cannot_be_loaded_ends_the_worker(shop: Shop) -> None:
    shop.engine.refusal = GenerationFailed("no such file")
    worker = Worker("m", shop.engine, shop.queue, shop.history, shop.meter)
    with pytest.raises(GenerationFailed):
        await worker.run(shop.progress.append)
    assert shop.engine.stopped


async def test_a_cancel_while_the_first_events_are_written_reaches_the_engine(
    shop: Shop, settle: "Settle"
) -> None:
    """A queue may take its time to append, and the user may change their mind meanwhile."""

    class SlowQueue(MemoryQueue):
        appending = asyncio.Event()
        go_on = asyncio.Event()

        async def append(self, step: Sequence[Append]) -> Sequence[str]:
            self.appending.set()
            await self.go_on.wait()
            return await super().append(step)

    slow = shop.queue = SlowQueue(QueueLimits(), shop.history.finish)
    shop.open(queue=slow)
    answer = await shop.ask()
    await slow.appending.wait()
    await slow.cancel(answer.id)
    slow.go_on.set()
    await settle()
    # Either it never began, or it is told to stop behind its beginning.
    if shop.engine.jobs:
        assert shop.engine.cancelled == shop.engine.jobs
        shop.engine.say(shop.engine.jobs[0], CANCELLED)
    assert (await answer.response()).incomplete_reason == "cancelled"
