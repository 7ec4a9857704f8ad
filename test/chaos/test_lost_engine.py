"""An engine that is lost ends its process, and another process takes its place; operators reach workers."""

import asyncio
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from test.chaos.conftest import JSON, Answer, Cluster, MakeCrowd, OpenSocket, Server, StartCluster

PROGRAM = str(Path(__file__).parent / "programs" / "losing.py")
CHUNKS = 60
MANY = 20
KEY = "operator-key-of-32-bytes-at-least"
CONFIG: "JSON" = {
    # A lease that runs out only after the test: what is taken over in time was handed on.
    "queue": {"lease": "60s"},
    "auth": {"operator_key": KEY},
    "models": [{"name": "echo", "generator": "echo", "options": {"chunks": CHUNKS, "interval": "50ms"}}],
}
ENDED = r"the engine is lost, and this process ends: a fault that sticks"

Echo = Callable[[str, int], str]


async def working(cluster: "Cluster", state: str = "loaded") -> "JSON":
    """The only worker, as a server knows it."""
    found: list[JSON] = []

    async def is_here() -> bool:
        found[:] = await cluster.servers[0].workers()
        return len(found) == 1 and found[0]["state"] == state

    await cluster.until(is_here, f"there is one worker, {state}")
    return found[0]


async def is_ordered(server: "Server", order: str) -> "JSON":
    reply = await asyncio.to_thread(server.post, f"/v1/models/echo/{order}", KEY)
    return {"status": reply.status, **reply.json}


async def test_answers_go_on_in_the_process_that_takes_the_place_of_one_whose_engine_is_lost(
    start_cluster: "StartCluster", crowd: "MakeCrowd", open_socket: "OpenSocket", echo: Echo
) -> None:
    async with start_cluster(CONFIG, servers=1, workers=0) as cluster:
        supervisor = cluster.start_worker(program=(PROGRAM, "worker"))
        first = await working(cluster)
        # Else nothing is taken over for as long as a lease after a queue is new.
        cluster.redis.hset(cluster.key("echo", "seen"), "patient_until", 0)
        others = crowd(cluster.servers, "echo", MANY, chunks=CHUNKS)
        await others.start()
        async with open_socket(cluster.servers[0]) as socket:
            answer = await socket.ask("this is fatal", model="echo")
        assert (answer.end, answer.text) == ("completed", echo("this is fatal", CHUNKS))
        await others.finish()
        assert all(stream.asked == stream.connected == 1 for stream in others.streams)
        assert (await working(cluster))["id"] != first["id"]
        log = supervisor.log
        assert len(re.findall(ENDED, log)) == 1
        assert len(re.findall(r"starting another number=0 status=75", log)) == 1
        assert log.count("took over") > 1  # not only what it was lost by
        cluster.may_log.append(ENDED)


async def test_a_request_that_costs_models_their_common_engine_each_time_is_given_up(
    start_cluster: "StartCluster", crowd: "MakeCrowd", open_socket: "OpenSocket"
) -> None:
    models = [{**CONFIG["models"][0], "name": name} for name in ("echo", "idle")]
    async with start_cluster({**CONFIG, "models": models}, servers=1, workers=0) as cluster:
        supervisor = cluster.start_worker(program=(PROGRAM, "worker"))

        async def are_here() -> bool:
            return len(await cluster.servers[0].workers()) == 2

        await cluster.until(are_here, "both models are loaded")
        cluster.redis.hset(cluster.key("echo", "seen"), "patient_until", 0)
        beside = crowd(cluster.servers, "echo", 1, chunks=CHUNKS)
        await beside.start()
        async with open_socket(cluster.servers[0]) as socket:
            answer = await socket.ask("this is deadly", model="echo")
        assert answer.end == "failed"
        assert answer.events[-1]["response"]["error"]["code"] == "max_attempts_exceeded"
        await beside.finish()
        assert len(re.findall(r"starting another number=0 status=75", supervisor.log)) == 3
        cluster.may_log += [ENDED, "dead letter"]


async def test_an_operator_s_order_reaches_a_worker_over_redis(
    start_cluster: "StartCluster", open_socket: "OpenSocket", new_answer: "type[Answer]", echo: Echo
) -> None:
    async with start_cluster(CONFIG, servers=2, workers=0) as cluster:
        supervisor = cluster.start_worker(program=(PROGRAM, "worker"))
        await working(cluster)
        unloaded = await is_ordered(cluster.servers[1], "unload")
        assert (unloaded["status"], unloaded["state"]) == (200, "unloaded")
        worker = await working(cluster, "unloaded")
        assert (worker["slots"], worker["busy"]) == (0, 0)
        ready = (await cluster.servers[0].fetch("/readyz")).json["models"]["echo"]
        assert (ready["ready"], ready["workers"], ready["state"]) == (False, 0, "unloaded")
        async with open_socket(cluster.servers[0]) as socket:
            await socket.create("hello", model="echo")
            answer = await socket.read(new_answer(), "response.queued")
            assert "no worker" in answer.events[0]["queue"]["message"]
            gone = supervisor.log_file.with_name("gone")
            gone.touch()
            failed = await is_ordered(cluster.servers[0], "load")
            assert (failed["status"], failed["error"]["message"]) == (500, "the weights are gone")
            gone.unlink()
            loaded = await is_ordered(cluster.servers[0], "load")
            assert (loaded["status"], loaded["state"]) == (200, "loaded")
            await socket.read(answer)
            assert answer.text == echo("hello", CHUNKS)

        # The worker goes with a supervisor that is killed.
        (child,) = psutil.Process(supervisor.pid).children()
        supervisor.signal(signal.SIGKILL)
        supervisor.expected_status = -signal.SIGKILL
        await asyncio.to_thread(child.wait, 20)
        assert supervisor.log.endswith("stopped\n")
