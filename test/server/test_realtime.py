"""`/v1/realtime`: the unmodified `openai` package against the application, whose engine is the test."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from internal.biz.chat import Chat, ChatRules
from internal.biz.errors import GenerationFailed, SluiceError, Unauthenticated
from internal.biz.events import ReasoningDelta, TextDelta
from internal.biz.flusher import Flusher
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.heartbeat import Heartbeat
from internal.biz.limits import NoLimits
from internal.biz.models import Caller, Feature, Message, Role, Settings, ToolCall, Usage
from internal.biz.session import SessionLimits
from internal.biz.session_manager import ManagerLimits, SessionManager
from internal.data.memory_history import MemoryHistory
from internal.data.memory_queue import MemoryQueue, QueueLimits
from internal.metrics.instruments import Instruments
from internal.server.address import Proxies
from internal.server.app import App, AppOptions
from internal.server.identity import Identity
from internal.server.readiness import Readiness
from internal.server.websocket import WebSocketServer

PATIENCE_S = 5.0
MAX_IN_FLIGHT = 3
EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)


class Run:
    """A response on the engine that is the test."""

    def __init__(self, server: "Server", delivery: Delivery) -> None:
        self._server = server
        self._transcript = Transcript(delivery)
        self.request = delivery.request

    @property
    def heard(self) -> list[tuple[Role, str]]:
        """The whole prompt."""
        return [(message.role, message.content) for message in self._transcript.messages]

    @property
    def messages(self) -> tuple[Message, ...]:
        return self._transcript.messages

    @property
    def settings(self) -> Settings:
        return self.request.settings

    async def recall(self) -> "Run":
        (before,) = await self._server.history.before([self.request], 0)
        self._transcript.recall(before)
        return self

    async def say(self, *said: TextDelta | ReasoningDelta | ToolCall) -> None:
        self._transcript.start()
        for one in said:
            self._transcript.add(one)
        await self._append()

    async def finish(
        self, reason: FinishReason = FinishReason.STOP, error: SluiceError | None = None
    ) -> None:
        usage = Usage(input_tokens=7, cached_tokens=3, output_tokens=2)
        response = self._transcript.finish(Finished(reason, usage, error))
        await self._server.history.finish([response])
        await self._append()

    async def answer(self, *said: TextDelta | ReasoningDelta | ToolCall) -> None:
        await self.say(*said)
        await self.finish()

    async def _append(self) -> None:
        assert not await self._server.queue.append([self._transcript])
        self._transcript.appended()


class Server:
    """Everything but the accounts and the engine is real. Implements Consumer."""

    slots = room = 1

    def __init__(self) -> None:
        self.history = MemoryHistory()
        self.queue = MemoryQueue(QueueLimits(), self.history.finish)
        rules = ChatRules(("m", "other"), features={"m": frozenset(Feature), "other": frozenset()})
        self.chat = Chat(self.queue, self.history, NoLimits(), self.history.finish, rules)
        loop, instruments = asyncio.get_running_loop(), Instruments()
        limits = ManagerLimits(0, 0, cancel_on_disconnect=True, grace_s=60.0)
        self.sessions = SessionManager(
            self.chat,
            Flusher(loop),
            Heartbeat(loop, 0, 0),
            instruments,
            limits,
            SessionLimits(MAX_IN_FLIGHT, 0.0),
        )
        websockets = WebSocketServer(self.sessions, instruments.traffic, 1 << 20, 1 << 16)
        identity = Identity(_Guests(), Proxies([]), required=False, allowed_origins=[])
        app = App(self.chat, websockets, identity, Readiness([]), instruments, AppOptions([], 5.0))
        self.http = TestServer(app.build())
        self.revoked: asyncio.Queue[str] = asyncio.Queue()

    async def claim(self, model: str = "m") -> Run:
        async with asyncio.timeout(PATIENCE_S):
            (delivery,) = await self.queue.claim(model, self)
        return await Run(self, delivery).recall()

    def revoke(self, delivery: Delivery) -> None:
        self.revoked.put_nowait(delivery.request.response_id)

    def lose(self, delivery: Delivery) -> None:
        raise AssertionError("nothing is lost in memory")


class _Guests:
    """Everybody is the same guest; some keys were somebody's once."""

    def guest(self) -> tuple[str, Caller]:
        return "token", Caller("guest_1")

    async def identify(self, credential: str, address: str = "") -> Caller:
        if credential == "past":
            raise Unauthenticated("this login has ended", code="login_ended")
        return Caller("guest_1")


class Talk:
    """The connection of an `openai` client."""

    def __init__(self, connection: AsyncRealtimeConnection) -> None:
        self.connection = connection

    async def event(self) -> Any:
        """The next one, which is of the API's types."""
        async with asyncio.timeout(PATIENCE_S):
            event = await self.connection.recv()
        return EVENT.validate_python(event.model_dump())

    async def until(self, kind: str) -> list[Any]:
        events = [await self.event()]
        while events[-1].type != kind:
            assert events[-1].type != "error", events[-1]
            events.append(await self.event())
        return events

    async def error(self) -> Any:
        event = await self.event()
        assert event.type == "error"
        return event.error

    async def say(self, text: str) -> str:
        """A message of the user's; returns its id."""
        content: Any = [{"type": "input_text", "text": text}]
        await self.connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": content}
        )
        return cast(str, (await self.until("conversation.item.done"))[-1].item.id)

    async def ask(self, text: str) -> str:
        """A message of the user's, to be answered; returns the response's id."""
        await self.say(text)
        await self.connection.response.create()
        return cast(str, (await self.event()).response.id)

    async def answered(self) -> str:
        """What a response said."""
        events = await self.until("response.done")
        return "".join(event.delta for event in events if event.type == "response.output_text.delta")


@pytest.fixture
async def server(watched_loop: None) -> AsyncIterator[Server]:
    server = Server()
    await server.http.start_server()
    yield server
    await server.http.close()
    await server.sessions.stop()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncOpenAI]:
    url = str(server.http.make_url("/v1"))
    async with AsyncOpenAI(base_url=url, api_key="unused") as client:
        yield client


@pytest.fixture
async def talk(client: AsyncOpenAI) -> AsyncIterator[Talk]:
    """With the model "m", and just begun."""
    async with client.realtime.connect(model="m") as connection:
        talk = Talk(connection)
        assert (await talk.event()).type == "session.created"
        yield talk


async def test_two_turns(server: Server, talk: Talk) -> None:
    await talk.connection.session.update(
        session={"type": "realtime", "instructions": "be brief", "output_modalities": ["text"]}
    )
    assert (await talk.event()).session.instructions == "be brief"
    await talk.ask("hello")
    run = await server.claim()
    assert run.heard == [(Role.SYSTEM, "be brief"), (Role.USER, "hello")]
    await run.answer(TextDelta("good "), TextDelta("day"))
    assert await talk.answered() == "good day"
    await talk.ask("and now?")
    run = await server.claim()
    before = [(Role.SYSTEM, "be brief"), (Role.USER, "hello"), (Role.ASSISTANT, "good day")]
    assert run.heard == [*before, (Role.USER, "and now?")]
    await run.answer(TextDelta("night"))
    assert await talk.answered() == "night"


async def test_without_a_new_message_the_model_answers_again(server: Server, talk: Talk) -> None:
    await talk.ask("hello")
    await (await server.claim()).answer(TextDelta("one"))
    assert await talk.answered() == "one"
    await talk.connection.response.create()
    again = await server.claim()
    assert again.heard == [(Role.USER, "hello"), (Role.ASSISTANT, "one")]
    await again.answer(TextDelta("two"))
    assert await talk.answered() == "two"
    await talk.ask("more")
    assert [text for _, text in (await server.claim()).heard] == ["hello", "one", "two", "more"]


async def test_a_model_may_begin(server: Server, talk: Talk) -> None:
    await talk.connection.response.create(response={"instructions": "greet"})
    run = await server.claim()
    assert run.heard == [(Role.SYSTEM, "greet")]
    await run.answer(TextDelta("hello"))
    assert await talk.answered() == "hello"
    await talk.ask("who are you?")
    assert (await server.claim()).heard == [(Role.ASSISTANT, "hello"), (Role.USER, "who are you?")]


async def test_what_was_deleted_the_model_does_not_hear(server: Server, talk: Talk) -> None:
    secret = await talk.say("the word is swordfish")
    await talk.ask("hello")
    await (await server.claim()).answer(TextDelta("good day"))
    await talk.answered()
    await talk.connection.conversation.item.retrieve(item_id=secret)
    assert (await talk.event()).item.content[0].text == "the word is swordfish"
    await talk.connection.conversation.item.delete(item_id=secret)
    assert (await talk.event()).item_id == secret
    await talk.ask("what is the word?")
    assert [text for _, text in (await server.claim()).heard] == ["hello", "good day", "what is the word?"]


async def test_a_function_is_called_and_what_it_found_is_heard(server: Server, talk: Talk) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    await talk.connection.session.update(
        session={
            "type": "realtime",
            "tools": [{"type": "function", "name": "weather", "parameters": parameters}],
        }
    )
    await talk.event()
    await talk.ask("how is the weather in Ulm?")
    run = await server.claim()
    assert [tool.name for tool in run.settings.tooling.offered] == ["weather"]
    await run.answer(ToolCall("call_1", "weather", '{"city": "Ulm"}'))
    done = (await talk.until("response.done"))[-1].response
    (call,) = done.output
    assert (call.type, call.name, call.arguments) == ("function_call", "weather", '{"city": "Ulm"}')
    await talk.connection.conversation.item.create(
        item={"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    )
    await talk.until("conversation.item.done")
    await talk.connection.response.create()
    run = await server.claim()
    assert run.messages == (
        Message(Role.USER, "how is the weather in Ulm?"),
        Message(Role.ASSISTANT, "", (ToolCall("call_1", "weather", '{"city": "Ulm"}'),)),
        Message(Role.TOOL, "sunny", call_id="call_1"),
    )
    await run.answer(TextDelta("it is sunny"))
    assert await talk.answered() == "it is sunny"


async def test_what_the_model_cannot_do_is_refused_and_can_be_asked_without(
    server: Server, client: AsyncOpenAI
) -> None:
    async with client.realtime.connect(model="other") as connection:
        talk = Talk(connection)
        await talk.event()
        await talk.say("hello")
        await connection.response.create(
            response={"tools": [{"type": "function", "name": "weather"}]}, event_id="mine"
        )
        error = await talk.error()
        assert (error.code, error.param, error.event_id) == ("unsupported_parameter", "tools", "mine")
        await connection.response.create()
        assert (await server.claim("other")).heard == [(Role.USER, "hello")]


async def test_a_cancelled_answer_ends_with_what_it_said(server: Server, talk: Talk) -> None:
    response_id = await talk.ask("hello")
    run = await server.claim()
    await run.say(TextDelta("good"))
    await talk.until("response.output_text.delta")
    await talk.connection.response.create(event_id="too early")
    error = await talk.error()
    assert (error.code, error.event_id) == ("conversation_already_has_active_response", "too early")
    await talk.connection.response.cancel()
    async with asyncio.timeout(PATIENCE_S):
        assert await server.revoked.get() == response_id
    await run.finish(FinishReason.CANCELLED)
    response = (await talk.until("response.done"))[-1].response
    assert (response.status, response.status_details.reason) == ("cancelled", "client_cancelled")
    assert response.output[0].content[0].text == "good"
    await talk.connection.response.cancel(event_id="too late")
    error = await talk.error()
    assert (error.code, error.event_id) == ("response_cancel_not_active", "too late")


async def test_an_answer_that_fails_is_told_and_asked_for_again(server: Server, talk: Talk) -> None:
    await talk.ask("hello")
    await (await server.claim()).finish(FinishReason.ERROR, GenerationFailed("the engine failed"))
    response = (await talk.until("response.done"))[-1].response
    assert (response.status, response.status_details.error.message) == ("failed", "the engine failed")
    await talk.connection.response.create()
    assert (await server.claim()).heard == [(Role.USER, "hello")]


async def test_side_by_side_with_the_conversation(server: Server, talk: Talk) -> None:
    main = await talk.ask("hello")
    first = await server.claim()
    await talk.connection.response.create(
        response={
            "conversation": "none",
            "input": [],
            "instructions": "name a topic",
            "metadata": {"a": "b"},
        }
    )
    aside = (await talk.event()).response
    assert (aside.metadata, aside.conversation_id) == ({"a": "b"}, None)
    second = await server.claim()
    assert second.heard == [(Role.SYSTEM, "name a topic")]
    await second.answer(TextDelta("greetings"))
    assert (await talk.until("response.done"))[-1].response.id == aside.id
    await first.answer(TextDelta("good day"))
    assert (await talk.until("response.done"))[-1].response.id == main
    await talk.ask("more")
    assert [text for _, text in (await server.claim()).heard] == ["hello", "good day", "more"]


async def test_a_turn_that_finds_no_room_can_be_asked_again(server: Server, talk: Talk) -> None:
    aside: Any = {"conversation": "none", "instructions": "x"}
    for _ in range(MAX_IN_FLIGHT):
        await talk.connection.response.create(response=aside)
        await talk.until("response.created")
    await talk.say("hello")
    await talk.connection.response.create(event_id="mine")
    error = await talk.error()
    assert (error.code, error.event_id) == ("too_many_in_flight", "mine")
    for _ in range(MAX_IN_FLIGHT):
        await (await server.claim()).finish()
        await talk.until("response.done")
    await talk.connection.response.create()
    assert (await server.claim()).heard == [(Role.USER, "hello")]


async def test_sound_is_refused_and_the_session_goes_on(server: Server, talk: Talk) -> None:
    await talk.connection.input_audio_buffer.append(audio="AAAA", event_id="mine")
    error = await talk.error()
    assert (error.type, error.code) == ("invalid_request_error", "unsupported_parameter")
    assert error.event_id == "mine"
    assert "audio" in error.message
    await talk.connection.session.update(
        session={"type": "realtime", "output_modalities": ["audio"]}, event_id="loud"
    )
    error = await talk.error()
    assert (error.param, error.event_id) == ("session.output_modalities", "loud")
    await talk.ask("hello")
    await (await server.claim()).answer(TextDelta("good day"))
    assert await talk.answered() == "good day"


async def test_an_answer_is_followed_on_another_protocol_and_back(
    server: Server, client: AsyncOpenAI, talk: Talk
) -> None:
    response_id = await talk.ask("hello")
    run = await server.claim()
    await run.say(TextDelta("good "))
    await talk.until("response.output_text.delta")
    async with (
        client.responses.connect() as elsewhere,
        client.realtime.connect(model="m") as connection,
    ):
        other = Talk(connection)
        assert (await other.event()).type == "session.created"
        resume: Any = {"type": "response.resume", "response_id": response_id}
        await elsewhere.send(resume | {"starting_after": 4})
        await connection.send(resume)
        await run.answer(TextDelta("day"))
        texts = [await talk.answered(), await other.answered(), ""]
        async for event in elsewhere:
            if event.type == "response.output_text.delta":
                texts[-1] += event.delta
            if event.type == "response.completed":
                break
    assert texts == ["day", "good day", "good day"]


async def test_an_unknown_model_and_a_key_of_the_past_are_told_after_the_upgrade(server: Server) -> None:
    for path, headers, code in (
        ("/v1/realtime?model=nonsense", {}, 4403),
        ("/v1/realtime", {"Authorization": "Bearer past"}, 4401),
        ("/v1/realtime", {"Origin": "https://elsewhere.example"}, 4403),
    ):
        url = str(server.http.make_url(path)).replace("http", "ws", 1)
        origin = headers.pop("Origin", None)
        async with connect(url, additional_headers=headers, origin=cast(Any, origin)) as socket:
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert socket.close_code == code


async def test_a_browser_offers_its_key_as_a_subprotocol(server: Server) -> None:
    url = str(server.http.make_url("/v1/realtime")).replace("http", "ws", 1)
    offers: Any = ["realtime", "openai-insecure-api-key.unused"]
    async with connect(url, subprotocols=offers) as socket:
        assert socket.subprotocol == "realtime"
        assert json.loads(await socket.recv())["session"]["model"] == "m"
    offers = ["realtime", "openai-insecure-api-key.past"]
    async with connect(url, subprotocols=offers) as socket:
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 4401


@pytest.mark.parametrize(
    "offer",
    [
        {"additional_headers": {"OpenAI-Beta": "realtime=v1"}},
        {"subprotocols": ["realtime", "openai-beta.realtime-v1"]},
    ],
)
async def test_a_client_of_the_beta_is_told_that_it_is_one(server: Server, offer: dict[str, Any]) -> None:
    url = str(server.http.make_url("/v1/realtime")).replace("http", "ws", 1)
    async with connect(url, **offer) as socket:
        with pytest.raises(ConnectionClosed, match="beta"):
            await socket.recv()
        assert socket.close_code == 4403


async def test_without_an_upgrade_it_says_what_it_is(server: Server) -> None:
    async with ClientSession() as session, session.get(server.http.make_url("/v1/realtime")) as answer:
        assert answer.status == 426


async def test_garbage_ends_neither_the_session_nor_the_server(server: Server, talk: Talk) -> None:
    chance = random.Random(5)
    events = [b"{", b"[]", b"null", b'{"type": 5}', b'{"type": "session.update", "session": ' + b"[" * 5000]
    deep: Any = {}
    for _ in range(200):
        deep = {"a": deep}
    tools = [{"type": "function", "name": "f", "parameters": deep}]
    events.append(json.dumps({"type": "session.update", "session": {"tools": tools}}).encode())
    kinds = ["session.update", "conversation.item.create", "response.create", "response.cancel", "nonsense"]
    values: list[Any] = [None, 5, "x", [], {}, {"type": "message"}, {"input": 5}, {"tools": 5}, [[]]]
    names = ["item", "session", "response", "item_id", "event_id", "previous_item_id", "response_id"]
    for _ in range(200):
        event = {name: chance.choice(values) for name in chance.sample(names, 3)}
        events.append(json.dumps({"type": chance.choice(kinds), **event}).encode())
    for data in events:
        await talk.connection.send_raw(data.decode())
        seen = (await talk.event()).type
        assert seen in ("error", "session.updated"), (data, seen)
    await talk.ask("hello")
    await (await server.claim()).answer(TextDelta("good day"))
    assert await talk.answered() == "good day"
