"""Whatever a client sends: it gets a clear answer, and a bystander streams on undisturbed."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

if TYPE_CHECKING:
    from test.e2e.conftest import (
        JSON,
        HowClosed,
        OpenResponses,
        OpenText,
        Raw,
        RawSocket,
        RunServer,
        Server,
        Watch,
    )

Chunks = Callable[..., list[str]]

STEADY = 10
MAX_MESSAGE_BYTES = 1 << 20
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    models = [
        {"name": "echo", "generator": "echo", "options": {"interval": "2ms"}},
        {"name": "steady", "generator": "echo", "options": {"chunks": STEADY, "interval": "5ms"}},
    ]
    session = {"ping_interval": "300ms", "pong_timeout": "500ms", "grace": "0"}
    with run_server({"session": session, "models": models}) as server:
        yield server


@pytest.fixture(autouse=True)
async def _unharmed(server: "Server", bystander: "Watch") -> AsyncIterator[None]:
    """Somebody else streams meanwhile; and afterwards nobody is left behind."""
    async with bystander(server, "steady", STEADY) as other:
        yield
    assert other.largest_gap_s < 0.5, "somebody else had to wait"
    await server.metric_becomes("sluice_sessions", 0)


async def still_works(socket: "RawSocket", echo_chunks: Chunks) -> None:
    await socket.send_text("hello")
    assert [await socket.text() for _ in range(5)] == echo_chunks("hello")


# ── what is said in good form, but wrong ─────────────────────────────────────────────────────────

NO_JSON = {"status": 400, "code": "invalid_json", "param": None}
UNKNOWN_EVENT = {"status": 400, "code": "unknown_event", "param": "type"}


def invalid(param: str, code: str = "invalid_value", status: int = 400) -> "JSON":
    return {"status": status, "code": code, "param": param}


def create(**fields: object) -> str:
    return json.dumps({"type": "response.create", "input": "hello", **fields})


def resume(**fields: object) -> str:
    return json.dumps({"type": "response.resume", **fields})


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("hello", NO_JSON),
        ("", NO_JSON),
        ("{", NO_JSON),
        ("[" * 100_000, NO_JSON),
        ('{"type": "response.create", "input": "a", "temperature": NaN}', NO_JSON),
        ('{"type": "response.create", "input": "\\ud800"}', NO_JSON),
        ("[1, 2]", NO_JSON),
        ("null", NO_JSON),
        ('"response.create"', NO_JSON),
        ("{}", UNKNOWN_EVENT),
        ('{"type": "response.steer"}', UNKNOWN_EVENT),
        ('{"type": 7}', UNKNOWN_EVENT),
        ('{"type": {"type": "response.create"}}', UNKNOWN_EVENT),
        ('{"type": "response.create"}', invalid("input")),
        (create(input=None), invalid("input")),
        (create(input=7), invalid("input")),
        (create(input=""), invalid("input", "invalid_request")),
        (create(input=[]), invalid("input", "invalid_request")),
        (create(input=[{"role": "wizard", "content": "x"}]), invalid("input[0].role")),
        (create(input=[{"role": "user", "content": 7}]), invalid("input[0].content")),
        (create(model="gpt-9"), invalid("model", "model_not_found", 404)),
        (create(model=[]), invalid("model")),
        (create(model=["echo", "gpt-9"]), invalid("model", "model_not_found", 404)),
        (create(temperature=2.01), invalid("temperature")),
        (create(temperature=-0.1), invalid("temperature")),
        (create(temperature="hot"), invalid("temperature")),
        (create(temperature=10**30), invalid("temperature")),
        (create(top_p=1.01), invalid("top_p")),
        (create(max_output_tokens=0), invalid("max_output_tokens")),
        (create(max_output_tokens=1.5), invalid("max_output_tokens")),
        (create(max_output_tokens=True), invalid("max_output_tokens")),
        (create(metadata={"a": 1}), invalid("metadata.a")),
        (create(metadata={"a": "x" * 513}), invalid("metadata.a")),
        (create(stream_id=""), invalid("stream_id")),
        (create(stream_id="x" * 65), invalid("stream_id")),
        (create(truncation="maybe"), invalid("truncation")),
        (create(stream=False), invalid("stream")),
        (create(store="yes"), invalid("store")),
        (
            create(previous_response_id="resp_none"),
            invalid("previous_response_id", "previous_response_not_found", 404),
        ),
        (create(tools=[{"type": "web_search"}]), invalid("tools[0].type", "unsupported_parameter")),
        (create(tools=[{"type": "function", "name": "f"}]), invalid("tools", "unsupported_parameter")),
        (create(tool_choice="required"), invalid("tool_choice")),
        (create(reasoning={"effort": "low"}), invalid("reasoning_effort", "unsupported_parameter")),
        (create(seed=2**63), invalid("seed")),
        (create(stop=["x"] * 17), invalid("stop")),
        (create(background=True, store=False), invalid("background", "invalid_request")),
        (create(anything=1), invalid("anything", "unsupported_parameter")),
        (resume(), invalid("response_id")),
        (resume(response_id=7), invalid("response_id")),
        (resume(response_id="resp_none"), invalid("response_id", "response_not_found", 404)),
        (resume(response_id="resp_none", starting_after=-1), invalid("starting_after")),
        (resume(response_id="resp_none", starting_after=2**64), invalid("starting_after")),
        (resume(response_id="resp_none", starting_after="1"), invalid("starting_after")),
        ('{"type": "response.cancel"}', invalid("response_id")),
        (
            '{"type": "response.cancel", "response_id": "resp_none"}',
            invalid("response_id", "response_not_found", 404),
        ),
    ],
)
async def test_a_bad_event_is_answered_and_the_socket_goes_on(
    server: "Server", responses_socket: "OpenResponses", message: str, expected: "JSON"
) -> None:
    async with responses_socket(server) as socket:
        await socket.connection.send(message)
        event = await socket.event()
        assert event["type"] == "error"
        error = event["error"]
        assert {"status": event["status"], "code": error["code"], "param": error["param"]} == expected
        assert error["type"] == "invalid_request_error"
        assert 10 < len(error["message"]) < 1000
        assert "Traceback" not in error["message"]
        assert (await socket.ask("hello", model="echo")).response["status"] == "completed"


async def test_an_unsupported_include_is_refused_by_name(
    server: "Server", responses_socket: "OpenResponses"
) -> None:
    async with responses_socket(server) as socket:
        await socket.create("hello", include=["reasoning.encrypted_content"])
        error = await socket.error()
        assert error["code"] == "unsupported_parameter"
        assert error["param"].startswith("include")


@pytest.mark.parametrize("message", ["", "   ", "\n"])
async def test_an_empty_text_is_told(server: "Server", raw: "Raw", echo_chunks: Chunks, message: str) -> None:
    socket = await raw.open(server)
    await socket.send_text(message)
    assert await socket.text() == "error: the message is empty"
    await still_works(socket, echo_chunks)
    socket.close()


@pytest.mark.parametrize("path", ["/ws", "/v1/responses"])
async def test_a_binary_frame_is_told(server: "Server", raw: "Raw", path: str) -> None:
    socket = await raw.open(server, path)
    await socket.send(raw.frame(BINARY, b"\x00\xff" * 100))
    assert "binary frames are not understood here" in await socket.text()
    await socket.send_text("hello")
    assert await socket.text()
    socket.close()


# ── sizes and shapes of messages ─────────────────────────────────────────────────────────────────


async def test_the_largest_message_that_is_allowed_is_answered(
    server: "Server", text_socket: "OpenText", echo_chunks: Chunks
) -> None:
    message = "x" * MAX_MESSAGE_BYTES
    async with text_socket(server) as socket:
        await socket.send(message)
        assert [await socket.recv() for _ in range(5)] == echo_chunks(message)


@pytest.mark.parametrize("path", ["/ws", "/v1/responses"])
@pytest.mark.parametrize("size", [MAX_MESSAGE_BYTES + 1, 2 << 20])
async def test_a_message_that_is_too_big_is_told_1009(
    server: "Server", how_closed: "HowClosed", path: str, size: int
) -> None:
    async with connect(server.ws(path), proxy=None) as socket:
        assert (await how_closed(socket, "x" * size)).code == 1009


async def test_the_openai_client_is_told_1009(server: "Server") -> None:
    async def ask_too_much() -> None:
        await connection.response.create(model="echo", input="x" * (2 << 20))
        await connection.recv()

    async with (
        AsyncOpenAI(base_url=server.http("/v1"), api_key="unused") as client,
        client.responses.connect() as connection,
    ):
        with pytest.raises(ConnectionClosedError) as closed:
            await ask_too_much()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


async def test_fragments_are_one_message(server: "Server", raw: "Raw", echo_chunks: Chunks) -> None:
    socket = await raw.open(server)
    message = "€uro " * 50
    parts = [message.encode()[i : i + 7] for i in range(0, len(message.encode()), 7)]
    await socket.send(raw.frame(TEXT, parts[0], fin=False))
    for part in parts[1:-1]:
        await socket.send(raw.frame(0, part, fin=False) + raw.frame(PING, b"in between"))
        assert await socket.frame() == (PONG, b"in between")
    await socket.send(raw.frame(0, parts[-1]))
    assert [await socket.text() for _ in range(5)] == echo_chunks(message)
    socket.close()


async def test_fragments_are_counted_together(server: "Server", raw: "Raw") -> None:
    socket = await raw.open(server)
    await socket.send(raw.frame(TEXT, b"x" * 1000, fin=False))
    sender = asyncio.create_task(_send_without_end(socket, raw.frame(0, b"x" * 200_000, fin=False)))
    assert await socket.close_code() == 1009
    await sender
    socket.close()


async def _send_without_end(socket: "RawSocket", data: bytes) -> None:
    try:
        for _ in range(100):
            await socket.send(data)
    except ConnectionError:
        return


async def test_a_frame_that_announces_a_terabyte_is_told_1009(server: "Server", raw: "Raw") -> None:
    socket = await raw.open(server)
    await socket.send(bytes((0x81, 0xFF)) + (1 << 40).to_bytes(8, "big") + b"mask" + b"x" * 1000)
    assert await socket.close_code() == 1009


# ── what is no WebSocket ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/ws", "/v1/responses"])
@pytest.mark.parametrize("payload", [b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", "€".encode()[:2]])
async def test_text_that_is_not_utf8_is_told_1007(
    server: "Server", raw: "Raw", path: str, payload: bytes
) -> None:
    socket = await raw.open(server, path)
    await socket.send(raw.frame(TEXT, payload))
    assert await socket.close_code() == 1007


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reserved bit 1", {"opcode": TEXT, "payload": b"hello", "reserved": 4}),
        ("reserved bit 2", {"opcode": TEXT, "payload": b"hello", "reserved": 2}),
        ("reserved bit 3", {"opcode": TEXT, "payload": b"hello", "reserved": 1}),
        ("reserved opcode", {"opcode": 3, "payload": b"hello"}),
        ("reserved control opcode", {"opcode": 11, "payload": b""}),
        ("long ping", {"opcode": PING, "payload": b"x" * 126}),
        ("fragmented ping", {"opcode": PING, "payload": b"", "fin": False}),
        ("continuation of nothing", {"opcode": 0, "payload": b"hello"}),
        ("close with half a code", {"opcode": CLOSE, "payload": b"\x03"}),
        ("close with a code that may not be sent", {"opcode": CLOSE, "payload": b"\x03\xed"}),
    ],
)
async def test_a_breach_of_the_protocol_is_told_1002(
    server: "Server", raw: "Raw", name: str, options: dict[str, Any]
) -> None:
    socket = await raw.open(server)
    await socket.send(raw.frame(**options))
    assert await socket.close_code() == 1002, name


async def test_noise_after_the_upgrade_ends_the_connection(server: "Server", raw: "Raw") -> None:
    socket = await raw.open(server)
    await socket.send(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 10)
    assert await socket.close_code() in (1002, 1009)


UPGRADE = b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        UPGRADE + b"Connection: Upgrade\r\n\r\n",
        UPGRADE + b"Connection: Upgrade\r\nSec-WebSocket-Version: 12\r\n" + KEY + b"\r\n",
        UPGRADE + b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n\r\n",
        UPGRADE + b"Sec-WebSocket-Version: 13\r\n" + KEY + b"\r\n",
        b"GET /ws HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello",
        b"hello\r\n\r\n",
    ],
)
async def test_a_bad_handshake_is_refused_with_400(
    server: "Server", raw: "Raw", request_bytes: bytes
) -> None:
    socket = await raw.connect(server)
    await socket.send(request_bytes)
    assert (await socket.read_head()).split(" ")[1] in ("400", "426", "431")
    socket.close()


@pytest.mark.parametrize("reset", [False, True])
async def test_leaving_in_the_middle_of_the_handshake_harms_nobody(
    server: "Server", raw: "Raw", reset: bool
) -> None:
    request = raw.upgrade_request("/ws")
    for size in (0, 1, 40, len(request) - 1, len(request)):
        for _ in range(5):
            socket = await raw.connect(server)
            await socket.send(request[:size])
            socket.close(reset=reset)
    # And right behind a message.
    for _ in range(5):
        socket = await raw.open(server)
        await socket.send_text("hello")
        socket.close(reset=reset)


# ── floods and silence ───────────────────────────────────────────────────────────────────────────


async def test_some_pings_are_all_answered(server: "Server", raw: "Raw", echo_chunks: Chunks) -> None:
    socket = await raw.open(server)
    await socket.send(b"".join(raw.frame(PING, b"%d" % number) for number in range(500)))
    for number in range(500):
        opcode, payload = await socket.frame()
        if opcode == PING:
            opcode, payload = await socket.frame()
        assert (opcode, payload) == (PONG, b"%d" % number)
    await still_works(socket, echo_chunks)
    socket.close()


async def test_a_flood_of_pings_is_closed(server: "Server", raw: "Raw") -> None:
    socket = await raw.open(server)
    flood = b"".join(raw.frame(PING, b"x" * 125) for _ in range(500))
    sender = asyncio.create_task(_send_without_end(socket, flood))
    assert await socket.close_code() == 4429
    await sender


async def test_a_flood_of_pings_without_reading_harms_nobody(server: "Server", raw: "Raw") -> None:
    socket = await raw.open(server, receive_buffer=4096)
    flood = b"".join(raw.frame(PING, b"x" * 125) for _ in range(500))
    await _send_without_end(socket, flood)
    await server.metric_becomes("sluice_sessions", 1)


@pytest.mark.parametrize("path", ["/ws", "/v1/responses"])
async def test_thousands_of_tiny_messages_are_each_answered(server: "Server", raw: "Raw", path: str) -> None:
    """Nothing is read until all are sent: eight run or wait, the others are refused."""
    count = 5000
    socket = await raw.open(server, path)
    message = b"x" if path == "/ws" else create(model="echo").encode()
    await socket.send(b"".join(raw.frame(TEXT, message) for _ in range(count)))
    ended = refused = 0
    while ended + refused < count:
        text = await socket.text()
        if path == "/ws":
            ended += text == "chunk 5: x"
            refused += text.startswith("error: this connection has 8 messages in flight already")
        else:
            event = json.loads(text)
            ended += event["type"] == "response.completed"
            if event["type"] == "error":
                refused += 1
                assert (event["status"], event["error"]["code"]) == (429, "too_many_in_flight")
    assert ended >= 8
    assert refused > 0
    socket.close()


async def test_a_half_open_peer_is_dropped_and_others_are_not(
    server: "Server", raw: "Raw", text_socket: "OpenText", echo_chunks: Chunks
) -> None:
    async with text_socket(server) as alive:
        dead = await raw.open(server)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert (await dead.frame()).opcode == PING
        assert await dead.close_code() is None, "a dead peer cannot be told anything"
        assert 0.7 < loop.time() - began < 3
        await alive.send("hello")
        assert [await alive.recv() for _ in range(5)] == echo_chunks("hello")


async def test_a_peer_that_answers_pings_stays(server: "Server", raw: "Raw", echo_chunks: Chunks) -> None:
    socket = await raw.open(server)
    for _ in range(4):
        opcode, payload = await socket.frame()
        assert opcode == PING
        await socket.send(raw.frame(PONG, payload))
    await still_works(socket, echo_chunks)
    socket.close()


async def test_a_message_after_the_close_frame_is_not_answered(server: "Server", raw: "Raw") -> None:
    socket = await raw.open(server)
    await socket.send(raw.frame(CLOSE, b"\x03\xe8") + raw.frame(TEXT, b"one more"))
    assert (await socket.frame()).opcode == CLOSE
    with pytest.raises((EOFError, ConnectionError)):
        await socket.frame()


async def test_nothing_follows_the_server_s_close_frame(server: "Server", raw: "Raw") -> None:
    socket = await raw.open(server)
    breaches = [raw.frame(TEXT, b"\xff"), raw.frame(TEXT, b"x", reserved=4), raw.frame(BINARY, b"x")]
    await socket.send(b"".join(breaches))
    assert await socket.close_code() == 1007


async def test_a_close_without_a_code_is_answered(
    server: "Server", text_socket: "OpenText", raw: "Raw"
) -> None:
    socket = await raw.open(server)
    await socket.send(raw.frame(CLOSE))
    assert await socket.close_code() in (1000, None)
    async with text_socket(server) as polite:
        await polite.close()
        with pytest.raises(ConnectionClosed):
            await polite.recv()
