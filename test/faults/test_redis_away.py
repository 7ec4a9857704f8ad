"""Redis goes away and comes back: sessions stay open, streams finish, nobody has to restart anything."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from test.conftest import OwnRedis
    from test.faults.conftest import JSON, Cluster, Process, RunCluster

STREAMS = 60
AT_ONCE_S = 1.0
"""How fast an error must come, also on a busy machine."""
NOTICED_S = 3.0
"""How fast it must come from a server that does not know yet that Redis does not answer any more."""


async def require_an_error(
    cluster: "Cluster", server: "Process", within_s: float, model: str = "echo"
) -> None:
    """A new request is refused with an error that says to try again; the socket stays open."""
    (client,) = await cluster.connect(1, server)
    asked_at = time.monotonic()
    await client.ask(model)
    error = await client.refused()
    assert time.monotonic() - asked_at < within_s
    assert (error["code"], error["type"]) == ("queue_unavailable", "server_error")
    assert client.connected
    assert not client.events


async def require_unavailable(cluster: "Cluster") -> None:
    """Every server says at once that it cannot work."""
    for server in cluster.servers:
        await require_an_error(cluster, server, AT_ONCE_S)
        reply = await server.get("/readyz")
        assert (reply.status, reply.json["status"]) == (503, "queue_unavailable")
        assert reply.seconds < AT_ONCE_S
        for path in ("/livez", "/metrics", "/v1/models"):
            assert (await server.get(path)).status == 200


async def require_recovered(cluster: "Cluster") -> None:
    """Without a restart of anything: every server is ready, and a new request is answered on it."""
    for server in cluster.servers:
        await cluster.know_workers(server, len(cluster.workers))
    clients = await cluster.connect(4)
    await clients.ask(max_output_tokens=3)
    await clients.ended()
    for client in clients:
        client.require_consistent("incomplete")


async def test_redis_is_killed_and_restarted_at_once(
    run_cluster: "RunCluster", own_redis: "OwnRedis"
) -> None:
    async with run_cluster(servers=2, workers=2) as cluster:
        streams = await cluster.stream(STREAMS)
        for spoken in (20, 30):
            await streams.spoken_to(spoken)
            streams.require_running()
            await own_redis.kill()
            await own_redis.start()
        await streams.ended()
        streams.require_connected()
        streams.require_exact()
        await require_recovered(cluster)
        await cluster.nothing_runs()


async def test_redis_is_gone_for_longer_than_a_lease(
    run_cluster: "RunCluster", own_redis: "OwnRedis", lease_s: float
) -> None:
    async with run_cluster(servers=2, workers=2) as cluster:
        streams = await cluster.stream(STREAMS)
        await own_redis.kill()
        gone_at = time.monotonic()
        for server in cluster.servers:
            await require_an_error(cluster, server, AT_ONCE_S)
        await require_unavailable(cluster)
        await cluster.wait_until(gone_at + 2 * lease_s)
        await require_unavailable(cluster)
        streams.require_connected()
        streams.require_running()
        await own_redis.start()
        await streams.ended()
        streams.require_connected()
        streams.require_exact()
        assert await cluster.takeovers() == 0, "who lives keeps what it works on"
        await require_recovered(cluster)
        await cluster.nothing_runs()


async def test_redis_stands_still_for_a_while(run_cluster: "RunCluster", own_redis: "OwnRedis") -> None:
    async with run_cluster(servers=2, workers=2) as cluster:
        streams = await cluster.stream(STREAMS)
        await own_redis.pause()
        for server in cluster.servers:
            await require_an_error(cluster, server, NOTICED_S)
        await require_unavailable(cluster)
        streams.require_connected()
        streams.require_running()
        await own_redis.resume()
        await streams.ended()
        streams.require_connected()
        streams.require_exact()
        # What they asked for before the pause is carried out behind it: to take over what has run out, too.
        assert await cluster.takeovers() == 0, "who lives keeps what it works on"
        await require_recovered(cluster)
        await cluster.nothing_runs()


async def test_redis_loses_its_last_moments(
    run_cluster: "RunCluster", own_redis: "OwnRedis", tmp_path: Path
) -> None:
    async with run_cluster(servers=2, workers=2) as cluster:
        streams = await cluster.stream(STREAMS)
        await streams.spoken_to(25)
        await own_redis.kill()
        # As when the whole machine dies under `appendfsync everysec`: here about the last half second.
        written = max((tmp_path / "redis").rglob("*.aof"), key=lambda file: file.stat().st_size)
        os.truncate(written, written.stat().st_size - 40_000)
        await own_redis.start()
        await streams.ended()
        streams.require_connected()
        streams.require_exact()
        assert sum(worker.log.count("writing again") for worker in cluster.workers) > 0
        await cluster.nothing_runs()


async def test_redis_is_restarted_empty(run_cluster: "RunCluster", own_redis: "OwnRedis") -> None:
    async with run_cluster(servers=2, workers=1) as cluster:
        streams = await cluster.stream(STREAMS)
        streams.require_running()
        await own_redis.kill()
        await own_redis.start(empty=True)
        await streams.ended()
        streams.require_connected()
        for client in streams:
            client.require_consistent("failed")
            assert client.response["error"]["code"] == "queue_lost"
            assert client.deltas == [f"chunk {i}: {client.message}" for i in range(1, len(client.deltas) + 1)]
        await require_recovered(cluster)
        await cluster.nothing_runs()


async def test_requests_that_wait_are_lost_with_redis_too(
    run_cluster: "RunCluster", own_redis: "OwnRedis"
) -> None:
    async with run_cluster(servers=2, workers=0) as cluster:
        clients = await cluster.connect(STREAMS)
        await clients.ask()
        await clients.queued()
        await own_redis.restart(empty=True)
        await clients.ended()
        clients.require_connected()
        for client in clients:
            assert client.types == ["response.queued", "response.failed"]
            assert client.response["error"]["code"] == "queue_lost"


async def test_an_answer_whose_client_leaves_while_redis_is_gone_is_stopped_later(
    run_cluster: "RunCluster", own_redis: "OwnRedis"
) -> None:
    options = {"chunks": 100_000, "interval": "50ms"}
    endless: JSON = {"name": "echo", "generator": "echo", "options": options}
    async with run_cluster(models=[endless], session={"grace": "100ms"}) as cluster:
        streams = await cluster.stream(5)
        await own_redis.kill()
        for client in streams:
            await client.leave()
        (server,) = cluster.servers
        await server.metric_becomes("sluice_sessions", 0)
        await cluster.wait_until(time.monotonic() + 0.5)
        await own_redis.start()
        await cluster.nothing_runs()


@pytest.mark.real_model
async def test_a_real_model_goes_on_when_redis_is_back(
    run_cluster: "RunCluster", own_redis: "OwnRedis", smollm2: "JSON"
) -> None:
    async with run_cluster(workers=1, models=[smollm2]) as cluster:
        streams = await cluster.stream(3, model="smollm2")
        streams.require_running()
        await own_redis.kill()
        await require_an_error(cluster, cluster.servers[0], AT_ONCE_S, "smollm2")
        await own_redis.start()
        await streams.ended()
        streams.require_connected()
        for client in streams:
            client.require_consistent(client.response["status"])
            assert client.response["usage"]["output_tokens"] == len(client.deltas)
