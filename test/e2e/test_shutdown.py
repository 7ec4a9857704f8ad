"""SIGTERM: what runs finishes, what waits is told, everybody is sent away with 1012, and the exit is 0."""

import asyncio
import contextlib
import http.client
import json
import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from test.e2e.conftest import JSON, HowClosed, OpenResponses, OpenText, Raw, RunServer, Server

Chunks = Callable[..., list[str]]

COUNT = 40
MODELS = [
    {"name": "slow", "generator": "echo", "options": {"chunks": COUNT, "interval": "20ms"}},
    {"name": "endless", "generator": "echo", "options": {"chunks": 10_000, "interval": "20ms"}},
    {"name": "big", "generator": "echo", "options": {"chunks": 3000, "interval": "0"}},
]


def config(**shutdown: str) -> "JSON":
    return {"models": MODELS, "shutdown": shutdown}


async def until_draining(connection: http.client.HTTPConnection) -> "JSON":
    """Ask on a connection from before, as a load balancer does, until it says that it drains."""

    def ask() -> Any:
        while True:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            report = json.loads(response.read())
            if response.status == 503:
                return report
            assert report["status"] == "ready"
            time.sleep(0.01)

    report: JSON = await asyncio.to_thread(ask)
    return report


async def test_running_answers_finish_and_everybody_is_told(
    run_server: "RunServer",
    text_socket: "OpenText",
    responses_socket: "OpenResponses",
    how_closed: "HowClosed",
    echo_chunks: Chunks,
) -> None:
    with run_server(config(timeout="20s")) as server:
        probe = http.client.HTTPConnection("127.0.0.1", server.port, timeout=15)
        async with (
            text_socket(server) as text,
            text_socket(server) as idle,
            text_socket(server) as late,
            responses_socket(server) as responses,
        ):
            with contextlib.closing(probe):
                probe.request("GET", "/readyz")
                probe.getresponse().read()
                await text.send("hello")
                await text.send("one that waits for its turn")
                assert await text.recv() == "chunk 1: hello"
                await responses.create("hello", model="slow")
                seen = await responses.until("response.output_text.delta")
                server.signal()

                assert (await until_draining(probe))["status"] == "draining"
                with pytest.raises(OSError, match="refused"):
                    socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
                await late.send("is anybody there?")
                assert await late.recv() == "error: the server is restarting; connect again in a moment"
                await responses.create("hello", stream_id="other")
                refused: list[JSON] = []
                while not refused or refused[-1]["type"] != "error":
                    refused.append(await responses.event())
                error = refused.pop()
                assert (error["status"], error["stream_id"]) == (503, "other")
                assert error["error"]["code"] == "restarting"

                frames = [await text.recv() for _ in range(COUNT)]
                refusal = "error: the server is restarting; connect again in a moment"
                assert frames.count(refusal) == 1, "the message that waited was not refused"
                frames.remove(refusal)
                assert frames == echo_chunks("hello", COUNT)[1:]
                answer = await responses.rest([*seen, *refused])
                assert answer.response["status"] == "completed"
                assert answer.numbers == list(range(len(answer.numbers)))
                assert answer.text == answer.output_text == "".join(echo_chunks("hello", COUNT))

                for connection in (text, idle, late, responses.connection):
                    assert (await how_closed(connection)).code == 1012
        assert await server.exit_status(5) == 0


async def test_the_openai_client_reconnects_to_the_next_server(
    run_server: "RunServer", echo_chunks: Chunks
) -> None:
    asked, texts = asyncio.Event(), [""]

    def reconnecting(event: Any) -> None:
        assert event.close_code == 1012
        asked.set()

    async def listen(connection: Any, first: "Server") -> None:
        async for event in connection:
            if event.type == "response.output_text.delta":
                texts[-1] += event.delta
                if texts == ["chunk 1: hello"]:
                    first.signal()
            elif event.type == "response.completed":
                texts.append("")
                if len(texts) == 3:
                    return

    # The second server goes down last: its client is gone by then.
    with contextlib.ExitStack() as servers:
        first = servers.enter_context(run_server(config(timeout="20s")))
        options: Any = {"on_reconnecting": reconnecting, "max_retries": 10, "max_delay": 0.5}
        async with (
            AsyncOpenAI(base_url=first.http("/v1"), api_key="unused") as client,
            client.responses.connect(**options) as connection,
            asyncio.TaskGroup() as tasks,
        ):
            await connection.response.create(model="slow", input="hello")
            tasks.create_task(listen(connection, first))
            await asked.wait()
            assert await first.exit_status() == 0
            await connection.response.create(model="slow", input="hello again")
            env = {"SLUICE_SERVER__HTTP__ADDR": f"127.0.0.1:{first.port}"}
            second = servers.enter_context(run_server(config(timeout="20s"), env=env, ready=False))
            second.port = first.port
    assert texts == ["".join(echo_chunks(text, COUNT)) for text in ("hello", "hello again")] + [""]


async def test_a_second_signal_exits_at_once(run_server: "RunServer", text_socket: "OpenText") -> None:
    with run_server(config(timeout="60s")) as server:
        async with text_socket(server, "/ws?model=endless") as socket:
            await socket.send("hello")
            await socket.recv()
            server.signal()
            # Draining: it would wait a minute for this answer.
            await nobody_listens(server.port)
            server.signal()
            assert await server.exit_status(3) == 1
        server.expected_status = 1


async def nobody_listens(port: int) -> None:
    """Wait until connections are refused."""
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                break
            except ConnectionResetError:
                continue  # in the backlog when the listener closed
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            await asyncio.sleep(0.01)


async def test_an_answer_that_takes_too_long_is_cut_off_with_1012(
    run_server: "RunServer", text_socket: "OpenText", how_closed: "HowClosed"
) -> None:
    with run_server(config(timeout="300ms")) as server:
        async with text_socket(server, "/ws?model=endless") as socket:
            await socket.send("hello")
            assert await socket.recv() == "chunk 1: hello"
            server.signal()
            assert (await how_closed(socket)).code == 1012
        assert await server.exit_status(3) == 0
        assert "shutdown timeout" in server.log


async def test_clients_that_do_not_read_or_answer_cannot_keep_the_process(
    run_server: "RunServer", raw: "Raw"
) -> None:
    with run_server(config(timeout="300ms")) as server:
        deaf = await raw.open(server, "/ws?model=big", receive_buffer=4096)
        await deaf.send_text("x" * 1000)
        silent = await raw.open(server)
        halfway = await raw.connect(server)
        await halfway.send(raw.upgrade_request("/ws")[:40])
        await server.metric_becomes("sluice_responses_total", 1, model="big", status="completed")
        server.signal()
        # Nobody answers the close frame: each has the close timeout.
        assert await server.exit_status(10) == 0
        assert await silent.close_code() == 1012


async def test_what_runs_in_the_background_finishes(run_server: "RunServer", tmp_path: Path) -> None:
    storage = {"url": f"sqlite:///{tmp_path}/sluice.db"}
    with run_server({**config(timeout="10s"), "storage": storage}) as server:
        body = {"model": "slow", "input": "hello", "background": True}
        assert (await server.fetch("/v1/responses", "POST", body=body)).json["status"] == "queued"
        server.signal()
        assert await server.exit_status() == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "sluice.db")) as database:
        ((status, content),) = database.execute(
            "SELECT status, content FROM responses JOIN messages ON response_id = responses.id "
            "WHERE kind = 'output'"
        )
    assert status == "completed"
    assert content.endswith(f"chunk {COUNT}: hello")


async def test_what_was_said_until_the_shutdown_is_stored(
    run_server: "RunServer", text_socket: "OpenText", tmp_path: Path
) -> None:
    storage = {"url": f"sqlite:///{tmp_path}/sluice.db"}
    with run_server({**config(timeout="200ms"), "storage": storage}) as server:
        async with text_socket(server, "/ws?model=endless") as socket:
            await socket.send("hello")
            said = [str(await socket.recv())]
            server.signal()
            with contextlib.suppress(ConnectionClosed):
                while True:
                    said.append(str(await socket.recv()))
        assert await server.exit_status(5) == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "sluice.db")) as database:
        ((status, reason),) = database.execute("SELECT status, incomplete_reason FROM responses")
        ((content,),) = database.execute("SELECT content FROM messages WHERE kind = 'output'")
    assert (status, reason) == ("incomplete", "cancelled")
    assert content.startswith("".join(said))
