"""How many may come in, from where, and how much each may ask at a time."""

import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.client import ClientConnection, connect

if TYPE_CHECKING:
    from test.e2e.conftest import HowClosed, OpenResponses, OpenText, Raw, RunServer, Server

Chunks = Callable[..., list[str]]

MODELS = [
    {"name": "echo", "generator": "echo", "options": {"interval": "2ms"}},
    {"name": "slow", "generator": "echo", "options": {"chunks": 20, "interval": "20ms"}},
    {"name": "single", "generator": "echo", "options": {"chunks": 20, "interval": "20ms", "slots": 1}},
]


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    config = {
        "server": {"allowed_origins": ["https://chat.example.org"]},
        "session": {"max_connections": 3, "max_in_flight": 2},
        "models": MODELS,
    }
    with run_server(config) as server:
        yield server


@pytest.fixture(scope="module")
def per_address(run_server: "RunServer") -> Iterator["Server"]:
    session = {"max_connections_per_ip": 2, "max_in_flight": 50}
    with run_server({"session": session, "queue": {"max_pending": 4}, "models": MODELS}) as server:
        yield server


async def answers(socket: ClientConnection, echo_chunks: Chunks) -> bool:
    await socket.send("hello")
    return [await socket.recv() for _ in range(5)] == echo_chunks("hello")


async def test_one_connection_too_many_is_told_1013(
    server: "Server", text_socket: "OpenText", echo_chunks: Chunks, how_closed: "HowClosed"
) -> None:
    await server.metric_becomes("sluice_sessions", 0)
    async with AsyncExitStack() as stack:
        inside = [await stack.enter_async_context(text_socket(server)) for _ in range(3)]
        for path in ("/ws", "/v1/responses"):
            async with text_socket(server, path) as extra:
                code, reason = await how_closed(extra)
                assert code == 1013
                assert "as many connections as it takes" in reason
        for socket in inside:
            assert await answers(socket, echo_chunks)
        # One leaves, one may come.
        await inside[0].close()
        await server.metric_becomes("sluice_sessions", 2)
        async with text_socket(server) as another:
            assert await answers(another, echo_chunks)


async def test_one_connection_too_many_from_an_address_is_told_4429(
    per_address: "Server", text_socket: "OpenText", raw: "Raw", echo_chunks: Chunks, how_closed: "HowClosed"
) -> None:
    async with text_socket(per_address) as first, text_socket(per_address) as second:
        async with text_socket(per_address) as third:
            assert await how_closed(third) == (4429, "too many connections from your address")
        elsewhere = await raw.connect(per_address, source="127.0.0.2")
        await elsewhere.send(raw.upgrade_request("/ws"))
        assert "101" in await elsewhere.read_head()
        await elsewhere.send_text("hello")
        assert [await elsewhere.text() for _ in range(5)] == echo_chunks("hello")
        elsewhere.close()
        assert await answers(first, echo_chunks)
        await second.close()
        await per_address.metric_becomes("sluice_sessions", 1)
        async with text_socket(per_address) as third:
            assert await answers(third, echo_chunks)


async def test_one_message_too_many_is_refused_and_the_others_are_answered(
    server: "Server", text_socket: "OpenText", echo_chunks: Chunks
) -> None:
    async with text_socket(server) as socket:
        for number in range(3):
            await socket.send(str(number))
        frames = [await socket.recv() for _ in range(11)]
        refused = [str(frame) for frame in frames if str(frame).startswith("error: ")]
        assert len(refused) == 1
        assert "2 messages in flight already" in refused[0]
        frames.remove(refused[0])
        assert frames == echo_chunks("0") + echo_chunks("1")
        assert await answers(socket, echo_chunks)


async def test_lanes_and_resumed_answers_count_as_well(
    server: "Server", responses_socket: "OpenResponses"
) -> None:
    async with responses_socket(server) as socket:
        answer = await socket.ask("hello", model="echo")
        await socket.create("1", model="slow", stream_id="a")
        await socket.create("2", model="slow", stream_id="b")
        await socket.create("3", model="slow", stream_id="c")
        await socket.resume(answer.id, stream_id="d")
        errors, ended = [], 0
        while ended < 2:
            event = await socket.event()
            ended += event["type"] == "response.completed"
            if event["type"] == "error":
                errors.append((event["stream_id"], event["status"], event["error"]["code"]))
        assert errors == [("c", 429, "too_many_in_flight"), ("d", 429, "too_many_in_flight")]
        await socket.resume(answer.id)
        assert (await socket.rest()).events == answer.events


async def test_a_full_queue_is_told(per_address: "Server", responses_socket: "OpenResponses") -> None:
    async with responses_socket(per_address) as socket:
        await socket.create("1", model="single", stream_id="0")
        running = (await socket.until("response.in_progress"))[0]["response"]["id"]
        for lane in range(1, 6):
            await socket.create("2", model="single", stream_id=str(lane))
        refused: list[tuple[str, int, str]] = []
        waiting: dict[str, str] = {}
        while len(refused) + len(waiting) < 5:
            event = await socket.event()
            if event["type"] == "error":
                refused.append((event["stream_id"], event["status"], event["error"]["code"]))
            elif event["type"] == "response.queued":
                waiting[event["stream_id"]] = event["response"]["id"]
        assert list(waiting) == ["1", "2", "3", "4"]
        assert refused == [("5", 503, "queue_full")]
        # Room again as soon as they are gone.
        for response_id in (*waiting.values(), running):
            await socket.cancel(response_id)
        for _ in range(5):
            await socket.rest()
        await socket.create("6", model="echo", stream_id="0")
        assert (await socket.rest()).response["status"] == "completed"


async def test_a_burst_for_an_idle_engine_is_not_taken_for_a_full_queue(
    per_address: "Server", raw: "Raw"
) -> None:
    """The engine has room for all; they only arrive faster than it can take them out of the queue."""
    await per_address.metric_becomes("sluice_sessions", 0)
    count = 40
    socket = await raw.open(per_address, "/v1/responses")
    fields = {"type": "response.create", "model": "echo", "input": "hello"}
    events = [json.dumps({**fields, "stream_id": str(lane)}) for lane in range(count)]
    await socket.send(b"".join(raw.frame(1, event.encode()) for event in events))
    ended = 0
    while ended < count:
        event = json.loads(await socket.text())
        assert event["type"] != "error", event
        ended += event["type"] == "response.completed"
    socket.close()


@pytest.mark.parametrize(
    "origin", ["https://evil.example.org", "http://chat.example.org", "null", "https://chat.example.org.evil"]
)
@pytest.mark.parametrize("path", ["/ws", "/v1/responses"])
async def test_a_strange_page_is_told_4403(
    server: "Server", origin: str, path: str, how_closed: "HowClosed"
) -> None:
    headers = {"Origin": origin}
    async with connect(server.ws(path), proxy=None, additional_headers=headers) as socket:
        assert await how_closed(socket) == (4403, "pages of this origin may not connect")


@pytest.mark.parametrize("origin", ["https://chat.example.org", "HTTPS://chat.example.org/", None])
async def test_an_allowed_page_and_a_program_may_come_in(
    server: "Server", echo_chunks: Chunks, origin: str | None
) -> None:
    headers = {"Origin": origin} if origin else {}
    async with connect(server.ws(), proxy=None, additional_headers=headers) as socket:
        assert await answers(socket, echo_chunks)


async def test_without_a_list_only_pages_of_this_host_may_come_in(
    per_address: "Server", echo_chunks: Chunks, how_closed: "HowClosed"
) -> None:
    await per_address.metric_becomes("sluice_sessions", 0)
    own = {"Origin": f"http://127.0.0.1:{per_address.port}"}
    async with connect(per_address.ws(), proxy=None, additional_headers=own) as socket:
        assert await answers(socket, echo_chunks)
    other = {"Origin": f"http://127.0.0.1:{per_address.port + 1}"}
    async with connect(per_address.ws(), proxy=None, additional_headers=other) as socket:
        assert (await how_closed(socket))[0] == 4403


async def test_a_refused_connection_is_not_heard(server: "Server", raw: "Raw") -> None:
    before = await server.metrics()
    socket = await raw.open(server, "/v1/responses", headers=[("Origin", "https://evil.example.org")])
    create = {"type": "response.create", "model": "echo", "input": "hello"}
    await socket.send_text(json.dumps(create))
    assert await socket.close_code() == 4403
    after = await server.metrics()
    labels = {"model": "echo", "status": "completed"}
    name = "sluice_responses_total"
    assert after.value(name, **labels) == before.value(name, **labels)
