"""What the servers' side promises on Redis beyond the port: mirrors, lost messages, a lost Redis."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import NotFound, Unavailable
from internal.biz.events import Event, ResponseFailed, ResponseIncomplete, TextDelta
from internal.biz.models import Response, Settings, Status
from internal.data.redis import queue as queue_module

if TYPE_CHECKING:
    from test.conftest import Eventually, OwnRedis, Reader
    from test.data.redis.conftest import Net, Server

    MakeReader = Callable[[], Reader]


def spoken(events: list[Event]) -> str:
    return "".join(event for event in events if isinstance(event, TextDelta))


async def read(server: "Server", response_id: str, reader: "Reader") -> list[Event]:
    """A log up to its end."""
    cursor = await server.queue.follow(response_id, -1, reader)
    async with asyncio.timeout(5):
        events = await reader.read(cursor)
    cursor.close()
    return events


def ending(events: list[Event]) -> Response:
    last = events[-1]
    assert isinstance(last, (ResponseFailed, ResponseIncomplete))
    return last.response


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_whose_answer_was_lost_is_cancelled_when_redis_is_back(
    net: "Net", make_reader: "MakeReader"
) -> None:
    """Its client was told that it failed, and will not come for it."""
    server, other, worker = await net.server("s1"), await net.server("s2"), await net.worker()
    server.link.behind["publish"] = 1
    with pytest.raises(Unavailable):
        await net.publish(server, response_id="resp_lost")
    events = await read(other, "resp_lost", make_reader())
    assert ending(events).incomplete_reason == "cancelled"
    assert [response.id for response in net.settled] == ["resp_lost"]
    good = await net.publish(server)
    assert (await worker.claim_one()).response_id == good.response_id


async def test_a_request_that_never_arrived_is_forgotten(net: "Net", eventually: "Eventually") -> None:
    server = await net.server()
    server.link.before["publish"] = 1
    with pytest.raises(Unavailable):
        await net.publish(server, response_id="resp_lost")

    async def forgotten() -> bool:
        return not server.queue._abandoned

    await eventually(forgotten)
    with pytest.raises(NotFound):
        await server.queue.cancel("resp_lost")
    assert not server.queue._mirrors


async def test_what_is_said_before_publish_returns_is_not_lost(net: "Net", make_reader: "MakeReader") -> None:
    server, worker = await net.server(), await net.worker()
    call = server.link.call

    async def slow(script: str, base: str, *args: object) -> object:
        reply = await call(script, base, *args)
        if script == "publish":
            await (await worker.claim_one()).end("quick")
            await asyncio.sleep(0.05)
        return reply

    server.link.call = slow  # type: ignore[method-assign]
    request = await net.publish(server)
    assert spoken(await read(server, request.response_id, make_reader())) == "quick"


@pytest.mark.parametrize("pause_s", [0.0, 0.2])
async def test_between_publishing_and_following_nothing_is_lost(
    net: "Net", make_reader: "MakeReader", monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    """Also when the mirror has been let go meanwhile."""
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    run = await worker.claim_one()
    await run.say("a")
    await asyncio.sleep(pause_s)
    assert not pause_s or request.response_id not in server.queue._mirrors
    await run.say("b")
    reading = asyncio.create_task(read(server, request.response_id, make_reader()))
    await asyncio.sleep(0)
    await run.end("c")
    assert spoken(await reading) == "abc"


async def test_a_follower_that_comes_at_any_moment_gets_all(net: "Net", make_reader: "MakeReader") -> None:
    """News may overtake the answer to the call that reads the log."""
    server, other, worker = await net.server("s1"), await net.server("s2"), await net.worker()
    request = await net.publish(server)
    run = await worker.claim_one()
    readings = []
    for number in range(12):
        run.start()
        run.add(TextDelta(f"{number} "))
        saying = asyncio.create_task(worker.step(run))
        for _ in range(number):
            await asyncio.sleep(0)
        readings.append(
            asyncio.create_task(read((server, other)[number % 2], request.response_id, make_reader()))
        )
        await saying
    await run.end()
    for reading in readings:
        assert spoken(await reading) == "".join(f"{number} " for number in range(12))


# ── messages ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_gap_is_filled_by_the_next_message(net: "Net", make_reader: "MakeReader") -> None:
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    reading = asyncio.create_task(read(server, request.response_id, make_reader()))
    run = await worker.claim_one()
    await run.say("a")
    server.link.deaf = True
    await run.say("b")
    await asyncio.sleep(0.05)
    server.link.deaf = False
    await run.say("c")
    await run.end()
    assert spoken(await reading) == "abc"
    assert server.meter.counts["gap"] >= 1


async def test_a_log_of_which_nothing_is_heard_is_looked_at(
    net: "Net", make_reader: "MakeReader", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "QUIET_S", 0.1)
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    reading = asyncio.create_task(read(server, request.response_id, make_reader()))
    run = await worker.claim_one()
    await run.say("a")
    server.link.deaf = True
    await run.end("b")
    assert spoken(await reading) == "ab"


async def test_channels_that_were_interrupted_lose_nothing(net: "Net", make_reader: "MakeReader") -> None:
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    reading = asyncio.create_task(read(server, request.response_id, make_reader()))
    run = await worker.claim_one()
    await run.say("a")
    for one in await net.redis.client_list(_type="pubsub"):
        await net.redis.client_kill_filter(_id=one["id"])
    await run.end("b")
    assert spoken(await reading) == "ab"


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\xff",
        b"7",
        b"[7]",
        b'[["resp_1"]]',
        b'[["resp_1", 1, 7]]',
        b'[["resp_1", "x", ["y"]]]',
        b'[["resp_1", 1, [["future"]]]]',
        b'[["resp_1", 1, [["end", {"status": "completed", "usage": {"song": 1}, "attempt": 1}]]]]',
        b'[["resp_1", 3, [["future"]]]]',
        b'[["resp_1", -1, []]]',
        b'[["resp_1", -1, ["a", "b", "c"]]]',
        b'[["resp_2", 0, ["x"]]]',
    ],
)
async def test_junk_on_the_channel_of_a_server_harms_nobody(
    net: "Net", make_reader: "MakeReader", junk: bytes
) -> None:
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    assert request.response_id == "resp_1"
    reading = asyncio.create_task(read(server, request.response_id, make_reader()))
    run = await worker.claim_one()
    await net.redis.publish(net.keys.nodes + "s", junk)
    await net.redis.publish(net.keys.workers + "w", junk)
    await run.say("a")
    await run.end("b")
    assert spoken(await reading) == "ab"


async def test_a_log_that_cannot_be_read_fails_for_its_followers_only(
    net: "Net", make_reader: "MakeReader"
) -> None:
    server, worker = await net.server(), await net.worker()
    bad, good = await net.publish(server, user="u1"), await net.publish(server, user="u2")
    runs = await worker.claim(room=2)
    early = asyncio.create_task(read(server, bad.response_id, make_reader()))
    await runs[0].say("a")
    await net.redis.rpush(f"{net.base}:log:{bad.response_id}", b'["future"]')
    await net.redis.publish(net.keys.nodes + "s", b'[["%s", 6, [["future"]]]]' % bad.response_id.encode())
    events = await early
    failure = ending(events).failure
    assert failure is not None
    assert failure.code == "log_undecodable"
    assert spoken(events) == "a"
    assert ending(await read(server, bad.response_id, make_reader())).status is Status.FAILED
    await runs[1].end("fine")
    assert spoken(await read(server, good.response_id, make_reader())) == "fine"


# ── mirrors ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_mirror_that_nobody_follows_is_let_go_and_not_told_any_more(
    net: "Net", make_reader: "MakeReader", eventually: "Eventually"
) -> None:
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    cursor = await server.queue.follow(request.response_id, -1, make_reader())
    run = await worker.claim_one()
    await run.say("a")
    assert await net.meta(request.response_id, "nodes") == "s"
    await asyncio.sleep(0.12)
    assert request.response_id in server.queue._mirrors, "somebody follows"
    cursor.close()

    async def let_go() -> bool:
        return await net.meta(request.response_id, "nodes") == ""

    await eventually(let_go)
    assert not server.queue._mirrors
    await run.say("b")
    reading = asyncio.create_task(read(server, request.response_id, make_reader()))
    await run.end("c")
    assert spoken(await reading) == "abc"


async def test_servers_that_follow_are_told_others_are_not(
    net: "Net", make_reader: "MakeReader", eventually: "Eventually"
) -> None:
    one, two, worker = await net.server("s1"), await net.server("s2"), await net.worker()
    request = await net.publish(one)
    reading = [asyncio.create_task(read(server, request.response_id, make_reader())) for server in (one, two)]

    async def both() -> bool:
        return await net.meta(request.response_id, "nodes") == "s1 s2"

    await eventually(both)
    assert await one.queue.followers(request.response_id) == 2
    run = await worker.claim_one()
    await run.end("x")
    assert [spoken(await one) for one in reading] == ["x", "x"]


async def test_followers_of_a_server_that_died_do_not_count(
    net: "Net", make_reader: "MakeReader", eventually: "Eventually"
) -> None:
    one, two = await net.server("s1"), await net.server("s2")
    request = await net.publish(one)
    await one.queue.follow(request.response_id, -1, make_reader())
    await two.queue.follow(request.response_id, -1, make_reader())

    async def both() -> bool:
        return await one.queue.followers(request.response_id) == 2

    await eventually(both)
    await two.kill()
    assert 0 < await net.redis.ttl(net.keys.nodes + "s2") <= queue_module.ALIVE_S
    await net.redis.delete(net.keys.nodes + "s2")  # instead of waiting for it
    assert await one.queue.followers(request.response_id) == 1


async def test_positions_are_told_until_the_request_is_claimed(
    net: "Net", make_reader: "MakeReader", eventually: "Eventually"
) -> None:
    server, other, worker = await net.server("s1"), await net.server("s2"), await net.worker()
    requests = [await net.publish(server) for _ in range(4)]
    reader = make_reader()
    await other.queue.follow(requests[3].response_id, -1, reader, queue_updates=True)
    for position in (2, 1, 0):
        run = await worker.claim_one()

        async def told(position: int = position) -> bool:
            return bool(reader.updates) and reader.updates[-1].position == position

        await eventually(told)
        await run.end()
    await (await worker.claim_one()).say("x")

    async def asks_no_more() -> bool:
        asked = other.link.calls["positions"]
        await asyncio.sleep(0.08)
        return other.link.calls["positions"] == asked

    await eventually(asks_no_more)


# ── a Redis that is treated badly ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["kill", "pause"])
async def test_a_stream_goes_on_when_redis_is_back(
    own_net: "Net",
    own_redis: "OwnRedis",
    make_reader: "MakeReader",
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    net = own_net
    monkeypatch.setattr("internal.data.redis.link.TIMEOUT_S", 0.5)
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    reading = asyncio.create_task(read(server, request.response_id, make_reader()))
    run = await worker.claim_one()
    await run.say("a")
    await (own_redis.kill() if way == "kill" else own_redis.pause())
    run.add(TextDelta("b"))
    appending = asyncio.create_task(worker.step(run))
    await asyncio.sleep(0.7)
    started = time.monotonic()
    with pytest.raises(Unavailable) as error:
        await net.publish(server)
    assert error.value.code == "queue_unavailable"
    assert time.monotonic() - started < 0.2
    await (own_redis.start() if way == "kill" else own_redis.resume())
    assert await appending == []
    await run.end("c")
    assert spoken(await reading) == "abc"


async def test_a_server_counts_as_living_as_soon_as_redis_is_back(
    own_net: "Net",
    own_redis: "OwnRedis",
    make_reader: "MakeReader",
    monkeypatch: pytest.MonkeyPatch,
    eventually: "Eventually",
) -> None:
    """Else what its clients follow could be cancelled when a follower elsewhere leaves."""
    net = own_net
    monkeypatch.setattr(queue_module, "HOUSEKEEPING_S", 60.0)
    server, other = await net.server("s1"), await net.server("s2")
    request = await net.publish(server)
    await other.queue.follow(request.response_id, -1, make_reader())
    await net.redis.delete(net.keys.nodes + "s2")  # it expires while Redis is away for long
    await own_redis.restart()

    async def counts() -> bool:
        try:
            return await server.queue.followers(request.response_id) == 1
        except Unavailable:
            return False

    await eventually(counts)


async def test_a_redis_that_lost_everything_ends_what_ran(
    own_net: "Net", own_redis: "OwnRedis", make_reader: "MakeReader"
) -> None:
    net = own_net
    server, worker = await net.server(), await net.worker()
    runs_, waits = await net.publish(server), await net.publish(server)
    readings = [
        asyncio.create_task(read(server, request.response_id, make_reader())) for request in (runs_, waits)
    ]
    run = await worker.claim_one()
    await run.say("half")
    await own_redis.restart(empty=True)
    for reading, text in zip(readings, ("half", ""), strict=True):
        response = ending(await reading)
        assert response.failure is not None
        assert response.failure.code == "queue_lost"
        assert response.text == text
    assert {response.id for response in net.settled} == {runs_.response_id, waits.response_id}
    assert server.meter.counts["lost"] == 2
    assert await run.say("ghost") is False
    again = await net.publish(server)
    await (await worker.claim_one()).end("fine")
    assert spoken(await read(server, again.response_id, make_reader())) == "fine"


async def test_every_key_expires(own_net: "Net", make_reader: "MakeReader", eventually: "Eventually") -> None:
    """Whatever happens to responses; nobody tidies up by hand."""
    net = own_net
    net.options = replace(net.options, lease_s=0.3, max_attempts=1)
    server, worker, other = await net.server(), await net.worker("w1"), await net.worker("w2")
    turn = Settings(conversation_id="conv")
    requests = [await net.publish(server, user=f"u{n % 3}", settings=turn) for n in range(8)]
    await server.queue.cancel(requests[7].response_id)
    await net.redis.hset(f"{net.base}:meta:{requests[6].response_id}", "request", "junk")
    await server.queue.follow(requests[4].response_id, -1, make_reader(), queue_updates=True)
    runs = await worker.claim(room=5)
    await worker.queue._renew()
    kinds = await kinds_of_keys(net)
    await runs[0].end("a")
    await runs[1].say("b")
    await worker.queue.retry(runs[1].delivery, "hiccup")
    await worker.queue.release(runs[2].delivery)
    await runs[3].say("c")
    await net.redis.delete(f"{net.base}:log:{runs[3].response_id}")
    await runs[3].say("d")
    await worker.freeze()
    await other.claim(
        room=8
    )  # what runs[4] had, which never spoke, is a dead letter when its lease has run out

    async def buried() -> bool:
        return len(await net.letters()) == 3

    async def claim_all() -> None:
        while True:
            await other.queue.claim("m", other.consumer)

    claiming = asyncio.create_task(claim_all())
    await eventually(buried)
    claiming.cancel()
    await asyncio.gather(claiming, return_exceptions=True)
    kinds |= await kinds_of_keys(net)
    expected = {
        "log",
        "meta",
        "running",
        "waiting",
        "line",
        "ring",
        "workers",
        "rooms",
        "worker",
        "dead",
        "seen",
        "last",
    }
    assert kinds == expected | {"node"}


async def kinds_of_keys(net: "Net") -> set[str]:
    keys: list[bytes] = [key async for key in net.redis.scan_iter(count=1000)]
    immortal = [key for key in keys if await net.redis.ttl(key) == -1]
    assert immortal == []
    bases = [net.keys.base(model) for model in ("m", "other")]
    return {
        key.decode().removeprefix(bases[0]).removeprefix(bases[1]).removeprefix(net.prefix).split(":")[1]
        for key in keys
    }


async def test_a_response_whose_worker_is_dead_can_be_cancelled(
    net: "Net", make_reader: "MakeReader"
) -> None:
    net.options = replace(net.options, lease_s=0.3)
    server, worker = await net.server(), await net.worker()
    request = await net.publish(server)
    await (await worker.claim_one()).say("so far")
    await worker.kill()
    cursor = await server.queue.follow(request.response_id, -1, reader := make_reader())
    reading = asyncio.create_task(reader.read(cursor))
    async with asyncio.timeout(5):
        while not reading.done():
            await server.queue.cancel(request.response_id)
            await asyncio.wait([reading], timeout=0.05)
    assert ending(await reading).incomplete_reason == "cancelled"
    assert spoken(await reading) == "so far"


async def test_a_redis_that_became_a_replica_is_away_until_it_leads_again(
    own_net: "Net", eventually: "Eventually"
) -> None:
    server = await own_net.server()
    await own_net.publish(server)
    await own_net.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(Unavailable):
        await own_net.publish(server)

    async def is_down() -> bool:
        return not server.link.up

    await eventually(is_down)
    await own_net.redis.execute_command("REPLICAOF", "NO", "ONE")
    async with asyncio.timeout(5):
        await server.link.wait_heard()
    await own_net.publish(server)


async def test_the_queue_tells_what_it_does_not_know(net: "Net") -> None:
    server = await net.server()
    known = [Response.of(await net.publish(server), Status.IN_PROGRESS) for _ in range(2)]
    unknown = [replace(known[0], id="resp_unknown"), replace(known[1], model="other")]
    assert await server.queue.unknown([*known, *unknown]) == unknown


async def test_a_place_that_is_not_there_yet_may_come_back_when_redis_has_just_come_back(
    net: "Net", make_reader: "MakeReader", monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await net.server()
    request = await net.publish(server)
    monkeypatch.setattr(server.link, "_back_at_s", time.monotonic())
    with pytest.raises(Unavailable):
        await server.queue.follow(request.response_id, 5, make_reader())
