"""A worker is killed while it passes on what a model elsewhere says: nothing is told twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

if TYPE_CHECKING:
    from test.faults.conftest import JSON, RunCluster

WORDS = [f"{number} " for number in range(90)]
STREAMS = 6


async def complete(request: web.Request) -> web.StreamResponse:
    """Counts, and goes on behind what the assistant has said."""
    body = orjson.loads(await request.read())
    last = body["messages"][-1]
    said = last["content"] if last["role"] == "assistant" else ""
    assert "".join(WORDS).startswith(said)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for word in "".join(WORDS)[len(said) :].split(" ")[:-1]:
        chunk = {"choices": [{"delta": {"content": f"{word} "}, "finish_reason": None}]}
        await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")
        await asyncio.sleep(0.04)
    await response.write(b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')
    return response


@asynccontextmanager
async def upstream() -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def model(name: str, base_url: str, continuation: str) -> "JSON":
    options = {"base_url": base_url, "slots": STREAMS, "continuation": continuation}
    return {"name": name, "generator": "openai", "options": options}


async def test_an_answer_goes_on_where_the_upstream_can_and_ends_where_it_cannot(
    run_cluster: "RunCluster",
) -> None:
    async with upstream() as url:
        models = [model("able", url, "message"), model("unable", url, "none")]
        async with run_cluster(workers=2, models=models) as cluster:
            able, unable = await asyncio.gather(
                cluster.stream(STREAMS, model="able", spoken=5),
                cluster.stream(STREAMS, model="unable", spoken=5),
            )
            victim, _ = await cluster.busiest(STREAMS, "able")
            lost = (await cluster.busy("unable"))[victim]
            able.require_running()
            unable.require_running()
            victim.kill()
            await able.ended()
            await unable.ended()
            for client in able:
                assert client.text == "".join(WORDS)
                client.require_consistent("completed")
            failed = [client for client in unable if client.types[-1] == "response.failed"]
            assert len(failed) == lost
            for client in unable:
                assert "".join(WORDS).startswith(client.text)
                client.require_consistent("failed" if client in failed else "completed")
            assert {client.response["error"]["code"] for client in failed} <= {"upstream_interrupted"}
            await cluster.nothing_runs()
