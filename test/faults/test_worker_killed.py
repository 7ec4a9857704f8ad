"""A worker is killed in mid-stream: another one goes on, and no client sees it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from test.faults.conftest import JSON, RunCluster

STREAMS = 60
MARGIN_S = 2.5
"""What a busy machine may add to a lease."""


async def test_another_worker_goes_on_within_the_lease(run_cluster: "RunCluster", lease_s: float) -> None:
    async with run_cluster(workers=2) as cluster:
        streams = await cluster.stream(STREAMS)
        victim, answers = await cluster.busiest(STREAMS)
        streams.require_running()
        victim.kill()
        await streams.ended()
        streams.require_connected()
        streams.require_exact()
        assert await cluster.takeovers() == answers
        assert max(client.longest_silence_s for client in streams) < lease_s + MARGIN_S
        await cluster.nothing_runs()


@pytest.mark.real_model
async def test_another_worker_continues_the_sentences_of_a_real_model(
    run_cluster: "RunCluster", smollm2: "JSON"
) -> None:
    async with run_cluster(workers=2, models=[smollm2]) as cluster:
        streams = await cluster.stream(3, model="smollm2", spoken=5)
        victim, answers = await cluster.busiest(3, "smollm2")
        streams.require_running()
        victim.kill()
        await streams.ended()
        streams.require_connected()
        for client in streams:
            client.require_consistent(client.response["status"])
            assert client.response["usage"]["output_tokens"] == len(client.deltas)
        assert await cluster.takeovers() == answers
