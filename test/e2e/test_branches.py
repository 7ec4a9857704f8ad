"""Turns in the place of others: on a socket and over REST, who sees them, and what the model is told."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from test.e2e.conftest import JSON, RunServer, Server, Visitor

PROGRAM = (str(Path(__file__).with_name("programs") / "peculiar.py"),)


def echo(name: str, chunks: int = 1, interval: str = "1ms") -> "JSON":
    return {"name": name, "generator": "echo", "options": {"chunks": chunks, "interval": interval}}


MODELS = [echo("one"), echo("two"), echo("recalls"), echo("endless", 3000, "10ms")]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, run_server: "RunServer") -> Iterator["Server"]:
    config: JSON = {"models": MODELS}
    if request.param == "postgresql":
        config["storage"] = {"url": request.getfixturevalue("empty_postgres")}
    with run_server(config, program=PROGRAM) as server:
        yield server


class Talk:
    """A conversation over a socket. All of it answers with `chunk 1: ` and what was asked."""

    def __init__(self, guest: "Visitor", conversation: str) -> None:
        self.guest = guest
        self.id = conversation

    async def ask(self, text: str, **fields: object) -> "JSON":
        """How the answer ended."""
        async with self.guest.responses() as socket:
            answer = await socket.ask(text, conversation=self.id, **{"model": "one", **fields})
        response: JSON = answer.response
        return response

    async def turn(self, text: str, **fields: object) -> str:
        response_id: str = (await self.ask(text, **fields))["id"]
        return response_id

    async def told(self, **fields: object) -> str:
        """What a model is told that is asked now."""
        response = await self.ask("?", model="recalls", **fields)
        text: str = response["output"][0]["content"][0]["text"]
        reply = await self.guest.call("DELETE", f"/v1/responses/{response['id']}")
        assert reply.status == 200, reply.text
        return text.replace("chunk 1: ", "=")

    async def listed(self) -> str:
        said = await self.guest.history(self.id)
        return "".join(f"[{text}]" for _, text in said).replace("chunk 1: ", "=")

    async def go_on_from(self, head: str) -> "JSON":
        reply = await self.guest.call("PATCH", f"/conversations/{self.id}", {"head": head})
        assert reply.status == 200, reply.text
        summary: JSON = reply.json
        return summary

    async def turns(self, query: str = "?order=asc") -> "JSON":
        reply = await self.guest.call("GET", f"/v1/conversations/{self.id}/turns{query}")
        assert reply.status == 200, reply.text
        page: JSON = reply.json
        return page


@pytest.fixture
async def talk(server: "Server", visitor: "type[Visitor]") -> Talk:
    guest = visitor(server)
    begun = await guest.call("POST", "/conversations", {})
    return Talk(guest, begun.json["session_id"])


async def test_a_model_sees_only_the_way_to_the_turn_that_is_asked(talk: Talk) -> None:
    a = await talk.turn("a")
    b = await talk.turn("b")
    again = await talk.turn("b", replaces=b)
    edited = await talk.turn("c", replaces=again)
    assert await talk.told() == "[a][=a][c][=c][?]"
    assert await talk.listed() == "[a][=a][c][=c]"
    summary = await talk.go_on_from(b)
    assert (summary["message_count"], await talk.listed()) == (4, "[a][=a][b][=b]")
    await talk.turn("d")
    assert await talk.told() == "[a][=a][b][=b][d][=d][?]"
    page = await talk.turns()
    told = [(turn["id"], turn["previous_response_id"], turn["aside"]) for turn in page["data"]]
    d = page["head_id"]
    assert told == [
        (a, None, False),
        (b, a, False),
        (again, a, True),
        (edited, a, True),
        (d, b, False),
    ]
    assert [turn["input"][0]["content"][0]["text"] for turn in page["data"]] == ["a", "b", "b", "c", "d"]
    for turn in page["data"]:
        assert turn["response"] == (await talk.guest.call("GET", f"/v1/responses/{turn['id']}")).json
        assert turn["created_at"] <= turn["first_token_at"] <= turn["ended_at"]
    export = (await talk.guest.call("GET", f"/conversations/{talk.id}/export")).json
    assert [message["content"] for message in export["messages"]][2::2] == ["b", "d"]
    items = (await talk.guest.call("GET", f"/v1/conversations/{talk.id}/items?order=asc")).json
    assert [item["response_id"] for item in items["data"]] == [a, a, b, b, d, d]


async def test_the_first_turn_is_replaced_by_two_models_at_once(talk: Talk) -> None:
    a = await talk.turn("a")
    body = {"model": "one, two", "prompt": "b", "conversation_id": talk.id, "replaces": a}
    begun = await talk.guest.call("POST", "/v1/batches", body)
    assert begun.status == 202, begun.text
    first, second = begun.json["task_ids"]
    async with talk.guest.responses() as socket:
        for response_id in (first, second):
            await socket.resume(response_id)
            await socket.rest()
    assert await talk.listed() == "[b][=b][=b]"
    seats = [turn["response"].get("batch") for turn in (await talk.turns())["data"]]
    assert seats == [None, *({"id": begun.json["batch_id"], "position": n} for n in (0, 1))]
    await talk.go_on_from(second)
    batch = await talk.guest.call("GET", f"/v1/batches/{begun.json['batch_id']}")
    assert batch.json["chosen"] == second
    await talk.go_on_from(a)
    assert await talk.told() == "[a][=a][?]"


async def test_an_answer_that_runs_is_stopped_before_it_is_replaced(talk: Talk) -> None:
    await talk.turn("a")
    async with talk.guest.responses() as socket:
        await socket.create("b", model="endless", conversation=talk.id)
        seen = await socket.until("response.output_text.delta")
        b = seen[0]["response"]["id"]
        await socket.create("c", model="one", conversation=talk.id, replaces=b, stream_id="other")
        refused = await socket.event()
        while refused["type"] != "error":
            refused = await socket.event()
        assert (refused["status"], refused["error"]["code"]) == (409, "conversation_locked")
        (running, _) = (await talk.turns("?limit=2"))["data"]
        assert (running["id"], running["response"]["status"]) == (b, "in_progress")
        assert (running["response"]["output"], running["ended_at"]) == ([], None)
        await socket.cancel(b)
        await socket.rest(seen)
    assert await talk.told(replaces=b) == "[a][=a][?]"


async def test_what_is_named_wrongly_is_told_by_name(
    talk: Talk, server: "Server", visitor: "type[Visitor]"
) -> None:
    a = await talk.turn("a")
    stranger = visitor(server)
    async with talk.guest.responses() as socket:
        for fields, code, param in (
            ({"replaces": a}, "invalid_request", "replaces"),
            ({"replaces": "resp_none", "conversation": talk.id}, "response_not_found", "replaces"),
            ({"replaces": a, "conversation": talk.id, "store": False}, "invalid_request", "replaces"),
        ):
            await socket.create("b", **fields)
            error = await socket.error()
            assert (error["code"], error["param"]) == (code, param)
    async with stranger.responses() as socket:
        await socket.create("b", conversation=talk.id, replaces=a)
        assert (await socket.error())["code"] == "conversation_not_found"
    for method, path, body in (
        ("GET", f"/v1/conversations/{talk.id}/turns", None),
        ("PATCH", f"/conversations/{talk.id}", {"head": a}),
    ):
        assert (await stranger.call(method, path, body)).status == 404
    assert await talk.listed() == "[a][=a]"
