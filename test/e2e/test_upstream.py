"""A model that is elsewhere: llama.cpp's own HTTP server with the bundled model, through all of Sluice."""

import asyncio
import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from internal.biz.generation import Finished, Job
from internal.biz.inbox import StepInbox
from internal.biz.models import Message, Role, Settings
from internal.generator.openai.engine import OpenAIGenerator
from internal.generator.openai.options import NodeOptions, OpenAIOptions
from internal.metrics.instruments import Instruments

if TYPE_CHECKING:
    from test.e2e.conftest import Answer, OpenResponses, OpenText, RunServer, Server, Until, Visitor

pytestmark = pytest.mark.real_model

ROOT = Path(__file__).parents[2]
KEY = "sk-do-not-tell-4711"
SLOTS = 2
QUESTION = "What is the capital of France?"
MY_DOG, ITS_NAME = "I have a dog. His name is Rex.", "What is the name of my dog?"
STORY = "Tell me a very long story about a king."


class LlamaServer:
    """The upstream: a process that can be killed, and started again at the same place."""

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = ROOT / "test" / "e2e" / "programs" / "llama_server.py"
        command = [sys.executable, str(program), str(self.port), KEY, str(SLOTS)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        address = re.fullmatch(r"http://127\.0\.0\.1:(\d+)\n", line)
        assert address, f"llama.cpp's server did not start: {line!r}"
        self.port = int(address[1])

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self.kill()

    @property
    def busy(self) -> int:
        """How many requests it works on."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/slots", headers={"Authorization": f"Bearer {KEY}"})
            slots: list[dict[str, Any]] = json.load(connection.getresponse())
            return sum(slot["is_processing"] for slot in slots)
        finally:
            connection.close()


@pytest.fixture(scope="module")
def upstream() -> Iterator[LlamaServer]:
    upstream = LlamaServer()
    upstream.start()
    yield upstream
    upstream.stop()


@pytest.fixture(scope="module")
def server(run_server: "RunServer", upstream: LlamaServer) -> Iterator["Server"]:
    options = {
        "base_url": f"http://127.0.0.1:{upstream.port}/v1",
        "api_key": "${LLAMA_KEY}",
        "slots": SLOTS,
        "retries": 0,
        "breaker": {"failures": 2, "reset": "1s"},
        "extra_body": {"temperature": 0, "max_tokens": 30},
    }
    models = [{"name": "smollm2", "generator": "openai", "options": options}]
    sections = {"models": models, "session": {"grace": "100ms"}, "storage": {"titles": False}}
    with run_server(sections, env={"LLAMA_KEY": KEY}) as server:
        yield server
        assert KEY not in server.log + server.output


async def test_bare_text_is_answered(server: "Server", text_socket: "OpenText") -> None:
    answer = ""
    async with text_socket(server) as socket:
        await socket.send(QUESTION)
        while "Paris" not in answer:
            answer += str(await asyncio.wait_for(socket.recv(), 15))


async def test_a_conversation_goes_on(server: "Server", visitor: type["Visitor"]) -> None:
    somebody = visitor(server)
    first = await somebody.ask(MY_DOG)
    second = await somebody.ask(ITS_NAME, session_id=first["session_id"])
    assert "Rex" in second["assistant_reply"]


async def test_a_second_turn_reuses_what_the_upstream_knows(
    server: "Server", responses_socket: "OpenResponses"
) -> None:
    async with responses_socket(server) as socket:
        first = await socket.ask(MY_DOG)
        second = await socket.ask(ITS_NAME, previous_response_id=first.id)
    assert "Rex" in second.text
    usage = second.response["usage"]
    assert first.response["usage"]["input_tokens"] > 10
    assert 10 < usage["input_tokens_details"]["cached_tokens"] < usage["input_tokens"]
    assert usage["output_tokens"] > 1


async def test_what_is_asked_arrives_there(server: "Server", responses_socket: "OpenResponses") -> None:
    async with responses_socket(server) as socket:
        short = await socket.ask(STORY, max_output_tokens=7)
    assert short.types[-1] == "response.incomplete"
    assert short.response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert short.response["usage"]["output_tokens"] == 7


async def test_a_cancel_stops_the_upstream(
    server: "Server", upstream: LlamaServer, responses_socket: "OpenResponses", until: "Until"
) -> None:
    async with responses_socket(server) as socket:
        await socket.create(STORY, max_output_tokens=900)
        seen = await socket.until("response.output_text.delta")
        assert await asyncio.to_thread(lambda: upstream.busy) == 1
        await socket.cancel(seen[0]["response"]["id"])
        answer = await socket.rest(seen)
    assert answer.response["incomplete_details"] == {"reason": "cancelled"}

    async def is_idle() -> bool:
        return await asyncio.to_thread(lambda: upstream.busy) == 0

    await until(is_idle)


async def test_another_attempt_goes_on_in_mid_sentence(upstream: LlamaServer) -> None:
    """As another worker does when the first one has died, here without the two."""
    inbox = StepInbox(asyncio.get_running_loop())
    node = NodeOptions(f"http://127.0.0.1:{upstream.port}/v1", KEY, SLOTS)
    options = OpenAIOptions("m", (node,), extra_body={"temperature": 0}, continuation="message")
    engine = OpenAIGenerator("m", options, Instruments())
    await engine.start(inbox, lambda _: None)

    async def say(begun: str) -> tuple[str, Finished]:
        messages = (Message(Role.USER, "Tell me about the city of Paris."),)
        engine.submit(Job("r", messages, Settings(max_output_tokens=24), begun))
        text = begun
        while True:
            for _, output in await inbox.take():
                if isinstance(output, Finished):
                    return text, output
                text += str(output)

    try:
        whole, end = await say("")
        again, end_again = await say(whole[: whole.index(",")])
    finally:
        await engine.stop()
    # Where two tokens are about as likely, a prompt of another length may tip the scales.
    assert again[:30] == whole[:30]
    assert end.usage.output_tokens == 24
    assert 20 <= end_again.usage.output_tokens <= 28
    assert end_again.usage.cached_tokens > 10


async def test_an_upstream_dies_in_mid_sentence_is_left_alone_and_comes_back(
    server: "Server", upstream: LlamaServer, responses_socket: "OpenResponses", until: "Until"
) -> None:
    def code(answer: "Answer") -> str:
        assert answer.types[-1] == "response.failed"
        return str(answer.response["error"]["code"])

    async with responses_socket(server) as socket:
        await socket.create(STORY, max_output_tokens=900)
        seen = await socket.until("response.output_text.delta")
        await asyncio.to_thread(upstream.kill)
        answer = await socket.rest(seen)
        assert code(answer) == "upstream_failed"
        assert answer.text == answer.output_text != ""
        refused = await socket.ask(QUESTION)
        assert code(refused) == "upstream_unavailable"
        left_alone = await socket.ask(QUESTION)
        assert "try again in 1 s" in left_alone.response["error"]["message"]
        await asyncio.to_thread(upstream.start)

        async def is_back() -> bool:
            return "Paris" in (await socket.ask(QUESTION)).text

        await until(is_back)
    assert "left alone" in server.log
    assert "answers again" in server.log
