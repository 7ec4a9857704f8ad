"""A worker that is told to end: it takes nothing new, finishes what it can, and hands over the rest."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from test.chaos.conftest import JSON, Cluster, Crowd, MakeCrowd, OpenSocket, Process, StartCluster

CHUNKS = 60
INTERVAL_S = 0.05
MANY = 50
SOON_S = 3.0
"""Less than any lease here."""


def config(timeout: str) -> "JSON":
    options = {"chunks": CHUNKS, "interval": f"{INTERVAL_S * 1000:g}ms"}
    return {
        "queue": {"lease": "20s"},
        "models": [{"name": "echo", "generator": "echo", "options": options}],
        "shutdown": {"timeout": timeout},
    }


def attempts(cluster: "Cluster", crowd: "Crowd") -> set[bytes]:
    """How often the responses of these streams were delivered."""
    keys = [cluster.key("echo", "meta", str(stream.answer.id)) for stream in crowd.streams]
    found: Any = [cluster.redis.hget(key, "attempt") for key in keys]
    return set(found)


def works_on(cluster: "Cluster", worker: "Process") -> int:
    """How many responses run there."""
    running: Any = cluster.redis.zrange(cluster.key("echo", "running"), 0, -1)
    keys = [cluster.key("echo", "meta", response.decode()) for response in running]
    owners: Any = [cluster.redis.hget(key, "owner") for key in keys]
    return sum(f"-{worker.pid}-".encode() in owner for owner in owners if owner)


async def test_a_worker_finishes_what_it_has_and_takes_nothing_new(
    start_cluster: "StartCluster", crowd: "MakeCrowd"
) -> None:
    async with start_cluster(config("10s")) as cluster:
        early = crowd(cluster.servers, "echo", MANY, chunks=CHUNKS)
        await early.start()
        # Either may have been quicker to take them.
        stays, leaves = sorted(cluster.workers, key=lambda worker: works_on(cluster, worker))
        had = works_on(cluster, leaves)
        assert had
        leaves.signal()
        await cluster.until(lambda: is_gone(cluster, leaves), "the worker is listed no more")
        late = crowd(cluster.servers, "echo", MANY, chunks=CHUNKS)
        await late.start()
        assert works_on(cluster, leaves) == had
        assert works_on(cluster, stays) == 2 * MANY - had
        assert await leaves.exit_status() == 0
        await early.finish()
        await late.finish()
        assert attempts(cluster, early) == attempts(cluster, late) == {b"1"}


async def is_gone(cluster: "Cluster", worker: "Process") -> bool:
    listed = [one["id"] for server in cluster.servers for one in await server.workers()]
    return not any(f"-{worker.pid}-" in name for name in listed)


async def test_a_worker_hands_over_at_once_what_it_cannot_finish(
    start_cluster: "StartCluster", crowd: "MakeCrowd"
) -> None:
    async with start_cluster(config("300ms")) as cluster:
        streams = crowd(cluster.servers, "echo", MANY, chunks=CHUNKS)
        await streams.start(chunks=3)
        # Either may have been quicker to take them.
        stays, leaves = sorted(cluster.workers, key=lambda worker: works_on(cluster, worker))
        had = works_on(cluster, leaves)
        assert had
        leaves.signal()
        assert await leaves.exit_status() == 0
        assert works_on(cluster, stays) == MANY
        await streams.finish()
        assert {b"2"} <= attempts(cluster, streams) <= {b"1", b"2"}
        assert max(stream.answer.largest_gap_s for stream in streams.streams) < SOON_S
        assert f"handing over model=echo responses={had}" in leaves.log


async def test_nothing_is_lost_when_a_worker_ends_just_as_requests_come(
    start_cluster: "StartCluster", crowd: "MakeCrowd"
) -> None:
    async with start_cluster(config("0")) as cluster:
        streams = crowd(cluster.servers, "echo", MANY, chunks=CHUNKS)
        starting = asyncio.create_task(streams.start())
        await cluster.until(lambda: has_begun(cluster), "the first requests are there")
        started_s = time.monotonic()
        cluster.workers[0].signal()
        assert await cluster.workers[0].exit_status() == 0
        await starting
        assert time.monotonic() - started_s < SOON_S
        await streams.finish()
        assert max(stream.answer.largest_gap_s for stream in streams.streams) < SOON_S


async def has_begun(cluster: "Cluster") -> bool:
    return bool(cluster.redis.exists(cluster.key("echo", "running"), cluster.key("echo", "waiting")))


async def test_an_idle_worker_is_gone_at_once(
    start_cluster: "StartCluster", open_socket: "OpenSocket"
) -> None:
    async with start_cluster(config("10s"), workers=1) as cluster:
        cluster.workers[0].signal()
        assert await cluster.workers[0].exit_status() == 0
        assert await is_gone(cluster, cluster.workers[0])
        async with open_socket(cluster.servers[0]) as socket:
            await socket.create("anybody?", model="echo")
            assert "no worker" in (await socket.event())["queue"]["message"]
