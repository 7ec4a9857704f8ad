"""Plain HTTP: the list of models, health, metrics, and errors as the API has them."""

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from openai import AsyncOpenAI, NotFoundError

if TYPE_CHECKING:
    from test.e2e.conftest import HowClosed, Metrics, OpenResponses, OpenText, RunServer, Server

Chunks = Callable[..., list[str]]

COUNT, INTERVAL_S = 10, 0.02


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    models = [
        {"name": "echo", "generator": "echo", "options": {"chunks": COUNT, "interval": "20ms"}},
        {"name": "single", "generator": "echo", "options": {"chunks": 30, "interval": "20ms", "slots": 1}},
    ]
    with run_server({"models": models, "session": {"grace": "0"}}) as server:
        yield server


async def test_the_openai_client_lists_the_models(server: "Server") -> None:
    async with AsyncOpenAI(base_url=server.http("/v1"), api_key="unused") as client:
        models = (await client.models.list()).data
        assert [model.id for model in models] == ["echo", "single"]
        assert {model.object for model in models} == {"model"}
        assert all(model.created > 1_700_000_000 for model in models)
        assert await client.models.retrieve("single") == models[1]
        with pytest.raises(NotFoundError) as missing:
            await client.models.retrieve("none")
        assert isinstance(missing.value.body, dict)
        assert missing.value.body["type"] == "invalid_request_error"


async def test_health(server: "Server") -> None:
    alive = await server.fetch("/livez")
    assert (alive.status, alive.text) == (200, "ok\n")
    ready = await server.fetch("/readyz")
    assert ready.status == 200
    assert ready.json["status"] == "ready"
    assert ready.json["models"]["echo"] == {"ready": True, "progress": 1.0}
    assert (await server.fetch("/livez", "HEAD")).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/ws/", 404),
        ("GET", "/..%2f..%2fetc/passwd", 404),
        ("POST", "/v1/models", 405),
        ("DELETE", "/metrics", 405),
        ("PUT", "/v1/responses", 405),
    ],
)
async def test_errors_have_the_api_s_body(server: "Server", method: str, path: str, status: int) -> None:
    reply = await server.fetch(path, method)
    assert reply.status == status
    assert reply.headers["Content-Type"].startswith("application/json")
    error = reply.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert method in error["message"]
    assert ("Allow" in reply.headers) == (status == 405)


async def test_an_upgrade_of_something_else_is_not_found(server: "Server") -> None:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    reply = await server.fetch("/v1/nothing", headers=headers)
    assert reply.status == 404


def difference(after: "Metrics", before: "Metrics") -> Callable[..., float]:
    def count(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    return count


async def test_metrics_count_what_happened(
    server: "Server", text_socket: "OpenText", responses_socket: "OpenResponses", echo_chunks: Chunks
) -> None:
    await server.metric_becomes("sluice_sessions", 0)
    before = await server.metrics()
    async with text_socket(server) as text, text_socket(server), responses_socket(server) as responses:
        assert (await server.metrics()).value("sluice_sessions") == 3
        await text.send("hello")
        frames = [await text.recv() for _ in range(COUNT)]
        assert frames == echo_chunks("hello", COUNT)
        incomplete = await responses.ask("hello", max_output_tokens=2)
        await responses.create("hello", model="single")
        seen = await responses.until("response.output_text.delta")
        await responses.cancel(seen[0]["response"]["id"])
        cancelled = await responses.rest(seen)
        await responses.create("hello", model="none")
        await responses.error()
    await server.metric_becomes("sluice_sessions", 0)
    after = await server.metrics()
    count = difference(after, before)

    assert count("sluice_responses_total", model="echo", status="completed") == 1
    assert count("sluice_responses_total", model="echo", status="incomplete") == 1
    assert count("sluice_responses_total", model="single", status="incomplete") == 1
    assert count("sluice_session_closes_total", code="1000") == 3
    said = len(frames) + len(incomplete.events) + len(cancelled.events) + 1
    assert count("sluice_frames_out_total") == said
    assert count("sluice_bytes_out_total") > sum(len(frame) for frame in frames) + 300 * (said - COUNT)

    assert count("sluice_time_to_first_token_seconds_count", model="echo") == 2
    assert 0 < count("sluice_time_to_first_token_seconds_sum", model="echo") < 2
    assert count("sluice_response_seconds_count", model="echo") == 2
    assert count("sluice_response_seconds_sum", model="echo") > (COUNT - 1) * INTERVAL_S / 2
    # Between 10 chunks are 9 gaps, between 2 one; but what a busy machine lets go together has none.
    gaps = count("sluice_time_between_tokens_seconds_count", model="echo")
    assert 0 < gaps <= COUNT - 1 + 1
    assert COUNT * INTERVAL_S / 2 < count("sluice_time_between_tokens_seconds_sum", model="echo") < 2
    assert count("sluice_time_between_tokens_seconds_bucket", model="echo", le="+Inf") == gaps


async def test_metrics_have_their_types(server: "Server") -> None:
    reply = await server.fetch("/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    types = (await server.metrics()).types
    assert types["sluice_sessions"] == types["sluice_queue_depth"] == "gauge"
    for name in ("sluice_responses", "sluice_session_closes", "sluice_frames_out", "sluice_bytes_out"):
        assert types[name] == "counter"
    for name in (
        "sluice_time_to_first_token_seconds",
        "sluice_time_between_tokens_seconds",
        "sluice_response_seconds",
        "sluice_event_loop_lag_seconds",
    ):
        assert types[name] == "histogram"


async def test_the_loop_s_lag_is_watched_and_small(server: "Server") -> None:
    before = await server.metrics()
    name = "sluice_event_loop_lag_seconds"
    async with asyncio.timeout(15):
        while (count := difference(await server.metrics(), before))(f"{name}_count") < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert count(f"{name}_sum") / count(f"{name}_count") < 0.1


async def test_the_queue_s_depth_and_responses_that_never_ran_are_counted(
    server: "Server", responses_socket: "OpenResponses"
) -> None:
    before = await server.metrics()
    async with responses_socket(server) as socket:
        for lane in ("a", "b", "c"):
            await socket.create("hello", model="single", stream_id=lane)
        waiting: dict[str, str] = {}
        while len(waiting) < 3:
            event = await socket.event()
            if event["type"] == "response.queued":
                waiting[event["stream_id"]] = event["response"]["id"]
        await server.metric_becomes("sluice_queue_depth", 2, model="single")
        assert (await server.metrics()).value("sluice_queue_depth", model="echo") == 0
        await socket.cancel(waiting["c"])
        await server.metric_becomes("sluice_queue_depth", 1, model="single")
        # Cancelled while it waited: it has ended as much as one that ran.
        labels = {"model": "single", "status": "incomplete"}
        count = before.value("sluice_responses_total", **labels)
        await server.metric_becomes("sluice_responses_total", count + 1, **labels)
        await socket.cancel(waiting["b"])
        await socket.cancel(waiting["a"])
        await server.metric_becomes("sluice_queue_depth", 0, model="single")
        await server.metric_becomes("sluice_responses_total", count + 3, **labels)


async def test_closes_are_counted_by_code(
    server: "Server", text_socket: "OpenText", how_closed: "HowClosed"
) -> None:
    before = await server.metrics()
    async with text_socket(server) as polite:
        await polite.close(3000)
    async with text_socket(server) as abrupt:
        abrupt.transport.abort()
    async with text_socket(server) as rude:
        await how_closed(rude, "x" * (2 << 20))
    for code in ("other", "1006", "1009"):
        expected = before.value("sluice_session_closes_total", code=code) + 1
        await server.metric_becomes("sluice_session_closes_total", expected, code=code)
