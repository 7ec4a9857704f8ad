"""What the application tells clients about limits, and its sessions about clients."""

from collections.abc import AsyncIterator
from typing import cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from internal.biz.chat import Chat
from internal.biz.errors import RateLimited, Unauthenticated
from internal.biz.models import Caller
from internal.metrics.instruments import Instruments
from internal.server.address import Proxies
from internal.server.app import App, AppOptions
from internal.server.identity import Identity
from internal.server.readiness import Readiness
from internal.server.websocket import Visit, WebSocketServer


class Models:
    """A chat that is only asked for its models."""

    models = ("echo",)

    def require_model(self, name: str | None) -> str:
        return "echo"


class Sockets:
    """Notes who would have been served."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    async def serve(self, request: web.Request, codec: object, visit: Visit) -> web.Response:
        self.addresses.append(visit.caller.address)
        return web.Response()


class Visitors:
    """All are new."""

    async def identify(self, credential: str, address: str = "") -> Caller:
        raise Unauthenticated("nobody is known")

    def guest(self) -> tuple[str, Caller]:
        return "token", Caller("guest_1")


@pytest.fixture
def sockets() -> Sockets:
    return Sockets()


Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def client(watched_loop: None, sockets: Sockets) -> AsyncIterator[Client]:
    identity = Identity(Visitors(), Proxies(["127.0.0.1"]), required=False, allowed_origins=[])
    options = AppOptions([], 5.0)
    chat, websockets = cast(Chat, Models()), cast(WebSocketServer, sockets)
    app = App(chat, websockets, identity, Readiness([]), Instruments(), options).build()
    app.router.add_get("/limited", limited)
    async with TestClient(TestServer(app)) as client:
        yield client


async def limited(request: web.Request) -> web.Response:
    raise RateLimited("come back", limit=5, remaining=0, reset_s=55.5, retry_after_s=11.2)


async def test_a_429_says_when_to_come_back(client: Client) -> None:
    async with client.get("/limited") as answer:
        assert answer.status == 429
        assert (await answer.json())["error"] == {
            "message": "come back",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        headers = answer.headers
    assert headers["Retry-After"] == "12"
    assert headers["X-RateLimit-Limit"] == "5"
    assert headers["X-RateLimit-Remaining"] == "0"
    assert headers["X-RateLimit-Reset"] == "56"


@pytest.mark.parametrize("path", ["/ws", "/v1/responses"])
async def test_a_session_is_told_who_the_client_is(client: Client, sockets: Sockets, path: str) -> None:
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
    for headers in ({}, {"X-Forwarded-For": "1.1.1.1, 198.51.100.7"}):
        async with client.get(path, headers=upgrade | headers):
            pass
    assert sockets.addresses == ["127.0.0.1", "198.51.100.7"]
