"""The upstream of the tests: its words come through the real server and its generator, as they were said."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from scripted import Turn, Upstream, pieces, prose
from websockets.asyncio.client import ClientConnection, connect

if TYPE_CHECKING:
    from conftest import Stack

    from test.conftest import Server

TERMINAL = ("response.completed", "response.incomplete", "response.failed")
DEADLINE_S = 15.0


class Client:
    """A socket that has asked something, and all that it heard."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.events: list[dict[str, Any]] = []

    async def send(self, kind: str, **fields: object) -> None:
        await self._socket.send(json.dumps({"type": kind, **fields}))

    async def until(self, kind: str, count: int = 1) -> None:
        """So many events of this kind have come."""
        async with asyncio.timeout(DEADLINE_S):
            while [event["type"] for event in self.events].count(kind) < count:
                self.events.append(json.loads(await self._socket.recv()))

    async def ended(self) -> dict[str, Any]:
        """The response."""
        async with asyncio.timeout(DEADLINE_S):
            while not self.events or self.events[-1]["type"] not in TERMINAL:
                self.events.append(json.loads(await self._socket.recv()))
        response: dict[str, Any] = self.events[-1]["response"]
        return response

    def text(self, kind: str = "output_text") -> str:
        return "".join(it["delta"] for it in self.events if it["type"] == f"response.{kind}.delta")


@asynccontextmanager
async def asking(server: "Server", question: str = "hello", model: str = "scripted") -> AsyncIterator[Client]:
    async with connect(server.ws("/v1/responses"), proxy=None, max_size=None) as socket:
        client = Client(socket)
        await client.send("response.create", model=model, input=question)
        yield client


@pytest.mark.parametrize("text", ["", "a", " a  b\n\n- c\t", "\n", prose(250)])
def test_pieces_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_prose_has_as_many_pieces_as_asked_for() -> None:
    assert len(pieces(prose(250))) == 250
    assert prose(250).count("\n\n") == 2


async def test_words_come_when_they_are_said(server: "Server", upstream: Upstream) -> None:
    async with asking(server, "What is a sluice?") as client:
        await upstream.think("Hm. ")
        await client.until("response.reasoning_text.delta")
        await upstream.say("A gate")
        await client.until("response.output_text.delta")
        assert client.text() == "A gate"
        await upstream.say(" for <b>water</b>.")
        await client.until("response.output_text.delta", 2)
        await upstream.finish()
        assert (await client.ended())["usage"]["output_tokens"] == 3
        assert client.text("reasoning_text") == "Hm. "
        assert client.text() == "A gate for <b>water</b>."
    assert [turn.question for turn in upstream.turns] == ["What is a sluice?"]


async def test_a_long_answer_comes_at_its_pace_behind_a_fast_beginning(
    server: "Server", upstream: Upstream
) -> None:
    text = prose(18_050)
    async with asking(server) as client:
        begun = time.monotonic()
        await upstream.stream(text, per_second=100, at_once=18_000)
        paced_s = time.monotonic() - begun
        await upstream.finish()
        assert (await client.ended())["usage"]["output_tokens"] == 18_050
    assert client.text() == text
    assert paced_s >= 0.5


async def test_a_stop_reaches_the_upstream(server: "Server", upstream: Upstream) -> None:
    async with asking(server) as client:
        await upstream.say("and so on")
        await client.until("response.output_text.delta")
        await client.send("response.cancel", response_id=client.events[0]["response"]["id"])
        await (await upstream.asked()).was_left()
        assert (await client.ended())["incomplete_details"] == {"reason": "cancelled"}


async def test_an_answer_cut_short_says_so(server: "Server", upstream: Upstream) -> None:
    async with asking(server) as client:
        await upstream.say("Once upon a")
        await upstream.finish("length")
        assert (await client.ended())["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_it_fails_in_every_way_and_is_asked_again(server: "Server", upstream: Upstream) -> None:
    async def refuse(turn: Turn) -> None:
        await turn.refuse(503, "overloaded")

    async def fail(turn: Turn) -> None:
        await turn.say("so far")
        await turn.fail("out of memory")

    async def cut(turn: Turn) -> None:
        await turn.say("so far")
        await turn.cut()

    async def answer(turn: Turn) -> None:
        await turn.answer("well")

    upstream.will(refuse, fail, cut, answer)
    texts, codes = [], []
    for _ in range(4):
        async with asking(server) as client:
            response = await client.ended()
            texts.append(client.text())
            codes.append((response["error"] or {"code": ""})["code"])
    assert texts == ["", "so far", "so far", "well"]
    assert [code.partition("_")[0] for code in codes] == ["upstream", "upstream", "upstream", ""], codes


async def test_models_are_told_apart(server: "Server", upstream: Upstream) -> None:
    async with asking(server) as client, asking(server, model="other") as another:
        other = await upstream.asked("other")
        await other.answer("the other one")
        assert (await another.ended())["status"] == "completed"
        assert another.text() == "the other one"
        await (await upstream.asked()).answer("the first one")
        await client.ended()
        assert client.text() == "the first one"


async def test_what_a_test_leaves_open_is_broken_off(server: "Server", all_upstream: Upstream) -> None:
    async with asking(server) as client:
        await all_upstream.say("so far")
        await all_upstream.forget()
        assert (await client.ended())["status"] == "failed"
    assert all_upstream.turns == []


async def test_an_echo_thinks_before_it_answers(server: "Server") -> None:
    async with asking(server, model="thinker") as client:
        usage = (await client.ended())["usage"]
    assert client.text("reasoning_text") == "thought 1: hellothought 2: hellothought 3: hello"
    assert client.text().startswith("chunk 1: hello")
    assert (usage["output_tokens"], usage["output_tokens_details"]["reasoning_tokens"]) == (8, 3)


async def test_a_closed_server_wants_users(closed_server: "Server") -> None:
    assert (await closed_server.fetch("/v1/workers")).status == 401


@pytest.mark.real_model
async def test_a_real_model_answers(real_server: "Server") -> None:
    async with asking(real_server, "What is the capital of France?", "smollm2") as client:
        await client.ended()
        assert "Paris" in client.text()


async def test_a_killed_server_comes_back_in_its_place_and_a_killed_worker_goes_on(
    stack: "Stack", upstream: Upstream
) -> None:
    async with asking(stack.server, model="slow") as client:
        await client.until("response.output_text.delta")
        await stack.kill_server()
    seen, response_id = len(client.events), client.events[0]["response"]["id"]
    await stack.start_server()
    await stack.kill_worker()
    await stack.start_worker()
    async with connect(stack.server.ws("/v1/responses"), proxy=None) as socket:
        again = Client(socket)
        again.events = client.events
        await again.send("response.resume", response_id=response_id, starting_after=seen - 1)
        await again.ended()
        assert again.text() == "".join(f"chunk {n}: hello" for n in range(1, 61))
