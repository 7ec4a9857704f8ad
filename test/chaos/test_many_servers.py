"""Several servers on one queue: what one started another follows and stops, and none waits for another."""

import asyncio
import contextlib
import itertools
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.client import connect

if TYPE_CHECKING:
    from test.chaos.conftest import (
        JSON,
        Answer,
        Cluster,
        MakeCrowd,
        OpenSocket,
        Server,
        Socket,
        StartCluster,
    )

pytestmark = pytest.mark.alone

CHUNKS = 60
MANY = 50
UNHURRIED_S = 1.0
"""What a stream with a chunk each 50 ms never waits for one while nothing is in its way."""
STOPPED_S = 3.0
"""Longer than a peer may take to answer a ping, or Redis to answer a call."""
CONFIG: "JSON" = {
    "queue": {"lease": "15s"},
    "session": {"ping_interval": "400ms", "pong_timeout": "800ms", "write_timeout": "1s"},
    "models": [
        {"name": "echo", "generator": "echo", "options": {"chunks": CHUNKS, "interval": "50ms"}},
        {"name": "fast", "generator": "echo", "options": {"chunks": 5, "interval": "5ms"}},
        {"name": "fair", "generator": "echo", "options": {"chunks": 5, "interval": "30ms", "slots": 1}},
    ],
}

Echo = Callable[[str, int], str]


# ── following and stopping ───────────────────────────────────────────────────────────────────────


async def test_servers_follow_and_cancel_what_another_one_started(
    start_cluster: "StartCluster", open_socket: "OpenSocket", new_answer: "type[Answer]", echo: Echo
) -> None:
    async with start_cluster(CONFIG) as cluster:
        here, there = cluster.servers
        async with open_socket(here) as one, open_socket(there) as two:
            await both_get_the_same(one, two, new_answer, echo)
            await a_late_one_gets_everything(one, two, new_answer, echo)
            await a_cancel_reaches_the_worker(one, two, new_answer, echo)
            await a_cancel_reaches_what_waits(cluster, one, two, new_answer)


async def both_get_the_same(one: "Socket", two: "Socket", new_answer: "type[Answer]", echo: Echo) -> None:
    await one.create("together", model="echo")
    first = await one.read(new_answer(), "response.output_text.delta", 3)
    await two.resume(first.id)
    second = new_answer()
    await asyncio.gather(one.read(first), two.read(second))
    assert first.text == second.text == echo("together", CHUNKS)
    assert first.events == second.events


async def a_late_one_gets_everything(
    one: "Socket", two: "Socket", new_answer: "type[Answer]", echo: Echo
) -> None:
    first = await one.ask("all over", model="fast")
    await two.resume(first.id)
    second = await two.read(new_answer())
    assert second.events == first.events
    middle = first.events[6]["sequence_number"]
    await two.resume(first.id, middle)
    assert (await two.read(new_answer())).events == first.events[middle + 1 :]
    assert first.text == echo("all over", 5)


async def a_cancel_reaches_the_worker(
    one: "Socket", two: "Socket", new_answer: "type[Answer]", echo: Echo
) -> None:
    await one.create("stop me", model="echo")
    answer = await one.read(new_answer(), "response.output_text.delta", 2)
    asked_s = time.monotonic()
    await two.cancel(answer.id)
    await one.read(answer)
    assert time.monotonic() - asked_s < UNHURRIED_S
    assert answer.end == "incomplete"
    assert answer.response["incomplete_details"] == {"reason": "cancelled"}
    assert echo("stop me", CHUNKS).startswith(answer.text)
    assert answer.text == answer.output_text


async def a_cancel_reaches_what_waits(
    cluster: "Cluster", one: "Socket", two: "Socket", new_answer: "type[Answer]"
) -> None:
    for worker in cluster.workers:
        worker.pause()
    await one.create("never started", model="fast")
    answer = await one.read(new_answer(), "response.queued")
    await two.cancel(answer.id)
    await one.read(answer)
    for worker in cluster.workers:
        worker.resume()
    assert [event["type"] for event in answer.events] == ["response.queued", "response.incomplete"]
    assert answer.response["incomplete_details"] == {"reason": "cancelled"}
    assert (await one.ask("started", model="fast")).end == "completed"


# ── in turn ──────────────────────────────────────────────────────────────────────────────────────


async def test_messages_of_a_session_are_answered_in_their_order(
    start_cluster: "StartCluster", echo: Echo
) -> None:
    async def talk(server: "Server", name: str) -> None:
        async with connect(f"{server.url}/ws?model=fast", proxy=None) as socket:
            for _ in range(3):
                messages = [f"{name} says {number}" for number in range(7)]
                for message in messages:
                    await socket.send(message)
                expected = "".join(echo(message, 5) for message in messages)
                said = ""
                while len(said) < len(expected):
                    said += str(await socket.recv())
                    assert expected.startswith(said)

    async with start_cluster(CONFIG) as cluster, asyncio.TaskGroup() as tasks:
        for number, server in zip(range(20), itertools.cycle(cluster.servers), strict=False):
            tasks.create_task(talk(server, f"session {number}"))


async def test_a_session_with_many_requests_delays_another_servers_first_by_one_turn(
    start_cluster: "StartCluster", open_socket: "OpenSocket", new_answer: "type[Answer]"
) -> None:
    async with start_cluster(CONFIG, workers=1) as cluster:
        here, there = cluster.servers
        async with open_socket(here) as greedy, open_socket(there) as modest:
            begun: list[str] = []
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(ask_all(greedy, begun, 30, 8))
                for _ in range(3):
                    before = len(begun)
                    while len(begun) < before + 2:  # in the middle of its requests  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
                    await modest.create("me too", model="fair")
                    answer = await modest.read(new_answer(), "response.queued")
                    before = len(begun)
                    await modest.read(answer, "response.created")
                    assert len(begun) - before <= 1
                    assert len(begun) < 22, "the others have to wait still"
                    await modest.read(answer)
                    assert answer.end == "completed"
            assert len(begun) == 30


async def ask_all(socket: "Socket", begun: list[str], count: int, at_once: int) -> None:
    """Ask `count` questions, `at_once` in flight; note who has begun."""
    numbers = iter(range(count))
    for number in itertools.islice(numbers, at_once):
        await socket.create("more", model="fair", stream_id=str(number))
    ended = 0
    while ended < count:
        event = await socket.event()
        assert event["type"] != "error", event
        if event["type"] == "response.created":
            begun.append(event["response"]["id"])
        if event["type"] == "response.completed":
            ended += 1
            for number in itertools.islice(numbers, 1):
                await socket.create("more", model="fair", stream_id=str(number))


# ── a server that does not keep up ───────────────────────────────────────────────────────────────


async def test_a_stopped_server_slows_nobody_and_its_clients_get_everything_later(
    start_cluster: "StartCluster", crowd: "MakeCrowd"
) -> None:
    async with start_cluster(CONFIG) as cluster:
        sleeper, awake = cluster.servers
        its = crowd([sleeper], "echo", MANY, chunks=CHUNKS)
        others = crowd([awake], "echo", MANY, chunks=CHUNKS)
        await asyncio.gather(its.start(), others.start())
        sleeper.pause()
        stopped_s = time.monotonic()
        try:
            await others.finish()
            assert max(stream.answer.largest_gap_s for stream in others.streams) < UNHURRIED_S
            await cluster.until(lambda: nothing_runs(cluster, awake), "workers have done with all")
            assert len(its.unfinished) == MANY
            later = crowd([awake], "echo", MANY, chunks=CHUNKS)
            await later.start()
            await later.finish()
            assert time.monotonic() - stopped_s > STOPPED_S
        finally:
            sleeper.resume()
        await its.finish()
        assert all(stream.connected == 1 for stream in its.streams)
        # A call may have been under way when it was stopped.
        cluster.may_log.append("Redis is away: Timeout")


async def nothing_runs(cluster: "Cluster", server: "Server") -> bool:
    running = cluster.redis.zcard(cluster.key("echo", "running"))
    return not running


async def test_a_slow_server_slows_nobody_and_its_clients_get_everything_later(
    start_cluster: "StartCluster", crowd: "MakeCrowd"
) -> None:
    async with start_cluster(CONFIG) as cluster:
        slow, quick = cluster.servers
        its = crowd([slow], "echo", MANY, chunks=CHUNKS)
        others = crowd([quick], "echo", MANY, chunks=CHUNKS)
        await asyncio.gather(its.start(), others.start())
        async with slowed(slow):
            await others.finish()
        assert max(stream.answer.largest_gap_s for stream in others.streams) < UNHURRIED_S
        await its.finish()
        assert all(stream.connected == 1 for stream in its.streams)


@contextlib.asynccontextmanager
async def slowed(server: "Server") -> AsyncIterator[None]:
    """Let it run only for a tenth of the time."""

    async def slow_down() -> None:
        while True:
            server.signal(signal.SIGSTOP)
            await asyncio.sleep(0.18)
            server.signal(signal.SIGCONT)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(slow_down())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        server.resume()
