"""A worker stands still for longer than its lease, and then goes on: it may not write any more."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from test.faults.conftest import RunCluster

STREAMS = 60


async def test_it_is_refused_and_stops_and_takes_new_requests_afterwards(run_cluster: "RunCluster") -> None:
    async with run_cluster(workers=2) as cluster:
        streams = await cluster.stream(STREAMS)
        zombie, answers = await cluster.busiest(STREAMS)
        zombie.pause()
        await cluster.taken_over(answers)
        streams.require_running()
        zombie.resume()
        await cluster.gives_up(zombie, answers)
        # Its engine would have gone on for as long as the other worker's.
        streams.require_running()
        await streams.ended()
        streams.require_connected()
        streams.require_exact()
        await cluster.nothing_runs()
        (other,) = set(cluster.workers) - {zombie}
        other.kill()
        await streams.ask(max_output_tokens=5)
        await streams.ended()
        for client in streams:
            client.require_consistent("incomplete")


async def test_it_takes_over_in_turn_what_it_had_lost(run_cluster: "RunCluster") -> None:
    async with run_cluster(workers=2) as cluster:
        streams = await cluster.stream(STREAMS)
        zombie, answers = await cluster.busiest(STREAMS)
        zombie.pause()
        await cluster.taken_over(answers)
        zombie.resume()
        await cluster.gives_up(zombie, answers)
        (other,) = set(cluster.workers) - {zombie}
        streams.require_running()
        other.kill()
        await streams.ended()
        streams.require_connected()
        streams.require_exact()
        assert await cluster.takeovers() == STREAMS
