"""What is stored is what clients were told, once, whichever process dies; on SQLite and on PostgreSQL."""

import asyncio
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from test.conftest import OwnRedis
    from test.faults.conftest import JSON, Client, Cluster, Process, RunCluster

STREAMS = 40
CONVERSATIONS = 30
ROUNDS = 2
SHORT: "JSON" = {
    "name": "short",
    "generator": "echo",
    "options": {"chunks": 3, "interval": "10ms", "slots": 200},
}
LONG: "JSON" = {
    "name": "echo",
    "generator": "echo",
    "options": {"chunks": 40, "interval": "50ms", "slots": 200},
}
MEDIUM: "JSON" = {
    "name": "echo",
    "generator": "echo",
    "options": {"chunks": 30, "interval": "30ms", "slots": 200},
}
HURRIED: "JSON" = {"timeout": "300ms"}
# Servers that do not run it themselves need not load it. It may title, which an echo may not.
LISTENING: "JSON" = {"name": "listening", "generator": "llamacpp"}


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> "JSON":
    """The section of a database that is empty, and has no tables."""
    if request.param == "sqlite":
        return {"url": f"sqlite:///{tmp_path}/sluice.db"}
    return {"url": request.getfixturevalue("postgres_database")}


# ── workers ──────────────────────────────────────────────────────────────────────────────────────


async def test_an_answer_is_stored_once_and_whole_however_many_workers_it_took(
    run_cluster: "RunCluster", storage: "JSON"
) -> None:
    dice = random.Random(7)
    queue = {"max_attempts": 10}
    async with run_cluster(workers=3, models=[LONG, SHORT], storage=storage, queue=queue) as cluster:
        streams = await cluster.stream(STREAMS)
        told: dict[str, str] = {}
        stopping = asyncio.Event()

        async def keep_asking(client: "Client") -> None:
            """So that answers end at every moment."""
            while not stopping.is_set():
                await client.ask("short")
                await client.ended()
                client.require_exact(3)
                told[client.response_id] = client.text

        async with asyncio.TaskGroup() as tasks:
            for client in await cluster.connect(20):
                tasks.create_task(keep_asking(client))
            victim, answers = await cluster.busiest(STREAMS)
            for _ in range(2):
                victim.kill()
                victim = next(worker for worker in cluster.workers if worker.lives)
                await asyncio.sleep(dice.uniform(0.2, 0.8))
            stopping.set()
            await streams.ended()
        streams.require_connected()
        streams.require_exact(LONG["options"]["chunks"])
        told |= {client.response_id: client.text for client in streams}
        assert await cluster.stored.answers() == told
        rows = await cluster.stored.responses()
        assert rows.keys() == told.keys()
        assert {row.status for row in rows.values()} == {"completed"}
        assert [rows[client.response_id].attempt > 1 for client in streams].count(True) >= answers
        await cluster.stored.require(streams)


# ── servers ──────────────────────────────────────────────────────────────────────────────────────


async def test_what_a_killed_server_had_accepted_ends_and_its_conversations_go_on(
    run_cluster: "RunCluster", postgres_database: str
) -> None:
    dice = random.Random(3)
    storage = {"url": postgres_database}
    async with run_cluster(servers=2, workers=1, models=[MEDIUM], storage=storage) as cluster:
        person, other = cluster.person(), cluster.servers[1]
        conversations = await person.begin(other, CONVERSATIONS)
        for number in range(ROUNDS):
            victim = cluster.servers[0] if number == 0 else await cluster.another_server()
            clients = await cluster.connect(CONVERSATIONS, victim, message=f"{number}: {{}}", person=person)
            asking = asyncio.gather(
                *(
                    client.ask(conversation=conversation, max_output_tokens=10)
                    for client, conversation in zip(clients, conversations, strict=True)
                ),
                return_exceptions=True,
            )
            await asyncio.sleep(dice.uniform(0, 0.15))
            victim.kill()
            await clients.cut_off()
            await asking
            await cluster.stored.nothing_runs()
            await cluster.stored.require([one for one in clients if one.events], failed="interrupted")
            await require_free(cluster, other, conversations)
        await cluster.nothing_runs()


async def require_free(cluster: "Cluster", server: "Process", conversations: list[str]) -> None:
    (person,) = cluster.persons
    clients = await cluster.connect(len(conversations), server, message="and again {}", person=person)
    for client, conversation in zip(clients, conversations, strict=True):
        await client.ask(conversation=conversation, max_output_tokens=1)
    await clients.ended()
    for client in clients:
        client.require_consistent("incomplete")
        await client.leave()
    await cluster.stored.require(clients)


async def test_what_was_told_before_a_shutdown_is_stored(run_cluster: "RunCluster") -> None:
    async with run_cluster(
        workers=0, models=[MEDIUM], queue={"driver": "memory"}, shutdown=HURRIED
    ) as cluster:
        await require_stored_at_shutdown(cluster)
        await cluster.another_server()
        await cluster.stored.nothing_runs()


async def test_what_was_told_before_servers_and_workers_shut_down_is_stored(
    run_cluster: "RunCluster", postgres_database: str
) -> None:
    storage = {"url": postgres_database}
    async with run_cluster(workers=1, models=[MEDIUM], storage=storage, shutdown=HURRIED) as cluster:
        await require_stored_at_shutdown(cluster)
        await cluster.another_worker()
        await cluster.stored.nothing_runs()
        rows = await cluster.stored.responses()
        assert {row.status for row in rows.values()} == {"completed"}


async def require_stored_at_shutdown(cluster: "Cluster") -> None:
    early = await cluster.stream(20, spoken=20)
    late = await cluster.stream(20, spoken=1)
    for process in cluster.processes:
        process.popen.send_signal(signal.SIGTERM)
    for process in cluster.processes:
        await process.stopped()
    clients = [*early, *late]
    for client in clients:
        await client.cut_off()
    ended = [client for client in clients if client.types[-1] == "response.completed"]
    assert early[0] in ended
    assert late[0] not in ended
    await cluster.stored.require(ended)
    rows, answers = await cluster.stored.responses(), await cluster.stored.answers()
    assert rows.keys() == {client.response_id for client in clients}
    # Of those that were cut short what had been said, where nobody else can go on with them.
    assert answers.keys() == {key for key, row in rows.items() if row.status in ("completed", "incomplete")}


# ── the queue ────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_lost_with_redis_ends_in_the_database_too(
    run_cluster: "RunCluster", own_redis: "OwnRedis"
) -> None:
    async with run_cluster(servers=1, workers=1, models=[MEDIUM]) as cluster:
        (server,) = cluster.servers
        streams = await cluster.stream(20, spoken=3)
        orphans = await cluster.stream(20, spoken=3)
        for client in orphans:
            await client.leave()
        await own_redis.restart(empty=True)
        await streams.ended()
        await cluster.stored.nothing_runs()
        rows, answers = await cluster.stored.responses(), await cluster.stored.answers()
        for client in streams:
            assert client.response["error"]["code"] == "queue_lost"
            assert rows[client.response_id].error_code == "queue_lost"
        for client in orphans:
            assert rows[client.response_id].error_code in ("queue_lost", "interrupted")
        assert not answers
        await cluster.know_workers(server, 1)
        await streams.ask(max_output_tokens=1)
        await streams.ended()
        await cluster.stored.require(streams)


# ── the start ────────────────────────────────────────────────────────────────────────────────────


async def test_of_four_servers_that_start_together_one_makes_the_tables_and_all_serve(
    run_cluster: "RunCluster", storage: "JSON"
) -> None:
    async with run_cluster(servers=4, workers=1, models=[SHORT], storage=storage) as cluster:
        migrated = [process.name for process in cluster.processes if "was migrated" in process.log]
        assert len(migrated) == 1
        streams = await cluster.connect(8)
        await streams.ask("short")
        await streams.ended()
        streams.require_exact(3)
        await cluster.stored.require(streams)


# ── dialogues and titles ─────────────────────────────────────────────────────────────────────────


async def test_a_conversation_is_remembered_by_every_server_and_worker(
    run_cluster: "RunCluster", postgres_database: str
) -> None:
    storage = {"url": postgres_database}
    async with run_cluster(
        servers=2, workers=1, models=[LISTENING], program="listening_worker.py", storage=storage
    ) as cluster:
        here, there = cluster.servers
        person = cluster.person()
        (conversation,) = await person.begin(here, 1)
        said = ""
        for number, server in enumerate((here, there, here)):
            (client,) = await cluster.connect(1, server, message=f"message {number}", person=person)
            await client.ask("listening", conversation=conversation)
            await client.ended()
            said += f"[user: message {number}]"
            assert client.text == said
            said += f"[assistant: {client.text}]"
            victim = cluster.workers[-1]
            if number < 2:
                await cluster.another_worker()
                victim.kill()
        assert [content for role, content in await person.said(there, conversation) if role == "user"] == [
            "message 0",
            "message 1",
            "message 2",
        ]


async def test_each_conversation_is_titled_once_whichever_server_dies(
    run_cluster: "RunCluster", tmp_path: Path
) -> None:
    asked_for, nothing = tmp_path / "titles.log", tmp_path / "no-titles"
    async with run_cluster(
        servers=2,
        workers=1,
        models=[LISTENING],
        program="listening_worker.py",
        shutdown={"timeout": "100ms"},
    ) as cluster:
        victim, other = cluster.servers
        person = cluster.person()

        async def say(server: "Process", message: str) -> str:
            reply = await person.call(server, "POST", "/chat", message=message)
            assert reply.status == 200, reply
            return str(reply.json["session_id"])

        async def titles(condition: str) -> dict[str, str]:
            rows = await cluster.stored.rows(f"SELECT id, title FROM conversations WHERE {condition}")
            return {row.id: row.title for row in rows}

        async def have_titles(conversations: list[str]) -> bool:
            return (await titles("has_title")).keys() == set(conversations)

        titled = [await say(server, f"question {n}") for n in range(6) for server in cluster.servers]
        await cluster.becomes(lambda: have_titles(titled), "all have titles")
        assert set((await titles("has_title")).values()) == {"A fine title"}
        assert len(asked_for.read_text().splitlines()) == len(titled)

        other.kill()
        nothing.touch()
        untitled = await say(victim, "the last words")

        async def is_asked_for() -> bool:
            return "the last words" in asked_for.read_text()

        await cluster.becomes(is_asked_for, "the victim wants a title")
        victim.kill()
        nothing.unlink()
        server = await cluster.another_server()
        titled.append(await say(server, "a later question"))
        await cluster.becomes(lambda: have_titles(titled), "all but one have titles")
        assert not await titles("wants_title")
        assert (await titles("NOT has_title")) == {untitled: "the last words"}
        assert ["the last words" in line for line in asked_for.read_text().splitlines()].count(True) == 1
