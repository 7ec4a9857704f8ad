"""The load tester against a server that behaves, or misbehaves, as each test wants."""

import asyncio
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
from aiohttp import WSCloseCode, WSMsgType, web

from cmd.loadtest import client, dialects
from cmd.loadtest.options import Options, parse_options
from cmd.loadtest.run import LoadTest
from cmd.loadtest.stats import Tally
from cmd.loadtest.summary import summarize

ROOT = Path(__file__).parents[2]
JSON = dict[str, object]


@dataclass
class Visit:
    """One connection as the server sees it. `asked` counts its messages from 1."""

    socket: web.WebSocketResponse
    request: web.Request
    number: int
    asked: int = 0

    def drop(self) -> None:
        """Cut the TCP connection: no close frame."""
        assert self.request.transport is not None
        self.request.transport.abort()


Behaviour = Callable[[Visit, str], Awaitable[None]]


@dataclass
class FakeServer:
    behave: Behaviour
    base: str = ""
    open_now: int = 0
    most_open: int = 0
    visits: list[Visit] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(autoping=False)
        await websocket.prepare(request)
        visit = Visit(websocket, request, len(self.visits) + 1)
        self.visits.append(visit)
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            await self._serve(visit)
        finally:
            self.open_now -= 1
        return websocket

    async def _serve(self, visit: Visit) -> None:
        async for message in visit.socket:
            if message.type is WSMsgType.PING:
                await visit.socket.pong(message.data)
            elif message.type is WSMsgType.TEXT:
                visit.asked += 1
                self.heard.append(message.data)
                await self.behave(visit, message.data)


Serve = Callable[[Behaviour], Awaitable[FakeServer]]


@pytest_asyncio.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() - before <= {asyncio.current_task()}


@pytest_asyncio.fixture
async def serve(no_task_is_left: None) -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(behave: Behaviour) -> FakeServer:
            server = FakeServer(behave)
            app = web.Application()
            app.router.add_get("/ws", server.handle)
            app.router.add_get("/v1/responses", server.handle)
            runner = web.AppRunner(app, shutdown_timeout=1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0]
            server.base = f"ws://{host}:{port}"
            return server

        yield start


def sends(*frames: str) -> Behaviour:
    async def behave(visit: Visit, message: str) -> None:
        for frame in frames:
            await visit.socket.send_str(frame)

    return behave


async def echo(visit: Visit, message: str) -> None:
    for number in range(1, 6):
        await visit.socket.send_str(f"chunk {number}: {message}")


def chunks(*numbers: int) -> list[str]:
    return [f"chunk {number}: hello" for number in numbers]


def events(*changes: tuple[int, JSON], text: str = "one two three", end: str = "completed") -> list[JSON]:
    """A whole answer, with the events at the named places replaced."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    response = {"id": "resp_1", "output": [{"type": "message", "content": content}]}
    whole: list[JSON] = [
        {"type": "response.queued", "response": {}},
        {"type": "response.in_progress", "response": {}},
        {"type": "response.output_text.delta", "delta": "one "},
        {"type": "response.output_text.delta", "delta": "two "},
        {"type": "response.output_text.delta", "delta": "three"},
        {"type": "response.output_text.done", "text": "one two three"},
        {"type": f"response.{end}", "response": response},
    ]
    numbered = [event | {"sequence_number": number} for number, event in enumerate(whole)]
    for place, change in changes:
        numbered[place] = numbered[place] | change
    return numbered


def sends_events(answer: Sequence[JSON]) -> Behaviour:
    return sends(*(orjson.dumps(event).decode() for event in answer))


def options(server: FakeServer, *more: str) -> Options:
    return parse_options(["-url", f"{server.base}/ws", "-connections", "1", "-timeout", "10s", *more])


async def measure(test: Options) -> Tally:
    tally = Tally()
    await LoadTest(test, (None,), tally).run(lambda _: None)
    return tally


async def failures_of_text(serve: Serve, behave: Behaviour, *more: str) -> dict[str, int]:
    return dict((await measure(options(await serve(behave), *more))).failures)


async def failures_of_responses(serve: Serve, answer: Sequence[JSON], *more: str) -> dict[str, int]:
    server = await serve(sends_events(answer))
    return dict((await measure(options(server, "-dialect", "responses", *more))).failures)


async def test_every_answer_of_a_good_server_is_counted(serve: Serve) -> None:
    server = await serve(echo)
    test = options(server, "-connections", "7", "-rounds", "3", "-ramp", "0")
    tally = await measure(test)
    assert (tally.opened, tally.sent, tally.answered, tally.failed) == (7, 21, 21, 0)
    assert tally.frames == 21 * 5
    assert (tally.first_chunk.count, tally.between_chunks.count) == (21, 21 * 4)
    assert tally.open_now == 0
    assert server.heard == ["hello"] * 21
    assert server.visits[0].request.query["model"] == "echo"
    assert summarize(test, tally, interrupted=False).passed


async def test_connections_stay_open_until_all_are_done(serve: Serve) -> None:
    server = await serve(echo)
    tally = await measure(options(server, "-connections", "6", "-ramp", "60"))
    assert server.most_open == tally.most_open == 6


async def test_joined_chunks_are_whole(serve: Serve) -> None:
    joined = sends("".join(chunks(1, 2)), *chunks(3), "".join(chunks(4, 5)))
    assert await failures_of_text(serve, joined, "-rounds", "2") == {}


async def test_chunks_cut_anywhere_are_whole(serve: Serve) -> None:
    whole = "".join(chunks(1, 2, 3, 4, 5))
    assert await failures_of_text(serve, sends(*whole)) == {}


@pytest.mark.parametrize(
    ("frames", "cause"),
    [
        (chunks(1, 2, 4, 5), dialects.GAP),
        (["".join(chunks(1, 2, 4, 5))], dialects.GAP),
        (chunks(1, 2, 2, 3, 4, 5), dialects.TWICE),
        (["".join(chunks(1, 2, 3, 4, 5, 5))], dialects.TWICE),
        (chunks(1, 3, 2, 4, 5), dialects.GAP),
        (chunks(2), dialects.GAP),
        (["Hello! How can I help?"], dialects.UNEXPECTED_TEXT),
        (chunks(1, 2, 9), dialects.UNEXPECTED_TEXT),
        (["chunk 1: hello", "chunk 2: help!"], dialects.UNEXPECTED_TEXT),
    ],
)
async def test_lost_and_repeated_text_is_found(serve: Serve, frames: list[str], cause: str) -> None:
    assert await failures_of_text(serve, sends(*frames)) == {cause: 1}


async def test_a_chunk_after_the_end_is_found(serve: Serve) -> None:
    causes = await failures_of_text(serve, sends(*chunks(1, 2, 3, 4, 5, 5)))
    assert causes == {f"after the last answer: {dialects.AFTER_THE_END}": 1}


async def test_other_models_get_a_hint(serve: Serve) -> None:
    test = options(await serve(sends("Hi!")))
    summary = summarize(test, await measure(test), interrupted=False)
    assert "-dialect responses" in (summary.hint or "")
    assert not summary.passed


async def test_a_refusal_ends_the_answer_but_not_the_connection(serve: Serve) -> None:
    async def refuse_first(visit: Visit, message: str) -> None:
        await (sends("error: The queue is full.") if visit.asked == 1 else echo)(visit, message)

    tally = await measure(options(await serve(refuse_first), "-rounds", "3"))
    assert tally.failures == {"error: The queue is full.": 1}
    assert (tally.answered, tally.failed) == (2, 1)


async def test_one_failing_connection_does_not_stop_the_others(serve: Serve) -> None:
    async def close_second(visit: Visit, message: str) -> None:
        if visit.number == 2:
            await visit.socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"too many")
        else:
            await echo(visit, message)

    tally = await measure(options(await serve(close_second), "-connections", "4", "-rounds", "2"))
    assert tally.failures == {"closed with 1013: too many": 1}
    assert (tally.answered, tally.failed, tally.sent) == (6, 1, 7)


async def test_a_close_while_the_others_still_talk_is_a_failure(serve: Serve) -> None:
    async def answer_and_close(visit: Visit, message: str) -> None:
        await echo(visit, message)
        await visit.socket.close(code=WSCloseCode.SERVICE_RESTART)

    causes = await failures_of_text(serve, answer_and_close)
    assert causes == {"after the last answer: closed with 1012": 1}


async def test_a_cut_connection_has_no_close_code(serve: Serve) -> None:
    async def drop(visit: Visit, message: str) -> None:
        visit.drop()

    assert await failures_of_text(serve, drop) == {client.LOST: 1}


async def test_silence_is_a_timeout(serve: Serve) -> None:
    assert await failures_of_text(serve, sends(), "-timeout", "500ms") == {client.NO_ANSWER: 1}


async def test_an_answer_that_stops_short_is_a_timeout_of_its_own(serve: Serve) -> None:
    short = sends(*chunks(1, 2, 3))
    assert await failures_of_text(serve, short, "-timeout", "500ms") == {client.STOPPED_SHORT: 1}


async def test_pings_are_answered_while_waiting(serve: Serve) -> None:
    async def ping_first(visit: Visit, message: str) -> None:
        await visit.socket.ping(b"alive?")
        pong = await visit.socket.receive()
        assert (pong.type, pong.data) == (WSMsgType.PONG, b"alive?")
        await echo(visit, message)

    assert await failures_of_text(serve, ping_first) == {}


async def test_a_refused_upgrade_tells_its_status(serve: Serve) -> None:
    server = await serve(echo)
    test = parse_options(["-url", f"{server.base}/elsewhere", "-connections", "2"])
    assert (await measure(test)).failures == {"not opened: HTTP 404 instead of a WebSocket": 2}


async def test_no_server_is_connection_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        test = parse_options(["-url", f"ws://127.0.0.1:{free.getsockname()[1]}", "-connections", "2"])
        tally = await measure(test)
    assert tally.failures == {"not opened: connection refused": 2}


async def test_a_server_that_never_answers_the_handshake_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        tally = await measure(parse_options(["-url", url, "-connections", "1", "-timeout", "20ms"]))
    assert tally.failures == {"not opened: timeout": 1}


async def test_tls_to_a_server_without_it_is_told(serve: Serve) -> None:
    server = await serve(echo)
    tally = await measure(parse_options(["-url", server.base.replace("ws:", "wss:"), "-connections", "1"]))
    assert tally.failures == {"not opened: TLS handshake failed": 1}


async def test_connections_can_start_from_several_addresses(serve: Serve) -> None:
    server, tally = await serve(echo), Tally()
    test = options(server, "-connections", "4")
    await LoadTest(test, ("127.0.0.1", "127.0.0.1"), tally).run(lambda _: None)
    assert tally.answered == 4


async def test_responses_are_followed_to_their_end(serve: Serve) -> None:
    server = await serve(sends_events(events()))
    tally = await measure(options(server, "-dialect", "responses", "-rounds", "2", "-model", "tiny"))
    assert (tally.failures, tally.answered, tally.frames) == ({}, 2, 14)
    assert server.visits[0].request.path == "/v1/responses"
    assert orjson.loads(server.heard[0]) == {"type": "response.create", "model": "tiny", "input": "hello"}


async def test_joined_deltas_carry_the_last_number(serve: Serve) -> None:
    joined = [
        event for place, event in enumerate(events((4, {"delta": "one two three"}))) if place not in (2, 3)
    ]
    assert await failures_of_responses(serve, joined) == {}


async def test_queue_updates_have_no_number(serve: Serve) -> None:
    update: JSON = {"type": "response.queue", "position": 3}
    answer = events()
    assert await failures_of_responses(serve, [*answer[:1], update, *answer[1:]]) == {}


def without(answer: list[JSON], place: int) -> list[JSON]:
    return answer[:place] + answer[place + 1 :]


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (without(events(), 0), dialects.NUMBER_GAP),
        (without(events(), 5), dialects.NUMBER_GAP),
        (without(events(), 3), dialects.TEXT_DIFFERS),
        (events(text="one two"), dialects.TEXT_DIFFERS),
        ([*events()[:4], *events()[3:]], dialects.NUMBER_TWICE),
        ([*events()[:4], *events()[1:]], dialects.NUMBER_TWICE),
        ([*events()[:2], events()[3], events()[2], *events()[4:]], dialects.OUT_OF_ORDER),
        (events((0, {"sequence_number": None})), "event without a sequence_number"),
        (events((2, {"delta": None})), "delta event without a delta"),
    ],
)
async def test_lost_and_repeated_events_are_found(
    serve: Serve, answer: list[JSON], cause: str | None
) -> None:
    assert await failures_of_responses(serve, answer) == {cause: 1}


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (
            [{"type": "error", "error": {"code": "model_not_found", "message": "No."}}],
            "error event: model_not_found",
        ),
        ([{"type": "error"}], "error event: no code"),
        (
            events((6, {"response": {"error": {"code": "server_error"}}}), end="failed"),
            "response.failed: server_error",
        ),
        (
            events((6, {"response": {"incomplete_details": {"reason": "cancelled"}}}), end="incomplete"),
            "response.incomplete: cancelled",
        ),
    ],
)
async def test_what_the_server_refuses_is_counted_by_code(
    serve: Serve, answer: list[JSON], cause: str
) -> None:
    assert await failures_of_responses(serve, answer, "-rounds", "2") == {cause: 2}


async def test_reaching_the_token_limit_is_a_full_answer(serve: Serve) -> None:
    ended: JSON = {"response": {"incomplete_details": {"reason": "max_output_tokens"}}}
    assert await failures_of_responses(serve, events((6, ended), end="incomplete")) == {}


async def test_frames_that_are_not_json_are_a_failure(serve: Serve) -> None:
    server = await serve(sends("chunk 1: hello"))
    tally = await measure(options(server, "-dialect", "responses"))
    assert tally.failures == {"frame that is not JSON": 1}


async def start_program(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cmd.loadtest", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run_program(*arguments: str) -> tuple[int | None, str, str]:
    process = await start_program(*arguments)
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


async def test_the_program_exits_0_and_writes_the_report(serve: Serve, tmp_path: Path) -> None:
    server, report = await serve(echo), tmp_path / "report.html"
    code, output, errors = await run_program(
        *("-url", f"{server.base}/ws", "-connections", "5", "-rounds", "2", "-report", str(report))
    )
    assert (code, errors) == (0, "")
    assert "OK: 10 of 10 messages answered in full" in output
    assert re.search(r"^time to first chunk( +[\d.,]+){4}$", output, re.MULTILINE)
    assert report.read_text().count("<svg") == 5


async def test_the_program_exits_1_when_text_is_lost(serve: Serve) -> None:
    server = await serve(sends(*chunks(1, 2, 4, 5)))
    code, output, _ = await run_program("-url", f"{server.base}/ws", "-connections", "2")
    assert code == 1
    assert re.search(rf"^ +2  {dialects.GAP}$", output, re.MULTILINE)
    assert "FAILED: 0 of 2 messages" in output


async def test_the_program_exits_2_with_one_line_on_bad_options() -> None:
    code, output, errors = await run_program("-url", "ws://127.0.0.1", "-rounds", "many")
    assert (code, output) == (2, "")
    assert errors == "loadtest: argument -rounds/--rounds: 'many' is not a whole number, 1 to 1000000\n"


async def test_the_program_warns_when_the_server_may_be_elsewhere(serve: Serve) -> None:
    server = await serve(echo)
    url = server.base.replace("127.0.0.1", "0.0.0.0")
    code, _, errors = await run_program("-url", url, "-connections", "1")
    assert code == 0
    assert errors == "loadtest: 0.0.0.0 is not a loopback address: load only servers that are yours\n"


async def test_ctrl_c_prints_what_there_is_and_exits_130(serve: Serve) -> None:
    asked = asyncio.Event()

    async def answer_first_only(visit: Visit, message: str) -> None:
        if visit.asked == 1:
            await echo(visit, message)
        else:
            asked.set()

    server = await serve(answer_first_only)
    process = await start_program("-url", f"{server.base}/ws", "-connections", "1", "-rounds", "9")
    await asked.wait()
    process.send_signal(signal.SIGINT)
    output, errors = await process.communicate()
    assert (process.returncode, errors) == (130, b"")
    assert b"INTERRUPTED: 1 of 9 messages answered in full so far" in output
    assert b"9 asked, 1 answered, 0 failed, 7 never sent, 1 cut off" in output
