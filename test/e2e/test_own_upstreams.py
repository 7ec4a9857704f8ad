"""Upstreams that users have set for themselves, asked by a real server whose queue is in memory."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiohttp import web

if TYPE_CHECKING:
    from test.e2e.conftest import JSON, RunServer, Server, Until, Visitor

MODELS: list["JSON"] = [
    {"name": "echo", "generator": "echo", "options": {"interval": "1ms"}},
    {
        "name": "own",
        "generator": "own",
        "options": {"addresses": "any", "retries": 0, "connect_timeout": "2s"},
    },
]


class Provider:
    """Says whose key it was asked with, and for which model."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Any] = []
        self.all_here = asyncio.Event()
        """Set: it answers. For who wants several requests to be there at the same time."""
        self.all_here.set()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self.asked.append(body)
        await self.all_here.wait()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        key = request.headers.get("Authorization", "nobody").removeprefix("Bearer ")
        for word in (f"{body['model']} ", "for ", key[-4:]):
            chunk = {"choices": [{"delta": {"content": word}, "finish_reason": None}]}
            await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")
        await response.write(b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    application = web.Application()
    application.router.add_post("/v1/chat/completions", provider.complete)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield provider
    await runner.cleanup()


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    with run_server({"models": MODELS, "log": {"level": "debug"}}) as server:
        yield server


async def set_upstream(somebody: "Visitor", url: str, key: str, model: str = "theirs") -> "JSON":
    mine = {"upstream_url": url, "upstream_key": key, "model": model}
    reply = await somebody.call("POST", "/api/config", mine)
    assert reply.status == 200, reply.text
    settings: JSON = reply.json
    return settings


async def test_who_sets_an_upstream_asks_it(
    server: "Server", visitor: "type[Visitor]", provider: Provider
) -> None:
    ada, key = visitor(server), f"sk-{secrets.token_urlsafe(24)}"
    shown = await set_upstream(ada, provider.url, key)
    assert shown["upstream_model"] == "own"
    first = await ada.ask("hello", temperature=0.5)
    assert first["assistant_reply"] == f"theirs for {key[-4:]}"
    await ada.ask("and?", session_id=first["session_id"], model="own")
    assert [message["content"] for message in provider.asked[1]["messages"]] == [
        "hello",
        first["assistant_reply"],
        "and?",
    ]
    assert provider.asked[0]["temperature"] == 0.5
    assert (await ada.ask("hello", model="echo"))["assistant_reply"].startswith("chunk 1")
    assert "own" in [model["id"] for model in (await ada.call("GET", "/v1/models")).json["data"]]
    async with ada.text("/ws?model=own") as socket:
        await socket.send("hello")
        said = ""
        while not said.endswith(key[-4:]):
            said += str(await asyncio.wait_for(socket.recv(), 10))
    assert said == f"theirs for {key[-4:]}"


async def test_users_with_upstreams_of_their_own_ask_them_at_the_same_time(
    server: "Server", visitor: "type[Visitor]", provider: Provider, until: "Until"
) -> None:
    users = [visitor(server) for _ in range(4)]
    keys = [f"sk-{secrets.token_urlsafe(24)}" for _ in users]
    for number, (user, key) in enumerate(zip(users, keys, strict=True)):
        await user.register(f"user-{secrets.token_hex(4)}")
        await set_upstream(user, provider.url, key, f"m{number}")
    provider.all_here.clear()
    asking = [asyncio.create_task(user.ask("hello")) for user in users]

    async def all_are_here() -> bool:
        return len(provider.asked) == len(users)

    await until(all_are_here)
    provider.all_here.set()
    said = [answer["assistant_reply"] for answer in await asyncio.gather(*asking)]
    assert said == [f"m{number} for {key[-4:]}" for number, key in enumerate(keys)]


async def test_who_has_set_no_upstream_is_told_what_to_do(server: "Server", visitor: "type[Visitor]") -> None:
    somebody = visitor(server)
    reply = await somebody.call("POST", "/chat", {"message": "hello", "model": "own"})
    assert (reply.status, reply.json["error"]["code"]) == (400, "no_upstream")
    assert "/api/config" in reply.json["error"]["message"]
    async with somebody.text("/ws?model=own") as socket:
        await socket.send("hello")
        assert "error: you have set no upstream" in str(await asyncio.wait_for(socket.recv(), 10))


async def test_an_upstream_that_is_away_is_nobody_else_s_trouble(
    server: "Server", visitor: "type[Visitor]", provider: Provider
) -> None:
    ada, eve = visitor(server), visitor(server)
    await set_upstream(ada, "http://127.0.0.1:9/v1", "sk-of-ada-0123456789")
    await set_upstream(eve, provider.url, "sk-of-eve-0123456789")
    for _ in range(6):
        reply = await ada.call("POST", "/chat", {"message": "hello"})
        assert reply.json["error"]["code"] == "upstream_unavailable"
        assert "127.0.0.1" not in reply.text
    assert (await eve.ask("hello"))["assistant_reply"] == "theirs for 6789"


async def test_only_public_addresses_are_asked_unless_the_operator_says_so(
    run_server: "RunServer", visitor: "type[Visitor]", provider: Provider
) -> None:
    models = [MODELS[0], {"name": "own", "generator": "own"}]
    port = provider.url.split(":")[2].removesuffix("/v1")
    with run_server({"models": models}) as server:
        ada = visitor(server)
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f000001", "169.254.169.254"):
            await set_upstream(ada, f"http://{host}:{port}/v1", "sk-0123456789abcdef")
            reply = await ada.call("POST", "/chat", {"message": "hello"})
            assert reply.json["error"]["code"] == "upstream_forbidden", reply.text
    assert not provider.asked


async def test_a_key_reaches_nobody_but_the_upstream(
    server: "Server", visitor: "type[Visitor]", provider: Provider
) -> None:
    ada, key = visitor(server), f"sk-{secrets.token_urlsafe(24)}"
    await set_upstream(ada, provider.url, key)
    await ada.ask("hello")
    moved = await ada.call("POST", "/api/config", {"upstream_url": "http://127.0.0.1:9/v1"})
    assert moved.status == 200
    await ada.call("POST", "/chat", {"message": "hello"})
    place = provider.url.removeprefix("http://")
    for told in (server.log, server.output):
        assert key not in told
        assert place not in told
    assert "response failed" in server.log, "the level is debug"
