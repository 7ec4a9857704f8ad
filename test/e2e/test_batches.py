"""Several models at once: on a socket, over REST and with a form; which answer goes on, and who sees it."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

if TYPE_CHECKING:
    from test.e2e.conftest import JSON, ResponsesSocket, RunServer, Server, Until, Visitor

TERMINAL = ("response.completed", "response.incomplete", "response.failed")
PROGRAM = (str(Path(__file__).with_name("programs") / "peculiar.py"),)


def echo(name: str, chunks: int, interval: str = "10ms") -> "JSON":
    return {"name": name, "generator": "echo", "options": {"chunks": chunks, "interval": interval}}


MODELS = [echo("one", 4), echo("two", 3), echo("breaks", 1), echo("recalls", 1), echo("endless", 3000)]


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    with run_server({"models": MODELS}, program=PROGRAM) as server:
        yield server


async def all_of(socket: "ResponsesSocket", count: int) -> "list[JSON]":
    """Everything up to the end of so many responses."""
    events: list[JSON] = []
    while sum(event["type"] in TERMINAL for event in events) < count:
        events.append(await socket.event())
    return events


def text(events: "list[JSON]", lane: str) -> str:
    return "".join(it["delta"] for it in events if it["stream_id"] == lane and "delta" in it)


async def batch(visitor: "Visitor", batch_id: str) -> "JSON":
    reply = await visitor.call("GET", f"/v1/batches/{batch_id}")
    assert reply.status == 200, reply.text
    found: JSON = reply.json
    return found


async def test_several_models_answer_interleaved_and_the_chosen_answer_goes_on(
    server: "Server", visitor: "type[Visitor]"
) -> None:
    ada, eve = visitor(server), visitor(server)
    await ada.register("ada")
    await eve.register("eve")
    begun = await ada.call("POST", "/conversations", {})
    conversation = begun.json["session_id"]
    async with ada.responses() as socket:
        await socket.create("hi", model="one, two, breaks", stream_id="s", conversation=conversation)
        events = await all_of(socket, 3)
        lanes = {"s:one": "completed", "s:two": "completed", "s:breaks": "failed"}
        ended = [event for event in events if event["type"] in TERMINAL]
        assert {event["stream_id"]: event["response"]["status"] for event in ended} == lanes
        for lane in lanes:
            numbers = [event["sequence_number"] for event in events if event["stream_id"] == lane]
            assert numbers == list(range(len(numbers)))
        said = [event["stream_id"] for event in events if "delta" in event]
        assert said.index("s:two") < len(said) - 1 - said[::-1].index("s:one"), "one after the other"
        assert text(events, "s:one") == "".join(f"chunk {n}: hi" for n in range(1, 5))
        seats = {event["stream_id"]: event["response"]["batch"] for event in ended}
        assert [seats[lane]["position"] for lane in lanes] == [0, 1, 2]
        (batch_id,) = {seat["id"] for seat in seats.values()}

        found = await batch(ada, batch_id)
        assert (found["status"], found["prompt"], found["conversation_id"]) == (
            "completed",
            "hi",
            conversation,
        )
        tasks = {task["model_name"]: task for task in found["tasks"]}
        assert tasks["two"]["response_text"] == text(events, "s:two")
        assert (tasks["breaks"]["status"], tasks["breaks"]["error_msg"]) == ("failed", "it broke")
        two = tasks["two"]["task_id"]
        for method, path, body in (
            ("GET", f"/v1/batches/{batch_id}", None),
            ("PATCH", f"/v1/batches/{batch_id}", {"chosen": two}),
            ("POST", f"/v1/batches/{batch_id}/cancel", None),
            ("GET", f"/v1/tasks/{two}", None),
            ("GET", f"/v1/conversations/{conversation}/history", None),
        ):
            assert (await eve.call(method, path, body)).status == 404, path

        chosen = await ada.call("PATCH", f"/v1/batches/{batch_id}", {"chosen": two})
        assert (chosen.status, chosen.json["chosen"]) == (200, two)
        answer = await socket.ask("and?", model="recalls", conversation=conversation)
        assert answer.text == f"[hi][{text(events, 's:two')}][and?]"
    late = await ada.call("PATCH", f"/v1/batches/{batch_id}", {"chosen": tasks["one"]["task_id"]})
    assert (late.status, late.json["error"]["code"]) == (409, "conversation_moved_on")
    history = (await ada.call("GET", f"/v1/conversations/{conversation}/history")).json["messages"]
    assert [(it["role"], it["model"], it.get("batch_id")) for it in history] == [
        ("user", "one", batch_id),
        ("assistant", "one", batch_id),
        ("assistant", "two", batch_id),
        ("user", "recalls", None),
        ("assistant", "recalls", None),
    ]


async def test_a_form_begins_a_batch_that_goes_on_without_its_client(
    server: "Server", visitor: "type[Visitor]", until: "Until"
) -> None:
    ada = visitor(server)
    form = aiohttp.FormData({"prompt": "hi", "model": "one,endless"}, default_to_multipart=True)
    async with (
        aiohttp.ClientSession(headers=ada.headers) as http,
        http.post(server.http("/v1/chat/completions"), data=form) as reply,
    ):
        assert reply.status == 202, await reply.text()
        begun = await reply.json()
    one, endless = begun["task_ids"]

    async def is_half_done() -> bool:
        tasks = (await batch(ada, begun["batch_id"]))["tasks"]
        return [task["status"] for task in tasks] == ["completed", "in_progress"]

    await until(is_half_done)
    task = (await ada.call("GET", f"/v1/tasks/{one}")).json
    assert (task["model_name"], task["response_text"].count("hi")) == ("one", 4)
    assert (await batch(ada, begun["batch_id"]))["status"] == "in_progress"
    stopped = await ada.call("POST", f"/v1/batches/{begun['batch_id']}/cancel")
    assert stopped.status == 200

    async def is_over() -> bool:
        return bool((await batch(ada, begun["batch_id"]))["status"] == "completed")

    await until(is_over)
    task = (await ada.call("GET", f"/v1/tasks/{endless}")).json
    assert (task["status"], task["error_msg"]) == ("incomplete", "the answer was stopped")


async def test_without_storage_batches_are_kept_in_memory(
    run_server: "RunServer", visitor: "type[Visitor]", until: "Until"
) -> None:
    with run_server({"models": MODELS, "storage": {"url": ""}}, program=PROGRAM) as server:
        ada = visitor(server)
        async with ada.responses() as socket:
            begun = (await ada.call("POST", "/v1/batches", {"model": ["one", "two"], "input": "hi"})).json

            async def is_over() -> bool:
                return bool((await batch(ada, begun["batch_id"]))["status"] == "completed")

            await until(is_over)
            chosen = begun["task_ids"][1]
            reply = await ada.call("PATCH", f"/v1/batches/{begun['batch_id']}", {"chosen": chosen})
            assert reply.status == 200, reply.text
            answer = await socket.ask("and?", model="recalls", conversation=begun["conversation_id"])
        assert answer.text == "[hi][" + "".join(f"chunk {n}: hi" for n in (1, 2, 3)) + "][and?]"


async def test_no_task_runs_for_ever_when_the_server_is_killed(
    run_server: "RunServer",
    visitor: "type[Visitor]",
    until: "Until",
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    kept = {
        "models": MODELS,
        "storage": {"url": f"sqlite+aiosqlite:///{folder}/sluice.db"},
        "auth": {"secret_file": f"{folder}/secret.key"},
    }
    with run_server(kept, program=PROGRAM) as first:
        ada = visitor(first)
        begun = (await ada.call("POST", "/v1/batches", {"model": "endless, recalls", "prompt": "hi"})).json

        async def is_half_done() -> bool:
            tasks = (await batch(ada, begun["batch_id"]))["tasks"]
            return [task["status"] for task in tasks] == ["in_progress", "completed"]

        await until(is_half_done)
        first.expected_status = -signal.SIGKILL
        first.kill()
    with run_server(kept, program=PROGRAM) as second:
        same = visitor(second, cookies=ada.cookies)

        async def is_over() -> bool:
            return bool((await batch(same, begun["batch_id"]))["status"] == "completed")

        await until(is_over)
        tasks = (await batch(same, begun["batch_id"]))["tasks"]
        assert [task["status"] for task in tasks] == ["failed", "completed"]
        body = {"model": "recalls", "prompt": "and?", "conversation_id": begun["conversation_id"]}
        again = (await same.call("POST", "/v1/batches", body)).json

        async def is_answered() -> bool:
            return bool((await batch(same, again["batch_id"]))["status"] == "completed")

        await until(is_answered)
        (task,) = (await batch(same, again["batch_id"]))["tasks"]
        assert task["response_text"] == "[hi][[hi]][and?]"
