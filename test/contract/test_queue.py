"""What every queue promises. Uses the methods of the port only, so that one suite fits all of them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import Conflict, InvalidRequest, NotFound, Unavailable
from internal.biz.events import (
    Event,
    ItemDone,
    QueueUpdate,
    ReasoningDelta,
    ResponseCompleted,
    ResponseFailed,
    ResponseIncomplete,
    ResponseQueued,
    ScoredDelta,
    TextDelta,
    scores_of,
)
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.models import Backlog, Response, Settings, Status
from internal.biz.ports import Append
from internal.biz.scores import TokenScore

if TYPE_CHECKING:
    from test.conftest import Eventually, Reader, RequestFactory
    from test.contract.conftest import Limits, OpenQueue, Queue, Settled

    MakeReader = Callable[[], Reader]

STOP = Finished(FinishReason.STOP)


class Consumer:
    """A worker's ear. It has room for one request at first, and none behind it."""

    def __init__(self, room: int = 1) -> None:
        self.slots = room
        self.room = room
        self.revoked: list[str] = []
        self.lost: list[str] = []

    def revoke(self, delivery: Delivery) -> None:
        self.revoked.append(delivery.request.response_id)

    def lose(self, delivery: Delivery) -> None:
        self.lost.append(delivery.request.response_id)


@dataclass(frozen=True)
class Step:
    """An append, also a wrong one."""

    response_id: str
    attempt: int
    receipt: object
    number: int
    events: Sequence[Event]


def step(run: Transcript, *words: str, attempt: int = 0, number: int = 0) -> Step:
    """What `run` would append, off by `attempt` and `number`."""
    events = [TextDelta(word) for word in words]
    return Step(run.response_id, run.attempt + attempt, run.receipt, run.number + number, events)


async def claim(queue: "Queue", consumer: Consumer | None = None, model: str = "m") -> Delivery:
    """Claim one request."""
    consumer = consumer or Consumer()
    async with asyncio.timeout(5):
        (delivery,) = await queue.claim(model, consumer)
    consumer.room -= 1
    return delivery


async def waiting(queue: "Queue", model: str = "m") -> int:
    return (await queue.backlog(model)).waiting


async def append(queue: "Queue", *step: Append) -> list[str]:
    """Append one step; returns the ids of those that were refused."""
    return [refused.response_id for refused in await queue.append(step)]


async def say(queue: "Queue", *runs: Transcript) -> Sequence[str]:
    """Append what the runs have to say, in one step."""
    refused = await append(queue, *runs)
    for run in runs:
        run.number += len(run.events)
        run.events = ()
    return refused


async def begin(queue: "Queue", delivery: Delivery, *words: str) -> Transcript:
    run = Transcript(delivery)
    run.start()
    for word in words:
        run.add(TextDelta(word))
    assert not await say(queue, run)
    return run


async def finish(queue: "Queue", delivery: Delivery, run: Transcript, end: Finished = STOP) -> Response:
    response = run.finish(end)
    assert not await say(queue, run)
    return response


async def serve(queue: "Queue", *words: str, consumer: Consumer | None = None) -> str:
    """Claim one request and answer it; returns its id."""
    delivery = await claim(queue, consumer)
    await finish(queue, delivery, await begin(queue, delivery, *words))
    return delivery.request.response_id


async def read_all(queue: "Queue", response_id: str, reader: "Reader", after: int = -1) -> list[Event]:
    cursor = await queue.follow(response_id, after, reader)
    events = await reader.read(cursor)
    cursor.close()
    return events


async def followed(queue: "Queue", response_id: str, make_reader: "MakeReader") -> list[Event]:
    """What a log holds by now, for a response that still runs."""
    cursor = await queue.follow(response_id, -1, make_reader())
    events = cursor.take(10_000, 1 << 30)
    cursor.close()
    return events


def spoken(events: Sequence[Event]) -> str:
    return "".join(event for event in events if isinstance(event, TextDelta))


def last_response(events: Sequence[Event]) -> Response:
    assert isinstance(events[-1], (ResponseCompleted, ResponseIncomplete, ResponseFailed))
    return events[-1].response


# ── the path of a request ────────────────────────────────────────────────────────────────────────


@pytest.mark.cluster
async def test_what_a_worker_appends_reaches_a_follower(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    request, reader = make_request(), make_reader()
    await queue.publish(request)
    cursor = await queue.follow(request.response_id, -1, reader)
    delivery = await claim(queue)
    assert delivery.request == request
    assert delivery.attempt == 1
    run = await begin(queue, delivery, "Hel", "lo")
    response = await finish(queue, delivery, run)
    events = await reader.read(cursor)
    assert isinstance(events[0], ResponseQueued)
    assert spoken(events) == "Hello"
    assert last_response(events) == response
    assert response.status is Status.COMPLETED


async def test_the_log_opens_with_queued_before_anybody_claims(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    request = make_request()
    await queue.publish(request)
    (event,) = await followed(queue, request.response_id, make_reader)
    assert isinstance(event, ResponseQueued)
    assert event.response.id == request.response_id
    assert event.response.status is Status.QUEUED
    assert event.position == 0


async def test_a_claim_waits_for_a_request(queue: "Queue", make_request: "RequestFactory") -> None:
    claiming = asyncio.create_task(claim(queue))
    await asyncio.sleep(0)
    request = make_request()
    await queue.publish(request)
    assert (await claiming).request == request


async def test_a_claim_takes_requests_of_its_model_only(
    queue: "Queue", make_request: "RequestFactory"
) -> None:
    await queue.publish(make_request(model="other"))
    mine = make_request(model="m")
    await queue.publish(mine)
    assert (await claim(queue, model="m")).request == mine
    assert await waiting(queue) == 0
    assert await waiting(queue, "other") == 1


async def test_a_delivery_hands_over_what_the_log_holds(
    queue: "Queue", make_request: "RequestFactory"
) -> None:
    await queue.publish(make_request())
    delivery = await claim(queue)
    assert [type(event) for event in delivery.emitted] == [ResponseQueued]


async def test_the_requests_of_one_user_are_claimed_in_order(
    queue: "Queue", make_request: "RequestFactory"
) -> None:
    requests = [make_request() for _ in range(10)]
    for request in requests:
        await queue.publish(request)
    assert [(await claim(queue)).request for _ in requests] == requests


async def test_a_hundred_requests_delay_another_user_by_one_turn(
    queue: "Queue", make_request: "RequestFactory"
) -> None:
    for _ in range(100):
        await queue.publish(make_request(user="greedy"))
    mine = make_request(user="modest")
    await queue.publish(mine)
    claimed = [(await claim(queue)).request for _ in range(2)]
    assert mine in claimed


@pytest.mark.cluster
async def test_users_take_turns(queue: "Queue", make_request: "RequestFactory") -> None:
    for user in ("ada", "ada", "ada", "bob", "bob", "eve"):
        await queue.publish(make_request(user=user))
    claimed = [(await claim(queue)).request.user for _ in range(6)]
    assert sorted(claimed[:3]) == ["ada", "bob", "eve"]
    assert sorted(claimed[3:5]) == ["ada", "bob"]


@pytest.mark.cluster
async def test_what_continues_something_takes_its_turn_like_anything_else(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    conversation = Settings(conversation_id="conv")
    await queue.publish(make_request(settings=conversation))
    await queue.publish(make_request())
    await serve(queue, "one")
    previous = await serve(queue, "two")
    requests = [
        make_request(user="ada", settings=conversation),
        make_request(user="ada"),
        make_request(user="bob", settings=Settings(previous_response_id=previous)),
        make_request(user="bob", settings=Settings(previous_response_id="resp_unknown")),
    ]
    positions = []
    for request in requests:
        await queue.publish(request)
        (event,) = await followed(queue, request.response_id, make_reader)
        assert isinstance(event, ResponseQueued)
        positions.append(event.position)
    assert positions == [0, 1, 1, 3]
    claimed = [(await claim(queue)).request for _ in requests]
    assert claimed == [requests[0], requests[2], requests[1], requests[3]]


async def test_queued_tells_how_many_go_first(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    positions = []
    for _ in range(4):
        request = make_request()
        await queue.publish(request)
        (event,) = await followed(queue, request.response_id, make_reader)
        assert isinstance(event, ResponseQueued)
        positions.append(event.position)
    assert positions == [0, 1, 2, 3]


async def test_queued_counts_the_turns_of_others(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    for _ in range(3):
        await queue.publish(make_request(user="greedy"))
    mine = make_request(user="modest")
    await queue.publish(mine)
    (event,) = await followed(queue, mine.response_id, make_reader)
    assert isinstance(event, ResponseQueued)
    assert event.position == 1


async def positions(queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader") -> list[int]:
    """What four requests that come at once are told."""
    requests = [make_request() for _ in range(4)]
    for request in requests:
        await queue.publish(request)
    return [
        event.position
        for request in requests
        for event in await followed(queue, request.response_id, make_reader)
        if isinstance(event, ResponseQueued)
    ]


async def test_who_finds_room_at_a_worker_does_not_stand_in_anybodys_way(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    await queue.publish(make_request())
    await claim(queue, Consumer(room=3))  # and it will be back for two more
    assert await positions(queue, make_request, make_reader) == [0, 0, 0, 1]


async def test_a_claim_takes_as_many_as_the_worker_has_room_for(
    queue: "Queue", make_request: "RequestFactory"
) -> None:
    requests = [make_request() for _ in range(5)]
    for request in requests:
        await queue.publish(request)
    three = await queue.claim("m", Consumer(room=3))
    assert [delivery.request for delivery in three] == requests[:3]
    rest = await queue.claim("m", Consumer(room=100))
    assert [delivery.request for delivery in rest] == requests[3:]


@pytest.mark.cluster
async def test_the_backlog_counts_who_waits_and_who_runs(
    queue: "Queue", make_request: "RequestFactory"
) -> None:
    requests = [make_request(user=user) for user in ("ada", "bob", "bob")]
    for request in requests:
        await queue.publish(request)
    assert await waiting(queue) == 3
    delivery = await claim(queue)
    backlog = await queue.backlog("m")
    assert (backlog.waiting, backlog.running) == (2, 1)
    assert 0 <= backlog.oldest_s < 60
    await finish(queue, delivery, await begin(queue, delivery))
    assert (await queue.backlog("m")).running == 0
    assert await queue.backlog("nothing") == Backlog()


@pytest.mark.cluster
async def test_a_worker_counts_from_its_first_claim_until_it_gives_one_up(
    queue: "Queue", make_request: "RequestFactory", eventually: "Eventually"
) -> None:
    assert await queue.workers() == []
    consumer = Consumer(room=3)
    await queue.publish(make_request())
    await claim(queue, consumer)
    (worker,) = await queue.workers()
    assert (worker.model, worker.slots) == ("m", 3)
    claiming = asyncio.create_task(claim(queue, consumer))
    await asyncio.sleep(0)
    claiming.cancel()
    await asyncio.gather(claiming, return_exceptions=True)

    async def gone() -> bool:
        return await queue.workers() == []

    await eventually(gone)


async def test_a_worker_that_has_left_does_not_count_and_finishes_what_it_has(
    queue: "Queue", make_request: "RequestFactory", eventually: "Eventually", make_reader: "MakeReader"
) -> None:
    consumer = Consumer(room=3)
    await queue.publish(make_request())
    delivery = await claim(queue, consumer)
    queue.leave("m", consumer)
    queue.leave("m", consumer)  # twice is harmless

    async def gone() -> bool:
        return await queue.workers() == []

    await eventually(gone)
    await finish(queue, delivery, await begin(queue, delivery, "to the end"))
    events = await read_all(queue, delivery.request.response_id, make_reader())
    assert spoken(events) == "to the end"


async def test_queued_tells_how_many_workers_there_are(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    counts = []
    for _ in range(2):
        request = make_request()
        await queue.publish(request)
        (event,) = await followed(queue, request.response_id, make_reader)
        assert isinstance(event, ResponseQueued)
        counts.append(event.workers)
        await claim(queue)
    assert counts == [0, 1]


@pytest.mark.cluster
async def test_what_is_released_is_claimed_again_and_did_not_count(
    open_queue: "OpenQueue", limits: "type[Limits]", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    queue = await open_queue(limits(max_attempts=1))
    await queue.publish(make_request())
    await queue.publish(make_request())
    first = await claim(queue)
    old = await begin(queue, first, "half ")
    await queue.release(first)
    second = await claim(queue)
    assert second.request == first.request  # it goes before its user's later ones
    assert second.attempt > first.attempt
    old.add(TextDelta("ghost"))
    assert await append(queue, old) == [old.response_id]
    await queue.release(first)  # too late: it is not theirs any more
    run = Transcript(second)
    run.add(TextDelta("whole"))
    response = await finish(queue, second, run)
    assert response.text == "half whole"
    assert spoken(await read_all(queue, run.response_id, make_reader())) == "half whole"


async def test_many_requests_find_many_workers(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    requests = [make_request(str(i), user=f"user {i % 7}") for i in range(60)]

    async def work() -> None:
        while True:
            delivery = await claim(queue)
            run = await begin(queue, delivery, "you said ", delivery.request.messages[-1].content)
            await finish(queue, delivery, run)

    workers = [asyncio.create_task(work()) for _ in range(4)]
    for request in requests:
        await queue.publish(request)
    for number, request in enumerate(requests):
        events = await read_all(queue, request.response_id, make_reader())
        assert spoken(events) == f"you said {number}"
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


# ── appends ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("attempt", "number"), [(1, 0), (-1, 0), (0, 1), (0, -1), (0, -3), (0, 100), (1, 1)])
async def test_an_append_that_is_not_the_next_one_is_refused_and_changes_nothing(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader", attempt: int, number: int
) -> None:
    await queue.publish(make_request())
    delivery = await claim(queue)
    response_id = delivery.request.response_id
    run = await begin(queue, delivery, "one")
    before = await followed(queue, response_id, make_reader)
    assert await append(queue, step(run, "wrong", attempt=attempt, number=number)) == [response_id]
    assert await followed(queue, response_id, make_reader) == before
    run.add(TextDelta(" two"))
    assert await say(queue, run) == []
    assert spoken(await followed(queue, response_id, make_reader)) == "one two"


async def test_an_append_twice_is_written_once(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    await queue.publish(make_request())
    delivery = await claim(queue)
    run = await begin(queue, delivery)
    once = step(run, "once")
    assert await append(queue, once) == []
    assert await append(queue, once) == [run.response_id]
    assert spoken(await followed(queue, run.response_id, make_reader)) == "once"


async def test_an_append_behind_the_end_is_refused(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    await queue.publish(make_request())
    delivery = await claim(queue)
    run = await begin(queue, delivery, "all")
    await finish(queue, delivery, run)
    assert await append(queue, step(run, "late")) == [run.response_id]
    assert spoken(await read_all(queue, run.response_id, make_reader())) == "all"


async def test_a_refused_append_leaves_the_others_of_its_step_alone(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    for _ in range(3):
        await queue.publish(make_request())
    runs = [await begin(queue, await claim(queue)) for _ in range(3)]
    for run in runs:
        run.add(TextDelta("word"))
    wrong = step(runs[1], "word", number=1)
    assert await append(queue, runs[0], wrong, runs[2]) == [wrong.response_id]
    texts = [spoken(await followed(queue, run.response_id, make_reader)) for run in runs]
    assert texts == ["word", "", "word"]


@pytest.mark.cluster
async def test_one_step_writes_to_many_logs(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    for _ in range(20):
        await queue.publish(make_request())
    runs = [await begin(queue, await claim(queue)) for _ in range(20)]
    for word in ("a", "b", "c"):
        for run in runs:
            run.add(TextDelta(word + run.response_id))
        assert await say(queue, *runs) == []
    for run in runs:
        name = run.response_id
        assert spoken(await followed(queue, name, make_reader)) == f"a{name}b{name}c{name}"


# ── retries ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.cluster
async def test_a_retry_raises_the_attempt_and_hands_over_what_was_said(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    await queue.publish(make_request())
    first = await claim(queue)
    response_id = first.request.response_id
    await begin(queue, first, "half ")
    await queue.retry(first, "the engine hiccuped")
    second = await claim(queue)
    assert second.request == first.request
    assert second.attempt == 2
    assert list(second.emitted) == await followed(queue, response_id, make_reader)
    run = Transcript(second)
    assert run.emitted == "half "
    run.start()
    run.add(TextDelta("whole"))
    await finish(queue, second, run)
    events = await read_all(queue, response_id, make_reader())
    assert spoken(events) == "half whole"
    assert last_response(events).text == "half whole"


async def test_how_likely_tokens_were_is_told_whoever_says_the_rest(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    request = make_request("hello", settings=Settings(logprobs=1))
    await queue.publish(request)
    delivery = await claim(queue)
    run = await begin(queue, delivery)
    scores = tuple(TokenScore(text, -0.5, (("x", -1.5),)) for text in ("so", " it", " is"))
    run.add(ScoredDelta("so", scores[:1]))
    assert not await say(queue, run)
    await queue.retry(delivery, "it died")
    second = await claim(queue)
    run = Transcript(second)
    run.start()
    assert run.emitted == "so"
    run.add(ScoredDelta(" it is", scores[1:]))
    ended = await finish(queue, second, run)
    events = await read_all(queue, request.response_id, make_reader())
    assert scores_of(event for event in events if isinstance(event, TextDelta)) == scores
    assert last_response(events).output == ended.output
    assert ended.output[0].scores == scores


async def test_a_worker_whose_attempt_is_over_cannot_write(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    await queue.publish(make_request())
    first = await claim(queue)
    old = await begin(queue, first, "a")
    await queue.retry(first, "gone")
    new = Transcript(await claim(queue))
    old.add(TextDelta("ghost"))
    assert await append(queue, old) == [old.response_id]
    new.add(TextDelta("b"))
    assert await say(queue, new) == []
    assert spoken(await followed(queue, new.response_id, make_reader)) == "ab"


async def test_a_retry_of_an_attempt_that_is_over_is_ignored(
    queue: "Queue", make_request: "RequestFactory"
) -> None:
    await queue.publish(make_request())
    first = await claim(queue)
    await queue.retry(first, "gone")
    second = await claim(queue)
    await queue.retry(first, "gone again")
    assert await waiting(queue) == 0
    await finish(queue, second, await begin(queue, second))


@pytest.mark.cluster
async def test_after_the_last_attempt_the_log_ends_with_failed(
    open_queue: "OpenQueue",
    limits: "type[Limits]",
    settled: "Settled",
    make_request: "RequestFactory",
    make_reader: "MakeReader",
) -> None:
    queue = await open_queue(limits(max_attempts=2))
    request, reader = make_request(), make_reader()
    await queue.publish(request)
    cursor = await queue.follow(request.response_id, -1, reader)
    deliveries = []
    for _ in range(2):
        deliveries.append(await claim(queue))
        await queue.retry(deliveries[-1], "the engine died")
    assert [delivery.attempt for delivery in deliveries] == [1, 2]
    run = Transcript(deliveries[-1])
    response = last_response(await reader.read(cursor))
    assert response.status is Status.FAILED
    assert response.failure is not None
    assert response.failure.code == "max_attempts_exceeded"
    assert settled.responses == [response]
    assert await waiting(queue) == 0
    assert await append(queue, step(run, "late")) == [request.response_id]


async def test_a_response_that_fails_keeps_what_it_said(
    open_queue: "OpenQueue", limits: "type[Limits]", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    queue = await open_queue(limits(max_attempts=1))
    await queue.publish(make_request())
    delivery = await claim(queue)
    await begin(queue, delivery, "half a ", "sentence")
    await queue.retry(delivery, "the engine died")
    events = await read_all(queue, delivery.request.response_id, make_reader())
    assert last_response(events).text == "half a sentence"
    assert [event.item.text for event in events if isinstance(event, ItemDone)] == ["half a sentence"]


# ── cancelling ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.cluster
async def test_a_waiting_response_that_is_cancelled_ends_and_is_never_claimed(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader", settled: "Settled"
) -> None:
    first, second, reader = make_request(), make_request(), make_reader()
    await queue.publish(first)
    await queue.publish(second)
    cursor = await queue.follow(first.response_id, -1, reader)
    await queue.cancel(first.response_id)
    events = await reader.read(cursor)
    assert isinstance(events[-1], ResponseIncomplete)
    assert last_response(events).incomplete_reason == "cancelled"
    assert settled.responses == [last_response(events)]
    assert await waiting(queue) == 1
    assert (await claim(queue)).request == second


@pytest.mark.cluster
async def test_a_running_response_that_is_cancelled_is_revoked(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    await queue.publish(make_request())
    await queue.publish(make_request())
    consumer = Consumer()
    delivery = await claim(queue, consumer)
    await claim(queue, consumer)
    run = await begin(queue, delivery, "so far")
    await queue.cancel(run.response_id)
    assert consumer.revoked == [run.response_id]
    # The worker still says how it ended.
    await finish(queue, delivery, run, Finished(FinishReason.CANCELLED))
    events = await read_all(queue, run.response_id, make_reader())
    assert spoken(events) == "so far"
    assert last_response(events).incomplete_reason == "cancelled"


async def test_cancelling_an_ended_response_is_harmless(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    consumer = Consumer()
    await queue.publish(make_request())
    response_id = await serve(queue, "done", consumer=consumer)
    before = await read_all(queue, response_id, make_reader())
    await queue.cancel(response_id)
    await queue.cancel(response_id)
    assert await read_all(queue, response_id, make_reader()) == before
    assert consumer.revoked == []


async def test_cancelling_twice_ends_once(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader", settled: "Settled"
) -> None:
    request = make_request()
    await queue.publish(request)
    await asyncio.gather(queue.cancel(request.response_id), queue.cancel(request.response_id))
    events = await read_all(queue, request.response_id, make_reader())
    assert [type(event) for event in events] == [ResponseQueued, ResponseIncomplete]
    assert len(settled.responses) == 1


async def test_cancelling_an_unknown_response_is_an_error(queue: "Queue") -> None:
    with pytest.raises(NotFound) as error:
        await queue.cancel("resp_unknown")
    assert error.value.code == "response_not_found"


async def test_a_response_cancelled_between_two_attempts_keeps_what_it_said(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader", settled: "Settled"
) -> None:
    await queue.publish(make_request())
    delivery = await claim(queue)
    run = Transcript(delivery)
    run.start()
    run.add(ReasoningDelta("hm"))
    run.add(TextDelta("half"))
    await say(queue, run)
    await queue.retry(delivery, "the engine hiccuped")
    await queue.cancel(run.response_id)
    events = await read_all(queue, run.response_id, make_reader())
    response = last_response(events)
    assert response.incomplete_reason == "cancelled"
    assert [item.text for item in response.output] == ["hm", "half"]
    assert [event.item.text for event in events if isinstance(event, ItemDone)] == ["hm", "half"]
    assert settled.responses == [response]


async def test_cancelling_a_claim_loses_nothing(queue: "Queue", make_request: "RequestFactory") -> None:
    claiming = asyncio.create_task(claim(queue))
    await asyncio.sleep(0)
    claiming.cancel()
    await asyncio.gather(claiming, return_exceptions=True)
    request = make_request()
    await queue.publish(request)
    assert (await claim(queue)).request == request


async def test_a_claim_cancelled_just_when_a_request_arrives_passes_it_on(
    queue: "Queue", make_request: "RequestFactory"
) -> None:
    claims = [asyncio.create_task(claim(queue)) for _ in range(2)]
    await asyncio.sleep(0)
    request = make_request()
    await queue.publish(request)
    claims[0].cancel()
    done = await asyncio.gather(*claims, return_exceptions=True)
    deliveries = [delivery for delivery in done if isinstance(delivery, Delivery)]
    if not deliveries:
        deliveries = [await claim(queue)]
    assert [delivery.request for delivery in deliveries] == [request]


async def test_a_claim_that_was_given_up_does_not_count_as_a_free_worker(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    await queue.publish(make_request())
    await claim(queue)
    claiming = asyncio.create_task(claim(queue))
    await asyncio.sleep(0)
    claiming.cancel()
    await asyncio.gather(claiming, return_exceptions=True)
    requests = [make_request(), make_request()]
    for request in requests:
        await queue.publish(request)
    positions = [
        event.position
        for request in requests
        for event in await followed(queue, request.response_id, make_reader)
        if isinstance(event, ResponseQueued)
    ]
    assert positions == [0, 1]


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_full_queue_refuses_with_a_retryable_error(
    open_queue: "OpenQueue", limits: "type[Limits]", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    queue = await open_queue(limits(max_pending=2))
    await queue.publish(make_request(user="ada"))
    await queue.publish(make_request(user="bob"))
    refused = make_request(user="eve")
    with pytest.raises(Unavailable) as error:
        await queue.publish(refused)
    assert error.value.retryable
    assert error.value.code == "queue_full"
    with pytest.raises(NotFound):
        await queue.follow(refused.response_id, -1, make_reader())
    # What runs does not count.
    await claim(queue)
    await queue.publish(refused)
    assert await waiting(queue) == 2


async def test_no_limit_of_pending_requests_lets_all_in(
    open_queue: "OpenQueue", limits: "type[Limits]", make_request: "RequestFactory"
) -> None:
    queue = await open_queue(limits(max_pending=0))
    for _ in range(15):
        await asyncio.gather(*(queue.publish(make_request()) for _ in range(100)))
    assert await waiting(queue) == 1500


@pytest.mark.cluster
async def test_a_request_that_waited_too_long_fails(
    open_queue: "OpenQueue",
    limits: "type[Limits]",
    settled: "Settled",
    make_request: "RequestFactory",
    make_reader: "MakeReader",
) -> None:
    queue = await open_queue(limits(max_age_s=60.0))
    fresh, reader = make_request(user="fresh"), make_reader()
    await queue.publish(fresh)
    stale = make_request(user="stale", created_at=time.time() - 61)
    await queue.publish(stale)
    cursor = await queue.follow(stale.response_id, -1, reader)
    response = last_response(await reader.read(cursor))
    assert response.failure is not None
    assert response.failure.code == "request_expired"
    assert settled.responses == [response]
    assert await waiting(queue) == 1
    assert (await claim(queue)).request == fresh


async def test_a_request_that_was_given_back_too_late_fails_behind_newer_ones(
    open_queue: "OpenQueue", limits: "type[Limits]", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    queue = await open_queue(limits(max_age_s=0.5))
    old, reader = make_request(), make_reader()
    await queue.publish(old)
    delivery = await claim(queue)
    await asyncio.sleep(0.5 - (time.time() - old.created_at))
    newer = make_request()
    await queue.publish(newer)
    cursor = await queue.follow(old.response_id, -1, reader)
    await queue.retry(delivery, "the engine hiccuped")
    failure = last_response(await reader.read(cursor)).failure
    assert failure is not None
    assert failure.code == "request_expired"
    assert (await claim(queue)).request == newer


async def test_a_running_response_does_not_expire(
    open_queue: "OpenQueue", limits: "type[Limits]", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    queue = await open_queue(limits(max_age_s=60.0))
    await queue.publish(make_request())
    running = await claim(queue)
    run = await begin(queue, running, "still ")
    stale, reader = make_request(created_at=time.time() - 61), make_reader()
    await queue.publish(stale)
    await reader.read(await queue.follow(stale.response_id, -1, reader))  # the sweep was here
    run.add(TextDelta("here"))
    await finish(queue, running, run)
    assert spoken(await read_all(queue, run.response_id, make_reader())) == "still here"


async def test_an_ended_log_is_forgotten_after_a_while(
    open_queue: "OpenQueue",
    limits: "type[Limits]",
    make_request: "RequestFactory",
    make_reader: "MakeReader",
    eventually: "Eventually",
) -> None:
    queue = await open_queue(limits(retain_s=0.02))
    await queue.publish(make_request())
    response_id = await serve(queue, "soon gone")

    async def forgotten() -> bool:
        try:
            (await queue.follow(response_id, -1, make_reader())).close()
        except NotFound:
            return True
        return False

    await eventually(forgotten)
    with pytest.raises(NotFound):
        await queue.cancel(response_id)


async def test_a_follower_that_is_behind_gets_everything_of_a_forgotten_log(
    open_queue: "OpenQueue",
    limits: "type[Limits]",
    make_request: "RequestFactory",
    make_reader: "MakeReader",
    eventually: "Eventually",
) -> None:
    queue = await open_queue(limits(retain_s=0.02))
    request, slow = make_request(), make_reader()
    await queue.publish(request)
    cursor = await queue.follow(request.response_id, -1, slow)
    await serve(queue, "slow ", "and ", "steady")

    async def forgotten() -> bool:
        try:
            (await queue.follow(request.response_id, -1, make_reader())).close()
        except NotFound:
            return True
        return False

    await eventually(forgotten)
    events = await slow.read(cursor)
    assert spoken(events) == "slow and steady"
    assert isinstance(events[-1], ResponseCompleted)


@pytest.mark.cluster
async def test_what_is_to_be_forgotten_is_found_by_nobody_but_who_follows_it(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    await queue.publish(request := make_request())
    delivery = await claim(queue)
    run = await begin(queue, delivery, "all")
    for _ in range(2):  # it runs
        with pytest.raises(Conflict) as refused:
            await queue.forget(request.response_id)
        assert refused.value.code == "response_running"
    reader = make_reader()
    cursor = await queue.follow(request.response_id, -1, reader)
    reading = asyncio.create_task(reader.read(cursor))
    await finish(queue, delivery, run)
    assert spoken(await reading) == "all"
    late = make_reader()
    behind = await queue.follow(request.response_id, -1, late)
    for _ in range(2):  # the second time it is unknown
        await queue.forget(request.response_id)
    with pytest.raises(NotFound):
        await queue.follow(request.response_id, -1, make_reader())
    assert spoken(await late.read(behind)) == "all"


async def test_a_running_response_is_not_forgotten(
    open_queue: "OpenQueue",
    limits: "type[Limits]",
    make_request: "RequestFactory",
    make_reader: "MakeReader",
    eventually: "Eventually",
) -> None:
    queue = await open_queue(limits(retain_s=0.0))
    await queue.publish(make_request(user="long"))
    running = await claim(queue)
    run = await begin(queue, running, "I ")
    await queue.publish(make_request(user="short"))
    short = await serve(queue, "bye")

    async def short_forgotten() -> bool:
        try:
            await queue.cancel(short)
        except NotFound:
            return True
        return False

    await eventually(short_forgotten)
    run.add(TextDelta("stay"))
    assert await say(queue, run) == []
    assert spoken(await followed(queue, run.response_id, make_reader)) == "I stay"


# ── following ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("after", [-1, 0, 3, 5])
async def test_a_follower_gets_exactly_what_is_behind_its_cursor(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader", after: int
) -> None:
    await queue.publish(make_request())
    delivery = await claim(queue)
    run = await begin(queue, delivery, "a", "b", "c")
    early = await queue.follow(run.response_id, after, (reader := make_reader()))
    run.add(TextDelta("d"))
    await say(queue, run)
    await finish(queue, delivery, run)
    whole = await read_all(queue, run.response_id, make_reader())
    assert await reader.read(early) == whole[after + 1 :]
    assert early.next_number == len(whole)


async def test_a_late_follower_gets_all(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    await queue.publish(make_request())
    response_id = await serve(queue, "every ", "word")
    events = await read_all(queue, response_id, make_reader())
    assert spoken(events) == "every word"
    assert isinstance(events[0], ResponseQueued)
    assert isinstance(events[-1], ResponseCompleted)


async def test_following_behind_the_last_event_waits_for_the_next(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    await queue.publish(make_request())
    delivery = await claim(queue)
    run = await begin(queue, delivery, "a")
    reader = make_reader()
    cursor = await queue.follow(run.response_id, run.number - 1, reader)
    assert cursor.take(10, 1000) == []
    run.add(TextDelta("b"))
    await say(queue, run)
    await reader.news()
    assert cursor.take(10, 1000) == ["b"]


async def test_following_behind_the_end_of_an_ended_log_has_nothing_to_read(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    await queue.publish(make_request())
    response_id = await serve(queue, "x")
    last = len(await read_all(queue, response_id, make_reader())) - 1
    cursor = await queue.follow(response_id, last, make_reader())
    assert cursor.done
    assert cursor.take(10, 1000) == []


@pytest.mark.parametrize("beyond", [1, 2, 1000, 2**53])
async def test_following_from_past_the_end_is_an_error(
    queue: "Queue",
    make_request: "RequestFactory",
    make_reader: "MakeReader",
    eventually: "Eventually",
    beyond: int,
) -> None:
    request = make_request()
    await queue.publish(request)
    with pytest.raises(InvalidRequest) as error:
        await queue.follow(request.response_id, beyond, make_reader())
    assert error.value.param == "starting_after"
    await followers_become(0, queue, request.response_id, eventually)


async def test_following_an_unknown_response_is_an_error(queue: "Queue", make_reader: "MakeReader") -> None:
    with pytest.raises(NotFound) as error:
        await queue.follow("resp_unknown", -1, make_reader())
    assert error.value.code == "response_not_found"
    assert error.value.param == "response_id"


async def test_two_followers_read_the_same_log_at_their_own_pace(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    request, fast, slow = make_request(), make_reader(), make_reader()
    await queue.publish(request)
    fast_cursor = await queue.follow(request.response_id, -1, fast)
    slow_cursor = await queue.follow(request.response_id, -1, slow)
    reading = asyncio.create_task(fast.read(fast_cursor))
    await serve(queue, "one ", "two ", "three")
    whole = await reading
    got: list[Event] = []
    while not slow_cursor.done:
        got += slow_cursor.take(1, 1)
    assert got == whole


async def test_who_has_left_is_not_woken(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    request, reader = make_request(), make_reader()
    await queue.publish(request)
    cursor = await queue.follow(request.response_id, -1, reader)
    cursor.close()
    wakes = reader.wakes
    await serve(queue, "x")
    assert reader.wakes == wakes


async def followers_become(count: int, queue: "Queue", response_id: str, eventually: "Eventually") -> None:
    """A process that has just published a request counts for a moment: it is about to follow."""

    async def so_many() -> bool:
        return await queue.followers(response_id) == count

    await eventually(so_many)


@pytest.mark.cluster
async def test_followers_are_counted_while_the_response_runs(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader", eventually: "Eventually"
) -> None:
    request = make_request()
    await queue.publish(request)
    name = request.response_id
    await followers_become(0, queue, name, eventually)
    cursors = [await queue.follow(name, -1, make_reader()) for _ in range(2)]
    assert await queue.followers(name) == 2
    cursors.pop().close()
    assert await queue.followers(name) == 1
    await serve(queue, "x")
    assert await queue.followers(name) == 0
    assert await queue.followers("resp_unknown") == 0


# ── places in the queue ──────────────────────────────────────────────────────────────────────────


@pytest.mark.cluster
async def test_who_asked_is_told_when_its_place_changes(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    requests = [make_request() for _ in range(4)]
    for request in requests:
        await queue.publish(request)
    asks, rests = make_reader(), make_reader()
    await queue.follow(requests[3].response_id, -1, asks, queue_updates=True)
    await queue.follow(requests[2].response_id, -1, rests)
    for position in (2, 1, 0):
        await claim(queue)
        while not asks.updates or asks.updates[-1].position != position:
            await asks.news()
    positions = [update.position for update in asks.updates]
    assert positions == sorted(set(positions), reverse=True)
    assert rests.updates == []


@pytest.mark.cluster
async def test_who_comes_later_is_told_the_place_at_hand(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    requests = [make_request() for _ in range(4)]
    for request in requests:
        await queue.publish(request)
    first, later = make_reader(), make_reader()
    await queue.follow(requests[3].response_id, -1, first, queue_updates=True)
    await claim(queue)
    while not first.updates or first.updates[-1].position != 2:
        await first.news()
    await queue.follow(requests[3].response_id, -1, later, queue_updates=True)
    while not later.updates:
        await later.news()
    assert [update.position for update in later.updates] == [2]


async def test_a_cancelled_request_moves_the_others_up(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    requests = [make_request() for _ in range(3)]
    for request in requests:
        await queue.publish(request)
    asks = make_reader()
    await queue.follow(requests[2].response_id, -1, asks, queue_updates=True)
    await queue.cancel(requests[0].response_id)
    while not asks.updates or asks.updates[-1].position != 1:
        await asks.news()


@pytest.mark.cluster
async def test_an_announcement_reaches_only_who_asked_and_leaves_the_log_alone(
    queue: "Queue", make_request: "RequestFactory", make_reader: "MakeReader"
) -> None:
    await queue.publish(make_request())
    await queue.publish(make_request())
    delivery, other = await claim(queue), await claim(queue)
    name = delivery.request.response_id
    asks, rests, elsewhere = make_reader(), make_reader(), make_reader()
    await queue.follow(name, -1, asks, queue_updates=True)
    await queue.follow(name, -1, rests)
    await queue.follow(other.request.response_id, -1, elsewhere, queue_updates=True)
    before = await followed(queue, name, make_reader)
    update = QueueUpdate(0, prefilled=64, prompt_tokens=300)
    queue.announce(delivery, update)
    while update not in asks.updates:
        await asks.news()
    assert rests.updates == []
    assert elsewhere.updates == []
    assert await followed(queue, name, make_reader) == before


async def test_announcing_behind_the_end_is_harmless(queue: "Queue", make_request: "RequestFactory") -> None:
    await queue.publish(make_request())
    delivery = await claim(queue)
    await finish(queue, delivery, await begin(queue, delivery))
    queue.announce(delivery, QueueUpdate(1))
