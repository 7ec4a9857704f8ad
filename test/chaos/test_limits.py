"""What waits, for how long and how much of it, with several servers."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from test.chaos.conftest import JSON, Answer, OpenSocket, StartCluster

CHUNKS = 5
CONFIG: "JSON" = {
    "queue": {"max_pending": 5},
    "models": [
        {"name": "echo", "generator": "echo", "options": {"chunks": CHUNKS, "interval": "5ms"}},
        {"name": "other", "generator": "echo", "options": {"chunks": CHUNKS, "interval": "5ms"}},
    ],
}

Echo = Callable[[str, int], str]


async def test_requests_for_a_model_without_a_worker_wait_are_told_so_and_are_bounded(
    start_cluster: "StartCluster", open_socket: "OpenSocket", new_answer: "type[Answer]", echo: Echo
) -> None:
    async with start_cluster(CONFIG, workers=0) as cluster:
        cluster.start_worker("other")
        await cluster.ready()
        async with open_socket(cluster.servers[0]) as one, open_socket(cluster.servers[1]) as two:
            answers = []
            for number, socket in enumerate((one, two, one, two, one)):
                await socket.create(f"{number}", model="echo", stream_id=f"{number}")
                answers.append(await socket.read(new_answer(), "response.queued"))
            for position, answer in enumerate(answers):
                queue = answer.events[0]["queue"]
                assert "no worker for echo takes requests now" in queue["message"]
                assert queue["position"] <= position
            for server, socket in zip(cluster.servers, (one, two), strict=True):
                ready = (await server.fetch("/readyz")).json["models"]
                assert ready["other"] == {"ready": True, "workers": 1}
                assert ready["echo"]["ready"] is False
                assert "no worker for this model is running" in ready["echo"]["message"]
                await socket.create("one too many", model="echo", stream_id="x")
                error = await socket.error()
                assert (error["code"], error["type"]) == ("queue_full", "server_error")
                assert (await socket.ask("unhindered", model="other")).text == echo("unhindered", CHUNKS)

            cluster.start_worker("echo")
            for socket in (one, two):
                while sum(answer.ended for answer in answers) < (3 if socket is one else 5):
                    event = await socket.event()
                    answer = answers[int(event["stream_id"])]
                    answer.add(event)
            texts = {answer.text for answer in answers}
            assert texts == {echo(f"{number}", CHUNKS) for number in range(5)}
            await cluster.ready()
            ready = (await cluster.servers[0].fetch("/readyz")).json["models"]
            assert ready["echo"] == {"ready": True, "workers": 1}
            assert "message" not in (await one.ask("again", model="echo")).events[0]["queue"]


async def test_who_waited_too_long_is_told_so_once_even_when_its_server_died(
    start_cluster: "StartCluster", open_socket: "OpenSocket", new_answer: "type[Answer]", echo: Echo
) -> None:
    config = {**CONFIG, "queue": {"max_age": "1500ms"}}
    async with start_cluster(config, workers=0) as cluster:
        here, there = cluster.servers
        async with open_socket(there) as survivor:
            await survivor.create("mine", model="echo", stream_id="a")
            mine = await survivor.read(new_answer(), "response.queued")
            async with open_socket(here) as socket:
                await socket.create("orphan", model="echo")
                orphan = await socket.read(new_answer(), "response.queued")
                here.kill()
            for answer in (mine, orphan):
                if answer is orphan:
                    await survivor.resume(orphan.id, orphan.number, stream_id="b")
                await survivor.read(answer)
                assert answer.end == "failed"
                assert answer.response["error"]["code"] == "request_expired"
            here.start()
            cluster.start_worker("echo")
            await cluster.ready()
            assert (await survivor.ask("in time", model="echo")).text == echo("in time", CHUNKS)
        waiting = cluster.redis.zcard(cluster.key("echo", "waiting"))
        assert waiting == 0
