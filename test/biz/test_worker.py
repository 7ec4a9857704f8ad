"""A worker between the real queue and an engine that does what the test says."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from internal.biz import worker as worker_module
from internal.biz.errors import GenerationFailed, InvalidRequest, Unavailable
from internal.biz.events import (
    QueueUpdate,
    ReasoningDelta,
    ResponseInProgress,
    ScoredDelta,
    TextDelta,
    scores_of,
)
from internal.biz.generation import Finished, FinishReason, Prefilled
from internal.biz.images import Images
from internal.biz.models import Attachment, Message, Role, Settings, Status, Usage
from internal.biz.ports import Append, Capabilities
from internal.biz.scores import TokenScore
from internal.biz.worker import Worker
from internal.data.memory_queue import MemoryQueue, QueueLimits

if TYPE_CHECKING:
    from test.biz.conftest import FakeMeter, MakeShop, Shop
    from test.conftest import Reader

    Settle = Callable[[], Awaitable[None]]
    MakeReader = Callable[[], Reader]

STOP = Finished(FinishReason.STOP, Usage(1, 0, 2))
CANCELLED = Finished(FinishReason.CANCELLED)


async def test_what_the_engine_says_becomes_the_answer(shop: "Shop") -> None:
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


async def test_scores_are_told_with_the_answer(shop: "Shop") -> None:
    shop.open()
    answer, score = await shop.ask("hello", settings=Settings(logprobs=0)), TokenScore("Hel", -0.5)
    job = await shop.engine.job(0)
    shop.engine.say(job, ScoredDelta("Hel", (score,)), "lo", STOP)
    assert await answer.text() == "Hello"
    assert scores_of(event for event in await answer.events() if isinstance(event, TextDelta)) == (score,)
    assert (await answer.response()).output[0].scores == (score,)
    assert shop.meter.first_tokens == 1


async def test_the_result_is_stored_before_the_log_ends(shop: "Shop", settle: "Settle") -> None:
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


async def test_one_step_speaks_for_all_responses(shop: "Shop") -> None:
    shop.open()
    answers = [await shop.ask(str(n)) for n in range(4)]
    jobs = [await shop.engine.job(n) for n in range(4)]
    for word in ("a", "b"):
        shop.engine.step(*((job, TextDelta(word + job.messages[-1].content)) for job in jobs))
    shop.engine.step(*((job, STOP) for job in jobs))
    assert [await answer.text() for answer in answers] == [f"a{n}b{n}" for n in range(4)]
    assert len(shop.history.finished) == 4


async def test_a_worker_takes_no_more_than_its_slots(shop: "Shop", settle: "Settle") -> None:
    shop.open(slots=2)
    for _ in range(5):
        await shop.ask()
    await settle()
    assert len(shop.engine.jobs) == 2
    assert (await shop.queue.backlog("m")).waiting == 3
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


async def test_a_cancelled_response_stops_the_engine_and_keeps_its_text(
    shop: "Shop", settle: "Settle"
) -> None:
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


async def test_a_cancel_behind_the_end_is_not_passed_on(shop: "Shop", settle: "Settle") -> None:
    shop.open()
    answer = await shop.ask()
    shop.engine.say(await shop.engine.job(0), "x", STOP)
    await answer.events()
    await settle()
    await shop.queue.cancel(answer.id)
    assert shop.engine.cancelled == []


async def test_an_engines_error_fails_the_response_only(shop: "Shop") -> None:
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


async def test_a_retryable_error_is_tried_again_behind_what_was_said(shop: "Shop") -> None:
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


async def test_after_the_last_attempt_the_response_fails(shop: "Shop") -> None:
    shop.open()
    answer = await shop.ask()
    for attempt in range(2):
        hiccup = Finished(FinishReason.ERROR, error=Unavailable("out of memory"))
        shop.engine.say(await shop.engine.job(attempt), hiccup)
    response = await answer.response()
    assert response.failure is not None
    assert response.failure.code == "max_attempts_exceeded"
    assert shop.history.finished == [response]


async def test_what_an_engine_says_behind_the_end_is_ignored(shop: "Shop", settle: "Settle") -> None:
    shop.open()
    answer, other = await shop.ask(), await shop.ask()
    jobs = [await shop.engine.job(n) for n in range(2)]
    shop.engine.say(jobs[0], "x", STOP)
    await answer.events()
    shop.engine.say(jobs[0], "ghost", STOP, CANCELLED)
    shop.engine.say(jobs[1], "y", STOP)
    assert await other.text() == "y"
    assert len(shop.history.finished) == 2


async def test_an_end_in_the_same_step_as_another_end_counts_once(shop: "Shop", settle: "Settle") -> None:
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
    shop: "Shop", settle: "Settle", meter: "FakeMeter"
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


async def test_progress_of_the_prompt_is_told_to_who_asked(shop: "Shop") -> None:
    shop.open()
    answer = await shop.ask(queue_updates=True)
    job = await shop.engine.job(0)
    shop.engine.say(job, Prefilled(64, 300))
    while QueueUpdate(0, 64, 300) not in answer.reader.updates:
        await answer.reader.news()
    shop.engine.say(job, STOP)
    await answer.events()


async def test_gaps_are_counted_between_the_tokens_of_one_response(shop: "Shop", settle: "Settle") -> None:
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


async def test_a_worker_that_ends_stops_its_engine(shop: "Shop", settle: "Settle") -> None:
    shop.open()
    await settle()
    await shop.close()
    assert shop.engine.stopped


async def test_a_model_that_cannot_be_loaded_ends_the_worker(shop: "Shop") -> None:
    shop.engine.refusal = GenerationFailed("no such file")
    worker = Worker("m", shop.engine, shop.queue, shop.history, shop.history.finish, shop.meter)
    with pytest.raises(GenerationFailed):
        await worker.run(shop.progress.append)
    assert shop.engine.stopped


async def test_a_cancel_while_the_first_events_are_written_reaches_the_engine(
    shop: "Shop", settle: "Settle"
) -> None:
    """A queue may take its time to append, and the user may change their mind meanwhile."""

    class SlowQueue(MemoryQueue):
        appending = asyncio.Event()
        go_on = asyncio.Event()

        async def append(self, step: Sequence[Append]) -> Sequence[Append]:
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


# ── a queue or a storage that is away ────────────────────────────────────────────────────────────


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "FIRST_PAUSE_S", 0.002)


@pytest.mark.usefixtures("hurry")
async def test_while_the_queue_is_away_steps_wait_in_order(shop: "Shop") -> None:
    shop.open()
    answers = [await shop.ask() for _ in range(2)]
    jobs = [await shop.engine.job(n) for n in range(2)]
    for word in ("a", "b", "c"):
        shop.flaky.away["append"] = 3
        shop.engine.step(*((job, TextDelta(word)) for job in jobs))
        await asyncio.sleep(0)
    shop.engine.step(*((job, STOP) for job in jobs))
    assert [await answer.text() for answer in answers] == ["abc", "abc"]
    assert shop.flaky.tried.count("append") > 3


async def test_it_is_tried_less_and_less_often(
    shop: "Shop", settle: "Settle", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(worker_module, "LONGEST_PAUSE_S", 0.04)
    shop.open()
    answer = await shop.ask()
    job = await shop.engine.job(0)
    shop.flaky.away["append"] = 4
    started = time.monotonic()
    shop.engine.say(job, "x", STOP)
    assert await answer.text() == "x"
    assert time.monotonic() - started >= 0.01 + 0.02 + 0.04 + 0.04


@pytest.mark.usefixtures("hurry")
async def test_while_the_queue_is_away_what_was_claimed_begins_later(shop: "Shop", settle: "Settle") -> None:
    shop.flaky.away["append"] = 2
    shop.open()
    answer = await shop.ask()
    await settle()
    assert shop.engine.jobs == []
    shop.engine.say(await shop.engine.job(0), "x", STOP)
    assert await answer.text() == "x"


@pytest.mark.usefixtures("hurry")
async def test_while_the_storage_is_away_the_log_does_not_end(shop: "Shop") -> None:
    shop.open()
    answer, other = await shop.ask(), await shop.ask()
    jobs = [await shop.engine.job(n) for n in range(2)]
    shop.history.away = 3
    shop.engine.say(jobs[0], "x", STOP)
    shop.engine.say(jobs[1], "others go on")
    response = await answer.response()
    assert shop.history.finished == [response]
    shop.engine.say(jobs[1], STOP)
    assert await other.text() == "others go on"


@pytest.mark.usefixtures("hurry")
async def test_a_retry_is_told_when_the_queue_is_back(shop: "Shop") -> None:
    shop.open()
    answer = await shop.ask()
    shop.flaky.away["retry"] = 3
    hiccup = Finished(FinishReason.ERROR, error=Unavailable("out of memory for now"))
    shop.engine.say(await shop.engine.job(0), "half ", hiccup)
    shop.engine.say(await shop.engine.job(1), "whole", STOP)
    assert await answer.text() == "half whole"
    assert shop.flaky.tried.count("retry") == 4


async def test_a_worker_that_waits_for_the_queue_ends_when_cancelled(shop: "Shop", settle: "Settle") -> None:
    shop.open()
    await shop.ask()
    job = await shop.engine.job(0)
    shop.flaky.away["append"] = 10**6
    shop.engine.say(job, "x")
    await settle()
    async with asyncio.timeout(1):
        await shop.close()
    assert shop.engine.stopped


# ── deliveries that are lost ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["refused", "told"])
async def test_what_is_lost_stops_and_nothing_more_is_written_or_stored(
    shop: "Shop", settle: "Settle", way: str
) -> None:
    shop.open(slots=2)
    lost, kept = await shop.ask(), await shop.ask()
    jobs = [await shop.engine.job(n) for n in range(2)]
    shop.engine.step(*((job, TextDelta("a")) for job in jobs))
    await settle()
    assert shop.worker is not None
    if way == "told":
        shop.worker.lose(jobs[0].delivery)  # type: ignore[attr-defined]
    shop.flaky.lost.add(lost.id)
    shop.engine.step(*((job, TextDelta("b")) for job in jobs))
    assert await shop.engine.cancellation() is jobs[0]
    await settle()
    appends = shop.flaky.tried.count("append")
    shop.engine.say(jobs[0], "c")
    await settle()
    assert shop.flaky.tried.count("append") == appends
    assert shop.worker.room == 0  # until the engine says that it stopped
    shop.engine.say(jobs[0], CANCELLED)
    await settle()
    assert shop.worker.room == 1
    assert shop.history.finished == []
    shop.engine.say(jobs[1], STOP)
    assert await kept.text() == "ab"
    await settle()
    assert shop.meter.ended == [("m", Status.COMPLETED)]
    assert (await shop.queue.backlog("m")).running == 1, "its lease runs out elsewhere"


async def test_an_end_that_is_refused_does_not_count(shop: "Shop", settle: "Settle") -> None:
    """Its result was stored, but a later attempt's counts."""
    shop.open(slots=1)
    lost = await shop.ask()
    job = await shop.engine.job(0)
    shop.flaky.lost.add(lost.id)
    shop.engine.say(job, STOP)
    await settle()
    assert shop.meter.ended == []
    other = await shop.ask()
    shop.engine.say(await shop.engine.job(1), STOP)
    await other.events()


async def test_what_is_lost_before_it_begins_never_begins(shop: "Shop", settle: "Settle") -> None:
    shop.open(slots=1)
    await settle()
    shop.flaky.lost.add("resp_1")
    lost, other = await shop.ask(), await shop.ask()
    assert lost.id == "resp_1"
    job = await shop.engine.job(0)
    assert job.response_id == other.id
    shop.engine.say(job, STOP)
    await other.events()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_worker_may_run_two_attempts_until_the_first_is_lost(
    shop: "Shop", settle: "Settle", order: tuple[int, int]
) -> None:
    """It was silent for longer than its lease, and claimed again what it had."""
    shop.open(slots=2)
    answer = await shop.ask()
    first = await shop.engine.job(0)
    shop.engine.say(first, "a")
    await settle()
    # The queue takes it back without a word.
    shop.queue._put_back(first.receipt)  # type: ignore[attr-defined]
    second = await shop.engine.job(1)
    assert second.response_id == first.response_id
    assert second.emitted == "a"
    jobs = [first, second]
    shop.engine.step(*((jobs[n], TextDelta("b")) for n in order))
    assert await shop.engine.cancellation() is first
    shop.engine.step(*((jobs[n], TextDelta("c")) for n in order))
    shop.engine.say(first, CANCELLED)
    shop.engine.say(second, STOP)
    assert await answer.text() == "abc"
    assert shop.engine.cancelled == [first]
    assert [response.attempt for response in shop.history.finished] == [2]
    await settle()
    assert shop.worker is not None
    assert shop.worker.room == 2


# ── room ─────────────────────────────────────────────────────────────────────────────────────────


async def test_results_that_are_being_stored_are_bounded(shop: "Shop", settle: "Settle") -> None:
    shop.open(slots=2)
    answers = [await shop.ask() for _ in range(7)]
    shop.history.go_on.clear()
    for number in range(4):
        shop.engine.say(await shop.engine.job(number), STOP)
        await settle()
    assert shop.worker is not None
    assert shop.worker.room == 0
    assert len(shop.engine.jobs) == 4  # twice its slots
    assert await shop.waiting() == 3
    shop.history.go_on.set()
    for number in range(4, 7):
        shop.engine.say(await shop.engine.job(number), STOP)
    for answer in answers:
        await answer.events()


# ── draining ─────────────────────────────────────────────────────────────────────────────────────


async def test_draining_finishes_what_runs_and_takes_nothing_new(shop: "Shop", settle: "Settle") -> None:
    shop.open(slots=2)
    answer = await shop.ask()
    job = await shop.engine.job(0)
    assert shop.worker is not None
    draining = asyncio.create_task(shop.worker.drain(5))
    await settle()
    await shop.ask()
    shop.engine.say(job, "to the ")
    await settle()
    assert not draining.done()
    shop.engine.say(job, "end", STOP)
    assert await answer.text() == "to the end"
    async with asyncio.timeout(1):
        await draining
    assert len(shop.engine.jobs) == 1
    assert await shop.waiting() == 1
    assert "release" not in shop.flaky.tried


async def test_draining_gives_back_what_does_not_end_in_time(shop: "Shop", settle: "Settle") -> None:
    shop.open(slots=2)
    answers = [await shop.ask() for _ in range(2)]
    jobs = [await shop.engine.job(n) for n in range(2)]
    shop.engine.step(*((job, TextDelta("half ")) for job in jobs))
    assert shop.worker is not None
    await shop.worker.drain(0.01)
    assert shop.engine.cancelled == jobs
    assert await shop.waiting() == 2
    shop.engine.step(*((job, TextDelta("ghost")) for job in jobs))
    shop.engine.step(*((job, CANCELLED) for job in jobs))
    await settle()
    assert shop.history.finished == []
    first = shop.engine
    await shop.close_worker()
    shop.engine = type(first)()
    shop.open(slots=2)
    again = [await shop.engine.job(n) for n in range(2)]
    assert first is not shop.engine
    for job in again:
        assert job.emitted == "half "
        shop.engine.say(job, "whole", STOP)
    assert [await answer.text() for answer in answers] == ["half whole"] * 2
    assert [response.attempt for response in shop.history.finished] == [2, 2]


async def test_draining_an_idle_worker_is_done_at_once(shop: "Shop", settle: "Settle") -> None:
    shop.open()
    assert shop.worker is not None
    await shop.worker.drain(5)  # while the model loads
    await settle()
    await shop.ask()
    await settle()
    assert shop.engine.jobs == []
    assert await shop.waiting() == 1


@pytest.mark.parametrize("in_time", [True, False])
async def test_draining_while_a_claim_is_in_flight_loses_nothing(
    shop: "Shop", settle: "Settle", in_time: bool
) -> None:
    """What was claimed already, but did not begin yet, ends or is given back."""
    shop.open(slots=2)
    shop.flaky.go_on.clear()
    answer = await shop.ask()
    await shop.flaky.at_append.wait()
    assert shop.worker is not None
    draining = asyncio.create_task(shop.worker.drain(5 if in_time else 0.01))
    if in_time:
        await settle()
        shop.flaky.go_on.set()
        shop.engine.say(await shop.engine.job(0), "x", STOP)
        assert await answer.text() == "x"
        await draining
    else:
        await draining
        shop.flaky.go_on.set()
        await settle()
        assert shop.engine.jobs == []
        assert await shop.waiting() == 1


async def test_draining_at_any_moment_of_a_claim_loses_nothing(
    make_shop: "MakeShop", settle: "Settle"
) -> None:
    for ticks in range(12):
        shop = make_shop()
        shop.open()
        await settle()
        await shop.ask()
        for _ in range(ticks):
            await asyncio.sleep(0)
        assert shop.worker is not None
        await shop.worker.drain(0.0)
        for job in shop.engine.jobs:
            shop.engine.say(job, CANCELLED)
        await settle()
        assert await shop.waiting() == 1, ticks
        assert shop.history.finished == []
        await shop.close()


async def test_draining_while_the_queue_is_away_ends_in_time(shop: "Shop", settle: "Settle") -> None:
    shop.open()
    await shop.ask()
    job = await shop.engine.job(0)
    shop.flaky.away["append"] = shop.flaky.away["release"] = 10**6
    shop.engine.say(job, "x")
    assert shop.worker is not None
    async with asyncio.timeout(1):
        await shop.worker.drain(0.01)


def before(response_id: str) -> Settings:
    return Settings(previous_response_id=response_id)


async def test_the_engine_gets_instructions_what_was_said_before_and_the_new_turn(shop: "Shop") -> None:
    earlier = (Message(Role.USER, "q"), Message(Role.ASSISTANT, "a"))
    shop.history.said["resp_2"] = earlier
    settings = Settings(instructions="be brief", previous_response_id="resp_1")
    await shop.queue.publish(shop.make_request("again", model="m", response_id="resp_2", settings=settings))
    shop.open()
    job = await shop.engine.job(0)
    assert job.messages == (Message(Role.SYSTEM, "be brief"), *earlier, Message(Role.USER, "again"))
    assert shop.history.asked_for == [0]


async def test_only_as_much_is_read_as_could_fit_the_context(shop: "Shop") -> None:
    await shop.queue.publish(shop.make_request(model="m", settings=before("resp_1")))
    shop.open()
    shop.engine.capabilities = Capabilities(context_length=100, slots=4)
    await shop.engine.job(0)
    assert shop.history.asked_for == [1600]


async def test_nothing_is_read_for_a_first_turn_or_an_engine_that_does_not_look_at_it(shop: "Shop") -> None:
    shop.open()
    await shop.ask()
    await shop.engine.job(0)
    shop.engine.capabilities = Capabilities(0, 4, remembers=False)
    await shop.queue.publish(shop.make_request(model="m", settings=before("resp_1")))
    assert (await shop.engine.job(1)).messages == (Message(Role.USER, "hello"),)
    assert shop.history.asked_for == []


async def test_a_request_waits_until_what_was_said_before_it_can_be_read(shop: "Shop") -> None:
    shop.history.away = 2
    await shop.queue.publish(shop.make_request(model="m", settings=before("resp_1")))
    shop.open()
    await shop.engine.job(0)
    assert shop.history.asked_for == [0]


async def test_an_answer_that_cannot_be_stored_is_told_and_keeps_nobody_else_from_it(shop: "Shop") -> None:
    shop.open()
    answers = [await shop.ask(str(n)) for n in range(3)]
    jobs = [await shop.engine.job(n) for n in range(3)]
    shop.history.unstorable = {answers[1].id}
    shop.engine.step(*((job, TextDelta("a")) for job in jobs))
    shop.engine.step(*((job, STOP) for job in jobs))
    assert [await answer.text() for answer in answers] == ["a"] * 3
    assert {response.id for response in shop.history.finished} == {answers[0].id, answers[2].id}
    again = await shop.ask()
    shop.engine.say(await shop.engine.job(3), "b", STOP)
    assert await again.text() == "b"


async def test_a_dialogue_that_cannot_be_read_fails_its_requests_and_no_others(shop: "Shop") -> None:
    shop.history.unreadable = True
    shop.open()
    response = await (await shop.ask(settings=before("resp_1"))).response()
    assert response.failure is not None
    assert response.failure.code == "generation_failed"
    shop.history.unreadable = False
    answer = await shop.ask()
    shop.engine.say(await shop.engine.job(0), "a", STOP)
    assert await answer.text() == "a"


class Album:
    """Has one image. Implements ReadsFiles."""

    async def read(self, file_id: str) -> bytes:
        assert file_id == "file_1"
        return b"png"


async def test_an_engine_with_eyes_gets_what_messages_refer_to(shop: "Shop") -> None:
    shop.open(images=Images(Album()))
    image = Attachment("a.png", "image/png", "file_1")
    request = replace(
        shop.make_request(settings=Settings(previous_response_id="resp_0")),
        messages=(Message(Role.USER, "and this?", attachments=(image,)),),
    )
    shop.history.said[request.response_id] = (Message(Role.USER, "what is it?", attachments=(image,)),)
    await shop.queue.publish(request)
    job = await shop.engine.job(0)
    assert [it.url for message in job.messages for it in message.attachments] == [
        "data:image/png;base64,cG5n"
    ] * 2
    shop.engine.say(job, STOP)


async def test_an_engine_that_is_full_is_asked_again_when_it_no_longer_is(shop: "Shop") -> None:
    """It may be full for other reasons than a number: no answer's end tells that it has room again."""
    shop.open(slots=4)
    await shop.ask("first")
    first = await shop.engine.job(0)
    shop.engine.capabilities = Capabilities(0, slots=1)
    shop.engine.say(first, "so ")
    second = await shop.ask("second")
    third = await shop.ask("third")
    shop.engine.say(await shop.engine.job(1), STOP)  # it was claimed before anybody knew
    await second.response()
    shop.engine.say(first, "it ")
    assert await shop.waiting() == 1
    shop.engine.capabilities = Capabilities(0, slots=4)
    shop.engine.say(first, "is")
    job = await shop.engine.job(2)
    assert job.response_id == third.id
