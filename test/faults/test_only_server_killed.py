"""A server is killed at any moment: what it has accepted is stored, ends soon, and can be continued."""

import asyncio
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from test.faults.conftest import JSON, Client, Cluster, Person, Process, RunCluster

CONVERSATIONS = 30
ROUNDS = 2
SOON_S = 5.0
IN_MEMORY: "JSON" = {"driver": "memory"}
# Some run, and some wait.
ECHO: "JSON" = {
    "name": "echo",
    "generator": "echo",
    "options": {"chunks": 8, "interval": "20ms", "slots": 10},
}


async def ask_in_each(
    cluster: "Cluster", server: "Process", person: "Person", conversations: list[str], message: str
) -> "list[Client]":
    """One question in each conversation, from sockets of their own."""
    clients = await cluster.connect(len(conversations), server, message=message, person=person)
    for client, conversation in zip(clients, conversations, strict=True):
        await client.ask(conversation=conversation)
    return list(clients)


async def require_free(
    cluster: "Cluster", server: "Process", person: "Person", conversations: list[str]
) -> None:
    """All of them go on, and nothing that was said before is missing."""
    clients = await ask_in_each(cluster, server, person, conversations, "and again {}")
    for client in clients:
        await client.ended()
        assert not client.errors, client
        client.require_consistent("completed")
        await client.leave()
    await cluster.stored.require(clients)


async def test_the_only_server_is_killed_and_started_again(run_cluster: "RunCluster") -> None:
    dice = random.Random(11)
    async with run_cluster(workers=0, models=[ECHO], queue=IN_MEMORY) as cluster:
        person, stored = cluster.person(), cluster.stored
        (server,) = cluster.servers
        conversations = await person.begin(server, CONVERSATIONS)
        for number in range(ROUNDS):
            clients = await ask_in_each(cluster, server, person, conversations, f"{number}: {{}}")
            accepted = asyncio.Event()
            (begun,) = await person.begin(server, 1)
            listening = asyncio.create_task(person.listen(server, begun, accepted, "over SSE"))
            await asyncio.sleep(dice.uniform(0, 0.4))
            server.kill()
            for client in clients:
                await client.cut_off()
            await listening
            told = [client for client in clients if client.events]
            server = await cluster.another_server()
            await stored.nothing_runs(SOON_S)
            await stored.require(told, failed="interrupted")
            if accepted.is_set():
                assert ("user", "over SSE") in await person.said(server, begun)
            await require_free(cluster, server, person, conversations)
        statuses = [row.status for row in (await stored.responses()).values()]
        assert "failed" in statuses, "it was never killed in the middle of anything"
