"""Clients that do not read: they cost the others nothing, and lose nothing themselves."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from test.e2e.conftest import JSON, OpenResponses, Raw, RawSocket, RunServer, Server, Watch

Chunks = Callable[..., list[str]]

WRITE_TIMEOUT_S = 1.5
COUNT, MESSAGE = 3000, "0123456789" * 100
"""An answer of 3 MB: much more than all buffers between the engine and a client together."""
SMALL_WINDOW = 4096
STEADY = 20
MODELS = [
    {"name": "big", "generator": "echo", "options": {"chunks": COUNT, "interval": "0"}},
    {"name": "steady", "generator": "echo", "options": {"chunks": STEADY, "interval": "10ms"}},
]


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    session = {"write_timeout": "1500ms", "on_disconnect": "continue"}
    with run_server({"session": session, "models": MODELS}) as server:
        yield server


@pytest.fixture(scope="module")
def pinging_server(run_server: "RunServer") -> Iterator["Server"]:
    with run_server(
        {"session": {"ping_interval": "300ms", "pong_timeout": "700ms"}, "models": MODELS}
    ) as server:
        yield server


async def whole_answer_is_in_the_log(server: "Server", before: float) -> None:
    """So that everything that follows comes to a reader that lags as far as one can."""
    await server.metric_becomes("sluice_responses_total", before + 1, model="big", status="completed")


async def completed(server: "Server") -> float:
    return (await server.metrics()).value("sluice_responses_total", model="big", status="completed")


async def read_text(socket: "RawSocket", size: int) -> str:
    text = ""
    while len(text) < size:
        text += await socket.text()
    return text


async def read_events(socket: "RawSocket", events: "list[JSON]") -> None:
    """Add to `events` until the response ends. Raises EOFError."""
    while not events or events[-1]["type"] != "response.completed":
        events.append(json.loads(await socket.text()))


async def test_a_text_client_that_pauses_gets_everything_once(
    server: "Server", raw: "Raw", bystander: "Watch", echo_chunks: Chunks
) -> None:
    whole = "".join(echo_chunks(MESSAGE, COUNT))
    before = await completed(server)
    async with bystander(server, "steady", STEADY) as others:
        socket = await raw.open(server, "/ws?model=big", receive_buffer=SMALL_WINDOW)
        await socket.send_text(MESSAGE)
        await whole_answer_is_in_the_log(server, before)
        assert await read_text(socket, len(whole)) == whole
        # Nothing comes twice or late: the next thing it hears is its own close.
        await socket.send(raw.frame(8, b"\x03\xe8"))
        assert (await socket.frame()).payload == b"\x03\xe8"
        socket.close()
    assert others.largest_gap_s < 0.5


async def test_a_responses_client_that_pauses_gets_every_number_joined(
    server: "Server", raw: "Raw", bystander: "Watch", echo_chunks: Chunks
) -> None:
    whole = "".join(echo_chunks(MESSAGE, COUNT))
    before = await completed(server)
    async with bystander(server, "steady", STEADY) as others:
        socket = await raw.open(server, "/v1/responses", receive_buffer=SMALL_WINDOW)
        await socket.send_text(json.dumps({"type": "response.create", "model": "big", "input": MESSAGE}))
        await whole_answer_is_in_the_log(server, before)
        events: list[JSON] = []
        await read_events(socket, events)
        socket.close()
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    # 5 events before the deltas, 4 behind them; of the deltas, many in one frame under the last number.
    assert numbers[:5] == [0, 1, 2, 3, 4]
    assert numbers[-4:] == list(range(COUNT + 5, COUNT + 9))
    assert COUNT + 4 in numbers
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert len(deltas) < COUNT / 2
    said = ""
    for event in deltas:
        said += event["delta"]
        # Up to exactly the chunk of its number: who resumes behind it misses nothing.
        assert said == whole[: len(said)]
        assert said.endswith(MESSAGE)
        assert said.count("chunk ") == event["sequence_number"] - 4
    assert said == whole
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == whole
    assert others.largest_gap_s < 0.5


async def test_a_slow_but_steady_reader_is_never_closed(
    server: "Server", raw: "Raw", echo_chunks: Chunks
) -> None:
    whole = "".join(echo_chunks(MESSAGE, COUNT)).encode()
    socket = await raw.open(server, "/ws?model=big", receive_buffer=SMALL_WINDOW)
    await socket.send_text(MESSAGE)
    # Long enough for the write deadline to pass several times, had it not always moved a little.
    began, got = time.monotonic(), 0
    chunks: list[bytes] = []
    while time.monotonic() < began + 3 * WRITE_TIMEOUT_S and got < len(whole) / 2:
        chunks.append(await socket.receive(4096))
        assert chunks[-1], "closed although it reads"
        got += len(chunks[-1])
        await asyncio.sleep(0.012)
    assert time.monotonic() > began + 1.5 * WRITE_TIMEOUT_S, "read too fast to show anything"
    socket.unread(b"".join(chunks))
    assert await read_text(socket, len(whole)) == whole.decode()
    socket.close()


async def test_a_lagging_client_that_speaks_is_not_taken_for_dead(
    pinging_server: "Server", raw: "Raw", echo_chunks: Chunks
) -> None:
    """Its pongs stand behind its message, and that waits until it has caught up."""
    whole = "".join(echo_chunks(MESSAGE, COUNT)).encode()
    socket = await raw.open(pinging_server, "/ws?model=big", receive_buffer=SMALL_WINDOW)
    # Idle until a ping has come, unanswered for now.
    assert (await socket.frame()).opcode == 9
    await socket.send_text(MESSAGE)
    chunks = [await socket.receive(4096)]
    await socket.send_text("are you still there?")
    await socket.send(raw.frame(10))
    began, got = time.monotonic(), 0
    while time.monotonic() < began + 1.5:
        chunks.append(await socket.receive(4096))
        assert chunks[-1], "taken for dead"
        got += len(chunks[-1])
        await asyncio.sleep(0.012)
    socket.unread(b"".join(chunks))
    assert await read_text(socket, len(whole)) == whole.decode()
    socket.close()


async def test_a_client_that_stops_reading_is_closed_and_can_resume(
    server: "Server",
    raw: "Raw",
    responses_socket: "OpenResponses",
    bystander: "Watch",
    echo_chunks: Chunks,
) -> None:
    whole = "".join(echo_chunks(MESSAGE, COUNT))
    async with bystander(server, "steady", STEADY) as others:
        socket = await raw.open(server, "/v1/responses", receive_buffer=SMALL_WINDOW)
        await socket.send_text(json.dumps({"type": "response.create", "model": "big", "input": MESSAGE}))
        events: list[JSON] = [json.loads(await socket.text())]
        # The deadline counts from the last progress, which is looked at once per deadline.
        await asyncio.sleep(2 * WRITE_TIMEOUT_S + 0.5)
        with pytest.raises(EOFError, match="closed with 4408: reading too slowly; connect again and resume"):
            await read_events(socket, events)
        socket.close()
        async with responses_socket(server) as again:
            number = events[-1]["sequence_number"]
            await again.resume(events[0]["response"]["id"], starting_after=number)
            answer = await again.rest(events)
    assert answer.numbers == sorted(set(answer.numbers))
    assert answer.text == answer.output_text == whole
    assert others.largest_gap_s < 0.5


async def test_many_that_never_read_cost_little_and_are_dropped(
    server: "Server",
    raw: "Raw",
    responses_socket: "OpenResponses",
    bystander: "Watch",
) -> None:
    count = 40
    before = await server.metrics()
    async with responses_socket(server) as socket:
        answer = await socket.ask(MESSAGE, model="big")
    used = server.resident_bytes()
    async with bystander(server, "steady", STEADY) as others:
        sockets = []
        for _ in range(count):
            sockets.append(await raw.open(server, "/v1/responses", receive_buffer=SMALL_WINDOW))
            resume = {"type": "response.resume", "response_id": answer.id}
            await sockets[-1].send_text(json.dumps(resume))
        closed = before.value("sluice_session_closes_total", code="4408")
        await server.metric_becomes("sluice_session_closes_total", closed + count, code="4408")
        # Each would have cost 3 MB and more, had it been written ahead.
        assert server.resident_bytes() - used < count * 1_000_000
        for raw_socket in sockets:
            raw_socket.close()
    assert others.largest_gap_s < 0.5
