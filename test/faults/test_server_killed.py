"""A server is killed: its clients connect to another one, and lose nothing."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from test.faults.conftest import JSON, RunCluster

STREAMS = 60


async def test_clients_go_on_with_another_server(run_cluster: "RunCluster") -> None:
    async with run_cluster(servers=2, workers=2) as cluster:
        victim, other = cluster.servers
        streams = await cluster.stream(STREAMS)
        orphans, neighbours = streams.on(victim), streams.on(other)
        assert len(orphans) == len(neighbours) == STREAMS // 2
        streams.require_running()
        victim.kill()
        await orphans.cut_off()
        early, late = orphans.split(20)
        await early.go_on(other)
        await early.ended()
        await neighbours.ended()
        # Some come only when their answers have ended.
        await cluster.nothing_runs()
        await late.go_on(other)
        await late.ended()
        streams.require_connected()
        streams.require_exact()


async def test_dialogues_continue_on_another_server(run_cluster: "RunCluster") -> None:
    async with run_cluster(servers=2, workers=1) as cluster:
        victim, other = cluster.servers
        clients = await cluster.connect(STREAMS, victim)
        await clients.ask(max_output_tokens=2)
        await clients.ended()
        victim.kill()
        await clients.cut_off()
        earlier = [client.response_id for client in clients]
        await clients.continue_dialogue(other, max_output_tokens=2)
        await clients.ended()
        for client, previous in zip(clients, earlier, strict=True):
            client.require_consistent("incomplete")
            assert client.response["previous_response_id"] == previous


@pytest.mark.real_model
async def test_a_real_model_is_resumed_and_remembers(run_cluster: "RunCluster", smollm2: "JSON") -> None:
    async with run_cluster(servers=2, workers=1, models=[smollm2]) as cluster:
        victim, other = cluster.servers
        (dialogue,) = await cluster.connect(1, victim, message="I have a dog. His name is Rex.")
        await dialogue.ask("smollm2", max_output_tokens=20)
        await dialogue.ended()
        streams = await cluster.stream(3, victim, model="smollm2")
        streams.require_running()
        victim.kill()
        await streams.cut_off()
        await streams.go_on(other)
        dialogue.message = "What is the name of my dog?"
        await dialogue.continue_dialogue(other, "smollm2")
        await dialogue.ended()
        await streams.ended()
        for client in (*streams, dialogue):
            client.require_consistent(client.response["status"])
            assert client.response["usage"]["output_tokens"] == len(client.deltas)
        assert "Rex" in dialogue.text
