"""Users' upstreams are asked by workers: who asks whom is nothing that the queue knows."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import orjson
import redis.asyncio
from aiohttp import web

if TYPE_CHECKING:
    from test.faults.conftest import JSON, Person, Process, RunCluster

OWN: "JSON" = {"name": "own", "generator": "own", "options": {"addresses": "any", "retries": 0}}
WORDS = 40


@asynccontextmanager
async def provider(pause_s: float = 0.0) -> AsyncIterator[str]:
    """Says the end of the key that it was asked with, again and again."""

    async def complete(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(WORDS):
            word = request.headers["Authorization"][-4:] + " "
            chunk = {"choices": [{"delta": {"content": word}, "finish_reason": None}]}
            await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")
            await asyncio.sleep(pause_s)
        await response.write(b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n')
        return response

    application = web.Application()
    application.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def set_upstream(person: "Person", server: "Process", url: str, key: str) -> None:
    reply = await person.call(
        server, "POST", "/api/config", upstream_url=url, upstream_key=key, model="theirs"
    )
    assert reply.status == 200, reply


@asynccontextmanager
async def overheard(url: str) -> AsyncIterator[list[str]]:
    """All that anybody tells Redis meanwhile."""
    heard: list[str] = []
    client = redis.asyncio.Redis.from_url(url)

    async def listen() -> None:
        async with client.monitor() as monitor:
            listening.set()
            while True:
                heard.append(str(await monitor.next_command()))

    listening = asyncio.Event()
    task = asyncio.create_task(listen())
    await listening.wait()
    try:
        yield heard
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await client.aclose()


async def test_two_users_ask_two_upstreams_and_nobody_else_learns_of_them(run_cluster: "RunCluster") -> None:
    log: JSON = {"level": "debug"}
    async with (
        provider() as one,
        provider() as other,
        run_cluster(workers=1, models=[OWN], log=log) as cluster,
        overheard(cluster.redis.url) as heard,
    ):
        server, prompt = cluster.servers[0], f"prompt-{secrets.token_hex(8)}"
        ada, eve = cluster.person(), cluster.person()
        keys = [f"sk-{secrets.token_urlsafe(24)}" for _ in range(2)]
        await set_upstream(ada, server, one, keys[0])
        await set_upstream(eve, server, other, keys[1])
        replies = await asyncio.gather(
            *(person.call(server, "POST", "/chat", message=prompt) for person in (ada, eve))
        )
        said = [reply.json["assistant_reply"].split() for reply in replies]
        assert said == [[key[-4:]] * WORDS for key in keys]
        await set_upstream(eve, server, "http://127.0.0.1:9/v1", keys[1])
        failed = await eve.call(server, "POST", "/chat", message=prompt)
        assert failed.json["error"]["code"] == "upstream_unavailable"

        stored = await cluster.stored.rows("SELECT * FROM responses")
        stored_settings = await cluster.stored.rows("SELECT * FROM user_settings")
        assert any(prompt in command for command in heard), "it was not listened to"
        assert len(stored) == 3
        places = [url.removeprefix("http://") for url in (one, other, "http://127.0.0.1:9/v1")]
        logs = [process.log for process in cluster.processes]
        for secret in (*keys, *places):
            for told in (*heard, *map(str, stored), *logs, failed.body.decode()):
                assert secret not in told
        for key in keys:
            assert key not in str(stored_settings)


async def test_a_begun_answer_fails_when_its_worker_dies(run_cluster: "RunCluster") -> None:
    async with provider(0.05) as url, run_cluster(workers=1, models=[OWN]) as cluster:
        server, person = cluster.servers[0], cluster.person()
        await set_upstream(person, server, url, "sk-0123456789abcdef")
        (client,) = await cluster.connect(1, server, person=person)
        await client.ask("own")
        await client.spoken_to(3)
        cluster.workers[0].kill()
        await cluster.another_worker()
        await client.ended()
        assert client.response["error"]["code"] == "upstream_interrupted"
        assert set(client.text.split()) == {"cdef"}
        await cluster.nothing_runs()
