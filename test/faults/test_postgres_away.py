"""PostgreSQL goes and comes back: what runs goes on, new messages are refused, nobody restarts anything."""

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from test.conftest import OwnPostgres
    from test.faults.conftest import JSON, Cluster, Person, Reply, RunCluster, Streams

STREAMS = 30
AT_ONCE_S = 1.0
NOTICED_S = 6.0
"""How fast an error must come while the database takes connections but does not answer."""
BACK_S = 3.0
CHUNKS = 30
ECHO: "JSON" = {
    "name": "echo",
    "generator": "echo",
    "options": {"chunks": CHUNKS, "interval": "50ms"},
}


def require_retryable(reply: "Reply", within_s: float) -> None:
    assert reply.status == 503, reply
    assert reply.json["error"]["code"] in ("storage_unavailable", "timeout")
    assert reply.seconds < within_s


async def require_refused(cluster: "Cluster", person: "Person", conversation: str, within_s: float) -> None:
    """New messages get an error that says to try again, on sockets that stay open; so do plain requests."""
    (server,) = cluster.servers
    clients = await cluster.connect(5, person=person)
    asked_at = time.monotonic()
    await clients.ask()
    for client in clients:
        error = await client.refused()
        assert (error["code"], error["type"]) == ("storage_unavailable", "server_error")
    assert time.monotonic() - asked_at < within_s
    for client in clients:
        assert client.connected
        assert not client.events
    listing = person.call(server, "GET", "/conversations")
    asking = person.call(server, "POST", "/chat", session_id=conversation, message="hello?")
    for reply in await asyncio.gather(listing, asking):
        require_retryable(reply, within_s)
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await server.get(path)).status == 200


async def require_spoken_to_the_end(streams: "Streams") -> None:
    """All text is there, but not yet the end: it is stored first."""
    await streams.spoken_to(CHUNKS)
    streams.require_connected()
    streams.require_running()


async def require_whole(cluster: "Cluster", streams: "Streams") -> None:
    await streams.ended()
    streams.require_connected()
    streams.require_exact(CHUNKS)
    await cluster.stored.require(streams)


async def require_back(cluster: "Cluster", person: "Person") -> None:
    """A server has noticed it soon, also when nobody asks it for anything."""
    (server,) = cluster.servers
    mended_at = time.monotonic()

    async def answers() -> bool:
        return (await person.call(server, "GET", "/conversations")).status == 200

    await cluster.becomes(answers, "the storage can be reached")
    assert time.monotonic() - mended_at < BACK_S


async def test_streams_go_on_and_their_results_are_stored_later(
    run_cluster: "RunCluster", own_postgres: "OwnPostgres"
) -> None:
    async with run_cluster(workers=1, models=[ECHO], storage={"url": own_postgres.url}) as cluster:
        person = cluster.person()
        (server,) = cluster.servers
        (conversation,) = await person.begin(server, 1)
        for break_it, mend_it, within_s in (
            (own_postgres.kill, own_postgres.start, AT_ONCE_S),
            (own_postgres.stop, own_postgres.start, AT_ONCE_S),
            (own_postgres.pause, own_postgres.resume, NOTICED_S),
        ):
            streams = await cluster.stream(STREAMS, spoken=3)
            await break_it()
            await require_refused(cluster, person, conversation, within_s)
            await require_spoken_to_the_end(streams)
            await mend_it()
            await require_whole(cluster, streams)
            await require_back(cluster, person)
            await streams.ask(max_output_tokens=1)
            await streams.ended()
            reply = await person.call(
                server, "POST", "/chat", session_id=conversation, message="there?", max_tokens=1
            )
            assert reply.status == 200, reply
            await cluster.stored.require(streams)
            await cluster.stored.nothing_runs()


async def test_servers_and_workers_stop_quietly_without_it(
    run_cluster: "RunCluster", own_postgres: "OwnPostgres"
) -> None:
    storage, shutdown = {"url": own_postgres.url}, {"timeout": "500ms"}
    async with run_cluster(workers=1, models=[ECHO], storage=storage, shutdown=shutdown) as cluster:
        streams = await cluster.stream(STREAMS, spoken=3)
        await own_postgres.pause()
        asking = await cluster.connect(5)
        await asking.ask()
        for process in cluster.processes:
            process.popen.terminate()
        for process in cluster.processes:
            await process.stopped()
        await streams.cut_off()
        await own_postgres.resume()
        # What could not end is ended by another worker.
        await cluster.another_worker()
        await cluster.stored.nothing_runs()
        rows = await cluster.stored.responses()
        assert {rows[client.response_id].status for client in streams} == {"completed"}
