"""A request that cannot be answered ends as a dead letter, and nobody else suffers from it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from test.chaos.conftest import JSON, Answer, Cluster, MakeCrowd, OpenSocket, StartCluster

LEASE_S = 1.0
CHUNKS = 40
SINGLE_CHUNKS = 20
CONFIG: "JSON" = {
    "queue": {"lease": f"{LEASE_S:g}s", "max_attempts": 3},
    "models": [
        {"name": "echo", "generator": "echo", "options": {"chunks": CHUNKS, "interval": "50ms"}},
        {
            "name": "single",
            "generator": "echo",
            "options": {"chunks": SINGLE_CHUNKS, "interval": "50ms", "slots": 1},
        },
    ],
}
MANY = 60

Echo = Callable[[str, int], str]


@contextlib.asynccontextmanager
async def nursed(cluster: "Cluster") -> AsyncIterator[list[str]]:
    """Start workers again that have died; gives the names of those."""
    died: list[str] = []

    async def nurse() -> None:
        while True:
            for worker in cluster.workers:
                if not worker.runs:
                    died.append(worker.name)
                    worker.start()
            await asyncio.sleep(0.02)

    task = asyncio.create_task(nurse())
    try:
        yield died
    finally:
        task.cancel()
        await asyncio.wait([task])
    await cluster.ready()


def dead_letters(cluster: "Cluster", model: str) -> list[dict[str, str]]:
    letters: Any = cluster.redis.xrange(cluster.key(model, "dead"))
    return [{key.decode(): value.decode() for key, value in fields.items()} for _, fields in letters]


async def test_a_request_that_kills_its_worker_each_time_ends_and_harms_nobody(
    start_cluster: "StartCluster",
    mortal_worker: Sequence[str],
    crowd: "MakeCrowd",
    open_socket: "OpenSocket",
) -> None:
    async with start_cluster(CONFIG, program=mortal_worker) as cluster:
        others = crowd(cluster.servers, "echo", MANY, chunks=CHUNKS)
        await others.start()
        async with nursed(cluster) as died, open_socket(cluster.servers[0]) as socket:
            poison = await socket.ask("this is poison", model="echo")
            await others.finish()
            assert len(died) == 3
        assert poison.end == "failed"
        assert poison.text == ""
        assert poison.response["error"] == {
            "code": "max_attempts_exceeded",
            "message": "its worker died 3 times",
        }
        (letter,) = dead_letters(cluster, "echo")
        assert letter["id"] == poison.id
        assert letter["reason"] == "its worker died 3 times"
        assert "this is poison" in letter["request"]
        assert all(stream.asked == 1 for stream in others.streams)
        cluster.may_log.append(rf"dead letter response={poison.id}")


async def test_a_request_that_kills_its_workers_in_mid_sentence_ends_too(
    start_cluster: "StartCluster", mortal_worker: Sequence[str], open_socket: "OpenSocket", echo: Echo
) -> None:
    config = {**CONFIG, "queue": {"lease": f"{LEASE_S:g}s", "max_attempts": 1}}
    async with start_cluster(config, program=mortal_worker) as cluster:
        async with nursed(cluster) as died, open_socket(cluster.servers[0]) as socket:
            venom = await socket.ask("this is venom", model="echo")
        assert len(died) == 4
        assert venom.end == "failed"
        assert venom.response["error"]["message"] == "its worker died 4 times"
        assert 0 < len(venom.text) < len(echo("this is venom", CHUNKS))
        assert echo("this is venom", CHUNKS).startswith(venom.text)
        assert venom.text == venom.output_text
        cluster.may_log.append(rf"dead letter response={venom.id}")


async def test_a_request_that_cannot_be_decoded_ends_and_delays_nobody(
    start_cluster: "StartCluster", crowd: "MakeCrowd", open_socket: "OpenSocket", new_answer: "type[Answer]"
) -> None:
    async with start_cluster(CONFIG) as cluster, open_socket(cluster.servers[0]) as socket:
        others = crowd(cluster.servers, "echo", MANY, chunks=CHUNKS)
        await others.start()
        # Both workers have their one slot taken, so that the next ones wait.
        before = crowd(cluster.servers, "single", 2, chunks=SINGLE_CHUNKS)
        await before.start()
        await socket.create("soon unreadable", model="single")
        unreadable = await socket.read(new_answer(), "response.queued")
        behind = crowd(cluster.servers, "single", 2, chunks=SINGLE_CHUNKS)
        meta = cluster.key("single", "meta", str(unreadable.id))
        assert cluster.redis.hset(meta, "request", b"\x00 no JSON") == 0
        await behind.start()

        await socket.read(unreadable)
        assert unreadable.end == "failed"
        error = unreadable.response["error"]
        assert error["code"] == "request_undecodable"
        (letter,) = dead_letters(cluster, "single")
        assert letter["id"] == unreadable.id
        assert letter["code"] == "request_undecodable"
        assert letter["reason"] == error["message"]
        for streams in (before, behind, others):
            await streams.finish()
            assert max(stream.answer.largest_gap_s for stream in streams.streams) < LEASE_S
        cluster.may_log.append(rf"dead letter response={unreadable.id}")
