"""What the workers' side promises on Redis beyond the port: leases, lost answers, dead letters."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import Unavailable
from internal.biz.events import (
    Delta,
    Event,
    ReasoningDelta,
    ResponseCompleted,
    ResponseFailed,
    ResponseInProgress,
    ScoredDelta,
    TextDelta,
)
from internal.biz.generation import Finished, FinishReason
from internal.biz.models import Condition, ModelState, Order, Request, Status
from internal.data.redis import work_queue as work_queue_module

if TYPE_CHECKING:
    from test.conftest import Eventually, OwnRedis, Reader
    from test.data.redis.conftest import Net, Server

    MakeReader = Callable[[], Reader]

STOP = Finished(FinishReason.STOP)
SHORT_S = 0.15
"""A lease that a test can wait for."""


def spoken(events: list[Event]) -> str:
    return "".join(event for event in events if isinstance(event, TextDelta))


async def read(server: "Server", response_id: str, reader: "Reader") -> list[Event]:
    """A log up to its end."""
    cursor = await server.queue.follow(response_id, -1, reader)
    async with asyncio.timeout(5):
        events = await reader.read(cursor)
    cursor.close()
    return events


def failure(events: list[Event]) -> str:
    last = events[-1]
    assert isinstance(last, ResponseFailed)
    assert last.response.status is Status.FAILED
    assert last.response.failure is not None
    return last.response.failure.code


# ── leases ───────────────────────────────────────────────────────────────────────────────────────


async def test_what_a_silent_worker_had_is_taken_over_and_goes_on(
    net: "Net", make_reader: "MakeReader"
) -> None:
    net.options = replace(net.options, lease_s=SHORT_S)
    server, silent, other = await net.server(), await net.worker("w1"), await net.worker("w2")
    request = await net.publish(server)
    first = await silent.claim_one()
    assert await first.say("half ")
    await silent.freeze()
    second = await other.claim_one()
    assert second.attempt == 2
    assert second.emitted == "half "
    assert other.meter.counts["taken over"] == 1
    assert await first.say("ghost") is False  # a zombie
    assert await second.say("whole")
    assert await first.say("ghost") is False
    await second.end()
    events = await read(server, request.response_id, make_reader())
    assert spoken(events) == "half whole"
    assert sum(isinstance(event, ResponseInProgress) for event in events) == 1
    last = events[-1]
    assert isinstance(last, ResponseCompleted)
    assert last.response.attempt == 2


async def test_a_worker_that_lives_keeps_what_it_works_on(net: "Net") -> None:
    net.options = replace(net.options, lease_s=0.6)
    server, worker, other = await net.server(), await net.worker("w1"), await net.worker("w2")
    await net.publish(server)
    run = await worker.claim_one()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await other.queue.claim("m", other.consumer)
    assert await run.say("mine")
    await run.end()
    assert not worker.consumer.lost


async def test_a_zombie_is_told_at_its_next_renewal(net: "Net", eventually: "Eventually") -> None:
    net.options = replace(net.options, lease_s=SHORT_S)
    server, zombie, other = await net.server(), await net.worker("w1"), await net.worker("w2")
    await net.publish(server)
    first = await zombie.claim_one()
    zombie.link.before["renew"] = 10**6  # it hangs
    second = await other.claim_one()
    assert zombie.consumer.lost == []
    zombie.link.before["renew"] = 0

    async def told() -> bool:
        return zombie.consumer.lost == [first.delivery]

    await eventually(told)
    assert await first.say("ghost") is False
    assert zombie.meter.counts["refused"] == 1
    await second.end("fine")
    assert not other.consumer.lost


async def test_a_worker_may_take_over_what_it_lost_itself(net: "Net", make_reader: "MakeReader") -> None:
    """Both attempts speak in one step until the first is known to be lost: only the second is heard."""
    net.options = replace(net.options, lease_s=SHORT_S)
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    first = await worker.claim_one()
    worker.link.before["renew"] = 10**6
    second = await worker.claim_one()
    assert second.attempt == 2
    for order in ((first, second), (second, first)):
        for run in order:
            run.start()
            run.add(TextDelta("x"))
        refused = await worker.step(*order)
        assert refused == [first]
    await second.end()
    assert spoken(await read(server, request.response_id, make_reader())) == "xx"


async def test_both_attempts_of_one_step_are_told_apart_by_redis(
    net: "Net", make_reader: "MakeReader"
) -> None:
    """As above, but the first append after the takeover is the one that finds out."""
    net.options = replace(net.options, lease_s=SHORT_S)
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    first = await worker.claim_one()
    worker.link.before["renew"] = 10**6
    second = await worker.claim_one()
    for run in (second, first):
        run.start()
        run.add(TextDelta("x"))
    assert await worker.step(second, first) == [first]
    await second.end("y")
    assert spoken(await read(server, request.response_id, make_reader())) == "xy"


@pytest.mark.parametrize(("words", "deaths"), [((), 2), (tuple("abcdefgh"), 8)])
async def test_after_too_many_lost_leases_it_is_a_dead_letter(
    net: "Net", make_reader: "MakeReader", words: tuple[str, ...], deaths: int
) -> None:
    """Of a request that kills whoever works on it: at once, or only when it has said something each time."""
    net.options = replace(net.options, lease_s=SHORT_S, max_attempts=2)
    server, worker = await net.server(), await net.worker()
    worker.link.before["renew"] = 10**6
    poison = await net.publish(server, "poison")
    for attempt in range(deaths):
        run = await worker.claim_one()
        assert run.attempt == attempt + 1
        if words:
            await run.say(words[attempt])
    fine = await net.publish(server, "fine", user="another")
    assert (await worker.claim_one()).response_id == fine.response_id
    claiming = asyncio.create_task(worker.queue.claim("m", worker.consumer))
    events = await read(server, poison.response_id, make_reader())
    claiming.cancel()
    await asyncio.gather(claiming, return_exceptions=True)
    assert failure(events) == "max_attempts_exceeded"
    assert spoken(events) == "".join(words)
    (letter,) = await net.letters()
    assert letter[b"id"].decode() == poison.response_id
    assert letter[b"code"] == b"max_attempts_exceeded"
    assert letter[b"consumer"].startswith(b"w#")
    assert f"died {deaths} times".encode() in letter[b"reason"]
    assert b"poison" in letter[b"request"]
    assert worker.meter.counts["dead"] == 1
    assert [response.id for response in net.settled] == [poison.response_id]


async def test_after_redis_was_away_workers_get_the_time_to_renew(
    own_net: "Net", own_redis: "OwnRedis"
) -> None:
    net = own_net
    net.options = replace(net.options, lease_s=0.4)
    server, silent, other = await net.server(), await net.worker("w1"), await net.worker("w2")
    await net.publish(server)
    await silent.claim_one()
    await silent.freeze()
    claiming = asyncio.create_task(other.claim_one())
    await asyncio.sleep(0.05)
    await own_redis.stop()
    await asyncio.sleep(0.5)  # its lease has run out
    await own_redis.start()
    async with asyncio.timeout(5):
        await other.link.wait_heard()
    assert (await claiming).attempt == 2
    assert other.link.back_for_s >= 0.4


async def test_a_claim_whose_answer_was_lost_is_taken_over_later(net: "Net") -> None:
    net.options = replace(net.options, lease_s=SHORT_S)
    server, worker = await net.server(), await net.worker()
    worker.link.behind["claim"] = 1
    request = await net.publish(server)
    run = await worker.claim_one()
    assert (run.response_id, run.attempt) == (request.response_id, 2)
    await run.end("x")


async def test_a_claim_that_nobody_waits_for_any_more_gives_back_what_it_brings(net: "Net") -> None:
    server, worker, other = await net.server(), await net.worker("w1"), await net.worker("w2")
    for ticks in range(0, 40, 3):
        request = await net.publish(server)
        claiming = asyncio.create_task(worker.queue.claim("m", worker.consumer))
        for _ in range(ticks):
            await asyncio.sleep(0)
        claiming.cancel()
        (found,) = await asyncio.gather(claiming, return_exceptions=True)
        if isinstance(found, BaseException):
            run = await other.claim_one()
            assert run.response_id == request.response_id
            assert await net.meta(request.response_id, "silent") == "1"
            await run.end()
        else:
            await worker.queue.release(found[0])
            await (await other.claim_one()).end()


@pytest.mark.parametrize("said", [TextDelta("so"), ReasoningDelta("hm"), ScoredDelta("so", ())])
async def test_who_speaks_is_not_silent(net: "Net", said: Delta) -> None:
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    run = await worker.claim_one()
    assert await net.meta(request.response_id, "silent") == "1"
    run.start()
    run.add(said)
    assert await worker.step(run) == []
    assert await net.meta(request.response_id, "silent") == "0"


async def test_a_claim_takes_as_much_as_there_is_room_for(net: "Net") -> None:
    server, worker = await net.server(), await net.worker()
    requests = [await net.publish(server, user=f"u{n}") for n in range(5)]
    runs = await worker.claim(room=3)
    assert [run.response_id for run in runs] == [request.response_id for request in requests[:3]]
    for run in runs:
        run.start()
        run.finish(STOP)
    assert await worker.step(*runs) == []
    assert len(await worker.claim(room=3)) == 2


async def test_workers_that_died_leave_nothing_behind(net: "Net", eventually: "Eventually") -> None:
    net.options = replace(net.options, lease_s=0.3)
    server = await net.server()
    workers = [await net.worker(f"w{number}") for number in range(2)]
    for worker in workers:
        await net.publish(server)
        await (await worker.claim_one()).end()

    async def live(*names: str) -> bool:
        return sorted(info.name for info in await server.queue.workers()) == list(names)

    await eventually(lambda: live("w0", "w1"))
    for worker in workers:
        await worker.kill()
    await eventually(live)
    await asyncio.sleep(0.35)
    await net.publish(server)
    last = await net.worker("last")
    await last.claim_one()
    assert await net.redis.hkeys(f"{net.base}:rooms") == [b"last"]
    assert await net.redis.zrange(f"{net.base}:workers", 0, -1) == [b"last"]


# ── cancelling ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["append", "renewal"])
async def test_a_cancel_whose_message_was_lost_arrives_all_the_same(
    net: "Net", eventually: "Eventually", way: str
) -> None:
    net.options = replace(net.options, lease_s=SHORT_S if way == "renewal" else 60.0)
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    run = await worker.claim_one()
    worker.link.deaf = True
    await server.queue.cancel(request.response_id)
    if way == "append":
        assert await run.say("one more")
        assert await run.say("another one")

    async def told() -> bool:
        return worker.consumer.revoked == [run.delivery]

    await eventually(told)


async def test_a_cancel_is_told_once(net: "Net", eventually: "Eventually") -> None:
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    run = await worker.claim_one()
    for _ in range(3):
        await server.queue.cancel(request.response_id)

    async def told() -> bool:
        return bool(worker.consumer.revoked)

    await eventually(told)
    assert await run.say("x")
    await worker.queue._renew()
    assert worker.consumer.revoked == [run.delivery]


# ── answers that are lost ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["before", "behind"])
@pytest.mark.parametrize("times", [1, 3])
async def test_an_append_may_be_repeated_until_its_answer_comes(
    net: "Net", make_reader: "MakeReader", way: str, times: int
) -> None:
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    run = await worker.claim_one()
    losses = getattr(worker.link, way)
    for word in ("a", "b", "c"):
        losses["append"] = times
        assert await run.say(word)
    losses["append"] = times
    response = await run.end("d")
    assert worker.link.calls["append"] == 4 * (times + 1)
    assert response.text == "abcd"
    events = await read(server, request.response_id, make_reader())
    assert spoken(events) == "abcd"
    assert len(events) == len(await net.log(request.response_id))
    assert worker.meter.counts["refused"] == 0


async def test_a_step_of_many_may_be_repeated(net: "Net", make_reader: "MakeReader") -> None:
    """Of one the cancel was not told yet, one is lost, two end."""
    server, worker = await net.server(), await net.worker()
    requests = [await net.publish(server, user=f"u{n}") for n in range(4)]
    runs = await worker.claim(room=4)
    worker.link.deaf = True
    await server.queue.cancel(requests[0].response_id)
    await net.redis.hset(f"{net.base}:meta:{requests[1].response_id}", "owner", "w9#9")
    worker.link.behind["append"] = 2
    for run in runs:
        run.start()
        run.add(TextDelta("x"))
    for run in runs[2:]:
        run.finish(STOP)
    assert await worker.step(*runs) == [runs[1]]
    for request in requests[2:]:
        assert spoken(await read(server, request.response_id, make_reader())) == "x"
    await runs[0].say("y")
    assert worker.consumer.revoked == [runs[0].delivery]


async def test_an_append_that_was_written_and_then_taken_over_is_refused(net: "Net") -> None:
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    run = await worker.claim_one()
    await run.say("a")
    run.add(TextDelta("b"))
    worker.link.behind["append"] = 1
    with pytest.raises(Unavailable):
        await worker.queue.append([run])
    await net.redis.hset(f"{net.base}:meta:{request.response_id}", "owner", "w9#9")
    assert await worker.queue.append([run]) == [run]
    assert (await net.log(request.response_id))[-2:] == [b'"a"', b'"b"']


# ── what Redis lost ──────────────────────────────────────────────────────────────────────────────


async def lose_last(net: "Net", response_id: str, count: int) -> None:
    await net.redis.rpop(f"{net.base}:log:{response_id}", count)


@pytest.mark.parametrize("lost", [1, 3, 6])
async def test_what_redis_lost_of_a_log_is_written_again(
    net: "Net", make_reader: "MakeReader", lost: int
) -> None:
    server, worker = await net.server(), await net.worker()
    request, other = await net.publish(server, user="u1"), await net.publish(server, user="u2")
    runs = await worker.claim(room=2)
    for word in ("a", "b"):
        for run in runs:
            run.start()
            run.add(TextDelta(word))
        assert not await worker.step(*runs)
    whole = await net.log(request.response_id)
    await lose_last(net, request.response_id, lost)
    for run in runs:
        run.add(TextDelta("c"))
    assert not await worker.step(*runs)
    assert await net.log(request.response_id) == [*whole, b'"c"']
    for run in runs:
        await run.end("d")
    for one in (request, other):
        assert spoken(await read(server, one.response_id, make_reader())) == "abcd"
    assert worker.meter.counts["refused"] == 0


@pytest.mark.parametrize("way", ["before", "behind"])
async def test_writing_again_may_be_interrupted(net: "Net", make_reader: "MakeReader", way: str) -> None:
    server, worker = await net.server(), await net.worker()
    requests = [await net.publish(server, user=f"u{n}") for n in range(3)]
    runs = await worker.claim(room=3)
    for run in runs:
        run.start()
        run.add(TextDelta("a"))
    assert not await worker.step(*runs)
    await lose_last(net, requests[1].response_id, 2)
    append, failures = worker.link.call, 1

    async def flaky(script: str, base: str, *args: object) -> object:
        nonlocal failures
        again = script == "append" and args.count(requests[0].response_id) == 0
        if again and failures and way == "before":
            failures -= 1
            raise Unavailable("lost on the way")
        reply = await append(script, base, *args)
        if again and failures:
            failures -= 1
            raise Unavailable("lost on the way back")
        return reply

    worker.link.call = flaky  # type: ignore[method-assign]
    for run in runs:
        run.add(TextDelta("b"))
    assert await worker.step(*runs) == []
    assert not failures
    for run in runs:
        await run.end("c")
    for request in requests:
        assert spoken(await read(server, request.response_id, make_reader())) == "abc"


async def test_what_was_lost_too_far_back_is_given_up(net: "Net", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_queue_module, "RECENT_ENTRIES", 3)
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    run = await worker.claim_one()
    await run.say("a", "b", "c")
    await lose_last(net, request.response_id, 4)
    before = await net.log(request.response_id)
    assert await run.say("d") is False
    assert await net.log(request.response_id) == before


# ── what cannot be answered ──────────────────────────────────────────────────────────────────────


async def test_an_undecodable_request_is_a_dead_letter_and_delays_nobody(
    net: "Net", make_reader: "MakeReader"
) -> None:
    server, worker = await net.server(), await net.worker()
    bad = await net.publish(server, user="u1")
    good = await net.publish(server, user="u2")
    await net.redis.hset(f"{net.base}:meta:{bad.response_id}", "request", b'{"version": 7}')
    (run,) = await worker.claim(room=2)
    assert run.response_id == good.response_id
    assert failure(await read(server, bad.response_id, make_reader())) == "request_undecodable"
    (letter,) = await net.letters()
    assert letter[b"code"] == b"request_undecodable"
    assert letter[b"request"] == b'{"version": 7}'
    assert worker.meter.counts["dead"] == 1
    assert [response.status for response in net.settled] == [Status.FAILED]
    assert net.settled[0].id == bad.response_id
    await run.end("fine")


async def test_an_undecodable_log_is_a_dead_letter(net: "Net", eventually: "Eventually") -> None:
    server, worker = await net.server(), await net.worker()
    bad = await net.publish(server, user="u1")
    await net.publish(server, user="u2")
    await net.redis.rpush(f"{net.base}:log:{bad.response_id}", b'["future", 1]')
    (run,) = await worker.claim(room=2)

    async def ended() -> bool:
        return (await net.log(bad.response_id))[-1].startswith(b'["end"')

    await eventually(ended)
    (letter,) = await net.letters()
    assert letter[b"code"] == b"log_undecodable"
    await run.end("fine")


async def test_a_last_try_that_fails_is_a_dead_letter(net: "Net", make_reader: "MakeReader") -> None:
    net.options = replace(net.options, max_attempts=1)
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server, "poison")
    run = await worker.claim_one()
    await run.say("half")
    worker.link.behind["give_back"] = 1
    with pytest.raises(Unavailable):
        await worker.queue.retry(run.delivery, "out of memory")
    await worker.queue.retry(run.delivery, "out of memory")
    events = await read(server, request.response_id, make_reader())
    assert failure(events) == "max_attempts_exceeded"
    assert spoken(events) == "half"
    (letter,) = await net.letters()
    assert letter[b"reason"] == b"out of memory"
    assert await run.say("ghost") is False
    await worker.queue.retry(run.delivery, "again")
    assert await net.redis.xlen(f"{net.base}:dead") == 1


@pytest.mark.parametrize("script", ["bury", "append"])
async def test_a_dead_letter_whose_answer_was_lost_is_one(
    net: "Net", make_reader: "MakeReader", script: str
) -> None:
    net.options = replace(net.options, max_attempts=1)
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    run = await worker.claim_one()
    worker.link.behind[script] = 1
    with pytest.raises(Unavailable):
        await worker.queue.retry(run.delivery, "out of memory")
    await worker.queue.retry(run.delivery, "out of memory")
    assert failure(await read(server, request.response_id, make_reader())) == "max_attempts_exceeded"
    assert await net.redis.xlen(f"{net.base}:dead") == 1


async def test_a_retry_whose_answer_was_lost_counts_once(net: "Net") -> None:
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    run = await worker.claim_one()
    worker.link.behind["give_back"] = 1
    with pytest.raises(Unavailable):
        await worker.queue.retry(run.delivery, "hiccup")
    await worker.queue.retry(run.delivery, "hiccup")
    again = await worker.claim_one()
    assert again.attempt == 2
    await again.end("x")
    assert (await server.queue.backlog("m")).waiting == 0
    assert (await net.log(request.response_id))[-1].startswith(b'["end"')


async def test_an_answer_that_grows_too_long_fails(net: "Net", make_reader: "MakeReader") -> None:
    net.options = replace(net.options, max_response_bytes=5000)
    server, worker = await net.server(), await net.worker()
    long, short = await net.publish(server, user="u1"), await net.publish(server, user="u2")
    runs = await worker.claim(room=2)
    for run in runs:
        run.start()
    said = 0
    while not worker.consumer.lost:
        assert said < 10
        for run in runs:
            run.add(TextDelta("x" * (1000 if run is runs[0] else 1)))
        await worker.step(*runs)
        said += 1
        await asyncio.sleep(0.01)
    assert worker.consumer.lost == [runs[0].delivery]
    events = await read(server, long.response_id, make_reader())
    assert failure(events) == "answer_too_long"
    assert spoken(events) == "x" * 1000 * said
    assert await runs[0].say("more") is False
    await runs[1].end()
    assert spoken(await read(server, short.response_id, make_reader())) == "x" * said


async def test_an_answer_too_long_that_cannot_be_ended_harms_nobody_and_ends_later(
    net: "Net", make_reader: "MakeReader", eventually: "Eventually"
) -> None:
    net.options = replace(net.options, max_response_bytes=500, lease_s=SHORT_S)
    server, worker = await net.server(), await net.worker()
    long, short = await net.publish(server, user="u1"), await net.publish(server, user="u2")
    runs = await worker.claim(room=2)
    net.storage_is_away = True
    for run in runs:
        run.start()
        run.add(TextDelta("x" * (1000 if run is runs[0] else 1)))
    assert await worker.step(*runs) == []
    assert worker.consumer.lost == [runs[0].delivery]
    await runs[1].end("y")
    assert spoken(await read(server, short.response_id, make_reader())) == "xy"

    async def tried() -> bool:
        return net.refusals > 0

    await eventually(tried)
    net.storage_is_away = False
    again = await worker.claim_one()  # its lease has run out
    assert again.response_id == long.response_id
    await again.say("z")
    assert failure(await read(server, long.response_id, make_reader())) == "answer_too_long"
    assert [response.id for response in net.settled] == [long.response_id]


# ── long answers, and retention ──────────────────────────────────────────────────────────────────


async def test_a_long_answer_that_is_given_back_is_not_too_old_to_wait(
    net: "Net", make_reader: "MakeReader"
) -> None:
    net.options = replace(net.options, max_age_s=0.5)
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    run = await worker.claim_one()
    await run.say("half ")
    await asyncio.sleep(0.6)
    await worker.queue.release(run.delivery)
    await asyncio.sleep(0.2)  # the servers look for what is too old meanwhile
    await (await worker.claim_one()).end("whole")
    assert spoken(await read(server, request.response_id, make_reader())) == "half whole"


@pytest.mark.parametrize("retain_s", [0.0, 64.1, 16.1])
async def test_an_end_reaches_its_readers_whatever_the_retention(
    net: "Net", make_reader: "MakeReader", retain_s: float
) -> None:
    net.options = replace(net.options, retain_s=retain_s)
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    await (await worker.claim_one()).end("x")
    assert spoken(await read(server, request.response_id, make_reader())) == "x"
    kept_ms = await net.redis.pttl(f"{net.base}:log:{request.response_id}")
    assert 50_000 < kept_ms <= max(60.0, retain_s) * 1000


async def test_two_deliveries_never_have_the_same_token(net: "Net") -> None:
    """Not even when Redis has lost that there was a first one."""
    net.options = replace(net.options, lease_s=SHORT_S)
    server, worker = await net.server(), await net.worker()
    worker.link.before["renew"] = 10**6
    request = await net.publish(server)
    old = await worker.claim_one()
    await net.redis.hdel(f"{net.base}:meta:{request.response_id}", "attempt")
    new = await worker.claim_one()
    assert new.attempt == old.attempt
    assert await new.say("new")
    assert not await old.say("old")


# ── an engine that is lost ───────────────────────────────────────────────────────────────────────


async def trusting(net: "Net") -> None:
    """Else nothing is taken over for as long as a lease after a queue is new."""
    await net.redis.hset(f"{net.base}:seen", "patient_until", 0)


async def test_what_is_forsaken_is_taken_over_at_once_as_from_a_worker_that_died(
    net: "Net", make_reader: "MakeReader"
) -> None:
    net.options = replace(net.options, lease_s=60.0)
    server, losing, other = await net.server(), await net.worker("w1"), await net.worker("w2")
    requests = [await net.publish(server, user=user) for user in ("ada", "bob")]
    runs = await losing.claim(room=2)
    assert await runs[0].say("half ")
    await trusting(net)
    claiming = asyncio.create_task(other.claim(room=2))
    await losing.queue.forsake("m", losing.consumer, [run.delivery for run in runs])
    taken = await claiming
    while len(taken) < 2:
        taken += await other.claim(room=2)
    assert {run.response_id: run.emitted for run in taken} == {
        requests[0].response_id: "half ",
        requests[1].response_id: "",
    }
    assert await runs[0].say("ghost") is False
    for run in taken:
        assert await net.meta(run.response_id, "deaths") == "1"
        await run.end("whole")
    assert spoken(await read(server, requests[0].response_id, make_reader())) == "half whole"
    assert b"w1" not in await net.redis.zrange(f"{net.base}:workers", 0, -1)


async def test_a_request_that_each_time_costs_an_engine_is_a_dead_letter(
    net: "Net", make_reader: "MakeReader"
) -> None:
    net.options = replace(net.options, lease_s=60.0, max_attempts=2)
    server = await net.server()
    request = await net.publish(server)
    for attempt in range(2):
        worker = await net.worker(f"w{attempt}")
        run = await worker.claim_one()
        await trusting(net)
        await worker.queue.forsake("m", worker.consumer, [run.delivery])
    last = await net.worker("last")
    claiming = asyncio.create_task(last.claim())
    events = await read(server, request.response_id, make_reader())
    assert failure(events) == "max_attempts_exceeded"
    (letter,) = await net.letters()
    assert b"died 2 times" in letter[b"reason"]
    claiming.cancel()
    await asyncio.gather(claiming, return_exceptions=True)


async def test_what_is_forsaken_cannot_be_given_back_any_more(net: "Net") -> None:
    net.options = replace(net.options, lease_s=60.0)
    server, losing = await net.server(), await net.worker("w1")
    request = await net.publish(server)
    run = await losing.claim_one()
    await losing.queue.forsake("m", losing.consumer, [run.delivery])
    await losing.queue.release(run.delivery)
    assert not await net.redis.zrange(f"{net.base}:waiting", 0, -1)
    await trusting(net)
    taken = await (await net.worker("w2")).claim_one()
    assert (taken.response_id, await net.meta(taken.response_id, "deaths")) == (request.response_id, "1")


async def test_a_lease_that_others_have_by_now_is_not_ended(net: "Net") -> None:
    net.options = replace(net.options, lease_s=SHORT_S)
    server, losing, other = await net.server(), await net.worker("w1"), await net.worker("w2")
    await net.publish(server)
    first = await losing.claim_one()
    await losing.freeze()
    second = await other.claim_one()
    await other.freeze()  # it renews nothing meanwhile
    running = f"{net.base}:running"
    until_ms = await net.redis.zscore(running, second.response_id)
    await losing.queue.forsake("m", losing.consumer, [first.delivery])
    assert await net.redis.zscore(running, second.response_id) == until_ms


async def test_a_worker_that_rests_and_dies_leaves_nothing_behind(
    net: "Net", eventually: "Eventually"
) -> None:
    net.options = replace(net.options, lease_s=SHORT_S)
    resting = await net.worker("w1")
    resting.queue.attend("m", Resident())

    async def is_known() -> bool:
        return bool(await net.redis.zrange(f"{net.base}:resting", 0, -1))

    await eventually(is_known)
    await resting.kill()
    other = await net.worker("w2")
    other.queue.attend("m", Resident())

    async def is_alone() -> bool:
        return list(await net.redis.zrange(f"{net.base}:resting", 0, -1)) == [b"w2"]

    await eventually(is_alone)


# ── a model that sleeps ──────────────────────────────────────────────────────────────────────────


async def test_a_worker_whose_model_sleeps_leaves_what_comes_to_one_that_is_awake(net: "Net") -> None:
    server, asleep, awake = await net.server(), await net.worker("w1"), await net.worker("w2")
    asleep.queue.attend("m", Resident(ModelState.UNLOADED))
    await awake.tell_room(1)
    first, second = [await net.publish(server, user=user) for user in ("ada", "bob")]
    for request in (first, second):
        await waiting_for(net, request, -60)  # however slow this machine is
    # For one there is room elsewhere.
    assert [run.response_id for run in await asleep.ask()] == [second.response_id]
    assert [run.response_id for run in await awake.ask()] == [first.response_id]
    third = await net.publish(server)
    await waiting_for(net, third, -60)
    assert [run.response_id for run in await asleep.ask()] == [third.response_id]


async def test_what_nobody_takes_who_is_awake_wakes_a_worker_soon(net: "Net") -> None:
    server, asleep, awake = await net.server(), await net.worker("w1"), await net.worker("w2")
    asleep.queue.attend("m", Resident(ModelState.UNLOADED))
    await awake.tell_room(1)
    request = await net.publish(server)
    await waiting_for(net, request, -60)
    deliveries, ask_again_s = await asleep.queue._claim("m", net.base, asleep.consumer)
    assert not deliveries
    assert 0 < ask_again_s < 100  # and not only when it is told to
    await waiting_for(net, request, 0.4)
    assert [run.response_id for run in await asleep.ask()] == [request.response_id]


async def waiting_for(net: "Net", request: Request, seconds: float) -> None:
    """As if it had waited for so long."""
    since_ms = int((time.time() - seconds) * 1000)
    await net.redis.hset(f"{net.base}:meta:{request.response_id}", "waits_since", since_ms)


class Resident:
    """Implements the port of this name."""

    def __init__(self, state: ModelState = ModelState.LOADED) -> None:
        self.condition = Condition(state)

    def order(self, order_id: str, order: Order) -> None:
        raise AssertionError
