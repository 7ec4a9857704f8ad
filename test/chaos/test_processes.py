"""`server.processes` on Redis: several processes behind one address, one of which is killed."""

import re
from typing import TYPE_CHECKING

import psutil
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from test.chaos.conftest import JSON, MakeCrowd, Server, StartCluster

CHUNKS = 60
MANY = 50
CONFIG: "JSON" = {
    "server": {"processes": 2},
    "models": [{"name": "echo", "generator": "echo", "options": {"chunks": CHUNKS, "interval": "50ms"}}],
}


async def test_clients_of_a_killed_process_go_on_at_another(
    start_cluster: "StartCluster", crowd: "MakeCrowd"
) -> None:
    async with start_cluster(CONFIG, servers=1, workers=1) as cluster:
        (server,) = cluster.servers
        streams = crowd(cluster.servers, "echo", MANY, chunks=CHUNKS)
        await streams.start(chunks=3)
        sessions = await sessions_by_process(server)
        assert set(sessions) == {"0", "1"}
        assert sum(sessions.values()) == MANY
        assert not any(stream.errors for stream in streams.streams)
        children(server)[0].kill()
        await streams.finish()
        again = [stream for stream in streams.streams if stream.connected > 1]
        assert len(again) == sessions["0"]
        assert all(stream.asked == 1 and not stream.errors for stream in streams.streams)

        async def both_answer() -> bool:
            return set(await sessions_by_process(server)) == {"0", "1"}

        await cluster.until(both_answer, "the killed process is replaced")
        later = crowd(cluster.servers, "echo", MANY, chunks=CHUNKS)
        await later.start()
        assert min((await sessions_by_process(server)).values()) > 0
        await later.finish()
        assert re.search(r"a process has ended: starting another number=0 status=-9", server.log)


def children(server: "Server") -> list[psutil.Process]:
    """Its processes, by number."""
    found = psutil.Process(server.pid).children()
    return sorted(found, key=lambda child: child.cmdline()[-3])


async def sessions_by_process(server: "Server") -> dict[str, float]:
    families = text_string_to_metric_families((await server.fetch("/metrics")).text)
    return {
        sample.labels["process"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "sluice_sessions"
    }
