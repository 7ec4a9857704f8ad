"""What holds for every declared route. A new one without an entry in `GOOD` fails."""

import asyncio
import io
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from internal.biz.errors import RateLimited
from internal.biz.limits import Budget
from internal.server.rest import Access, AnyRoute

if TYPE_CHECKING:
    from test.server.conftest import Api

GOOD: dict[str, Any] = {
    "GET /api/v1/auth": None,
    "POST /api/v1/auth/register": {"username": "eve", "email": "eve@example.org", "password": "password-2"},
    "POST /api/v1/auth/login": {"username": "ada", "password": "password-1"},
    "POST /api/v1/auth/refresh": {"refresh_token": "REFRESH"},
    "POST /api/v1/auth/logout": {"refresh_token": "REFRESH"},
    "POST /api/v1/auth/guest": None,
    "POST /api/v1/auth/password": {"current_password": "password-1", "new_password": "password-2"},
    "GET /api/v1/me": None,
    "DELETE /api/v1/me": {"password": "password-1"},
    "GET /api/v1/keys": None,
    "POST /api/v1/keys": {"name": "laptop"},
    "DELETE /api/v1/keys/{id}": None,
    "POST /conversations": {"title": "A trip"},
    "GET /conversations": None,
    "GET /conversations/{id}/history": None,
    "GET /conversations/{id}/export": None,
    "PATCH /conversations/{id}": {"title": "Another trip"},
    "DELETE /conversations/{id}": None,
    "POST /chat": {"message": "hello"},
    "POST /chat/message": {"message": "hello"},
    "GET /api/config": None,
    "POST /api/config": {"model": "other"},
    "GET /api/health": None,
    "POST /api/markdown": {"texts": ["*hello*"]},
    "GET /v1/models": None,
    "GET /v1/models/{model}": None,
    "POST /v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "POST /v1/models/{model}/load": {},
    "POST /v1/models/{model}/unload": {},
    "POST /v1/responses": {"input": "hello"},
    "GET /v1/responses/{id}": None,
    "DELETE /v1/responses/{id}": None,
    "POST /v1/responses/{id}/cancel": None,
    "GET /v1/responses/{id}/input_items": None,
    "POST /v1/conversations": {"metadata": {"a": "b"}},
    "GET /v1/conversations/{id}": None,
    "POST /v1/conversations/{id}": {"metadata": None},
    "DELETE /v1/conversations/{id}": None,
    "GET /v1/conversations/{id}/items": None,
    "POST /v1/conversations/{id}/items": {"items": [{"role": "user", "content": "hello"}]},
    "GET /v1/conversations/{id}/items/{item_id}": None,
    "DELETE /v1/conversations/{id}/items/{item_id}": None,
    "GET /v1/conversations/{id}/history": None,
    "GET /v1/conversations/{id}/turns": None,
    "POST /v1/batches": {"model": "m, other", "prompt": "hello"},
    "GET /v1/batches/{id}": None,
    "PATCH /v1/batches/{id}": {"chosen": "TASK"},
    "POST /v1/batches/{id}/cancel": None,
    "GET /v1/tasks/{id}": None,
}
"""A body that is fine, for each route. None: it has none."""


def name(route: AnyRoute) -> str:
    return f"{route.method} {route.path}"


class World:
    """A user with a conversation, a response and a key, and the requests that are fine for each route."""

    def __init__(self, api: "Api") -> None:
        self.api = api
        self.token = ""
        self.refresh_token = ""
        self.conversation_id = ""
        self.key_id = ""
        self.response_id = ""
        self.item_id = ""
        self.batch_id = ""
        self.task_id = ""

    async def build(self) -> "World":
        self.token = await self.api.user()
        self.refresh_token = (await self.api.accounts.login("ada", "password-1")).refresh
        self.conversation_id = await self.api.begin(self.token, "Trip")
        key, _ = await self.api.accounts.create_key(self.token.removeprefix("access-"), "old")
        self.key_id = key.id
        async with self.api.engine.answering():
            reply = await self.api.call("POST", "/v1/responses", {"input": "hello"}, self.token)
            self.response_id = (await reply.json())["id"]
        items = {"items": [{"role": "user", "content": "I am Ada"}]}
        reply = await self.api.call(
            "POST", f"/v1/conversations/{self.conversation_id}/items", items, self.token
        )
        self.item_id = (await reply.json())["data"][0]["id"]
        async with self.api.engine.answering():
            body = {"model": "m", "prompt": "hello"}
            begun = await (await self.api.call("POST", "/v1/batches", body, self.token)).json()
            self.batch_id, (self.task_id,) = begun["batch_id"], begun["task_ids"]
            await self.api.ended(self.task_id)
        return self

    def own(self, route: str) -> str:
        """The id that stands in a path of theirs."""
        owned = {
            "keys": self.key_id,
            "responses": self.response_id,
            "batches": self.batch_id,
            "tasks": self.task_id,
        }
        return next((own for part, own in owned.items() if f"/{part}/" in route), self.conversation_id)

    def path(self, route: AnyRoute, own: str | None = None) -> str:
        path = route.path.replace("{id}", own or self.own(route.path))
        return path.replace("{item_id}", self.item_id).replace("{model}", "m")

    def body(self, route: AnyRoute) -> Any:
        text = json.dumps(GOOD[name(route)])
        text = text.replace("REFRESH", self.refresh_token).replace("TASK", self.task_id)
        return json.loads(text)

    def token_for(self, route: AnyRoute) -> str:
        """Of somebody who may call it."""
        return self.api.operator_key if route.access is Access.OPERATOR else self.token

    def routes(self) -> Iterator[AnyRoute]:
        yield from (route for route in self.api.rest.routes if route.form is None)


@pytest.fixture
async def world(api: "Api") -> World:
    return await World(api).build()


def is_error(reply: Any) -> bool:
    return (
        list(reply) == ["error"]
        and set(reply["error"]) == {"message", "type", "param", "code"}
        and bool(reply["error"]["message"])
    )


async def test_every_route_has_an_example(world: World) -> None:
    names = [name(route) for route in world.routes()]
    assert sorted(names) == sorted(GOOD)


async def test_every_route_is_described_and_nothing_else(world: World) -> None:
    document = await (await world.api.call("GET", "/openapi.json")).json()
    described = {
        f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods
    }
    beside = {f"GET {path}" for path in ("/v1/workers", "/livez", "/readyz", "/metrics")}
    forms = {name(route) for route in world.api.rest.routes if route.form is not None}
    assert described == {*GOOD, *beside, *forms}


@pytest.mark.parametrize("route", GOOD)
async def test_a_good_request_is_answered_as_declared(world: World, route: str) -> None:
    declared = next(one for one in world.routes() if name(one) == route)
    async with world.api.engine.answering():
        reply = await world.api.call(
            declared.method, world.path(declared), world.body(declared), world.token_for(declared)
        )
    text = await reply.text()
    assert reply.status == (declared.status if declared.answer or declared.also else 204), text
    assert reply.headers["Cache-Control"] == "no-store"
    if declared.answer is not None:
        assert reply.content_type == "application/json"
        declared.answer.model_validate_json(text)


SPENDING = {
    "POST /conversations",
    "POST /api/config",
    "POST /api/v1/auth/guest",
    "POST /api/v1/keys",
    "POST /v1/conversations",
    "POST /v1/conversations/{id}/items",
}


async def test_what_is_stored_without_asking_a_model_is_counted(world: World) -> None:
    assert {name(route) for route in world.routes() if route.spends} == SPENDING
    world.api.limiter.budget = Budget(5, 2, 33.3)
    for route in world.routes():
        if not route.spends:
            continue
        reply = await world.api.call(
            route.method, world.path(route), world.body(route), world.token_for(route)
        )
        assert reply.status == route.status
        told = {key: value for key, value in reply.headers.items() if key.startswith("X-RateLimit")}
        assert told == {
            "X-RateLimit-Limit": "5",
            "X-RateLimit-Remaining": "2",
            "X-RateLimit-Reset": "34",
        }
        world.api.limiter.refusal = RateLimited("come back", limit=5, retry_after_s=11.2)
        reply = await world.api.call(
            route.method, world.path(route), world.body(route), world.token_for(route)
        )
        assert (reply.status, reply.headers["Retry-After"]) == (429, "12")
        world.api.limiter.refusal = None
    assert {caller.address for caller in world.api.limiter.spent} == {"127.0.0.1"}


async def test_a_refused_request_takes_nothing(world: World) -> None:
    before = len(world.api.limiter.spent)
    await world.api.call("POST", "/conversations", {"title": 1}, world.token)
    await world.api.call("POST", "/api/v1/keys", {"name": "laptop"})
    assert len(world.api.limiter.spent) == before


@pytest.mark.parametrize("token", [None, "nonsense", "guest"])
async def test_a_user_s_route_wants_a_user(world: World, token: str | None) -> None:
    if token == "guest":
        token = world.api.accounts.guest()[0]
    for route in [one for one in world.routes() if one.access in (Access.USER, Access.LOGIN)]:
        reply = await world.api.call(route.method, world.path(route), world.body(route), token)
        assert reply.status == 401
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert is_error(await reply.json())
        assert "Set-Cookie" not in reply.headers


async def test_a_route_for_logins_refuses_api_keys(world: World) -> None:
    _, secret = await world.api.accounts.create_key(world.token.removeprefix("access-"), "leaked")
    for route in [one for one in world.routes() if one.access is Access.LOGIN]:
        reply = await world.api.call(route.method, world.path(route), world.body(route), secret)
        assert (reply.status, (await reply.json())["error"]["code"]) == (403, "login_required")


@pytest.mark.parametrize("route", GOOD)
async def test_a_closed_server_serves_nobody_unknown(closed_api: "Api", route: str) -> None:
    world = await World(closed_api).build()
    declared = next(one for one in world.routes() if name(one) == route)
    is_open = declared.access in (Access.ANYONE, Access.VISITOR) and "guest" not in route
    async with closed_api.engine.answering():
        reply = await closed_api.call(declared.method, world.path(declared), world.body(declared))
    assert (reply.status == 401) is not is_open
    assert "Set-Cookie" not in reply.headers


@pytest.mark.parametrize("route", [route for route in GOOD if "{id}" in route])
async def test_what_is_another_s_is_not_found(closed_api: "Api", route: str) -> None:
    # Where there are guests, it is enough to know the id of a response.
    world = await World(closed_api).build()
    declared = next(one for one in world.routes() if name(one) == route)
    other = await world.api.user("eve")
    reply = await world.api.call(declared.method, world.path(declared), world.body(declared), other)
    assert reply.status == 404
    theirs = await reply.text()
    missing = world.path(declared, "conv_none")
    nothing = await world.api.call(declared.method, missing, world.body(declared), other)
    assert nothing.status == 404
    # Nobody learns that it is there.
    assert theirs.replace(world.own(route), "ID") == (await nothing.text()).replace("conv_none", "ID")


STRANGE_IDS = [
    "x" * 65,
    "a b",
    "a.b",
    "..",
    "%2e%2e",
    "%00",
    "%0d%0aX: y",
    "é",
    "'; drop table users; --",
    "%ff",
]


@pytest.mark.parametrize("route", [route for route in GOOD if "{id}" in route])
async def test_what_cannot_be_an_id_is_not_found(world: World, route: str) -> None:
    declared = next(one for one in world.routes() if name(one) == route)
    for strange in STRANGE_IDS:
        path = world.path(declared, strange)
        reply = await world.api.call(declared.method, path, world.body(declared), world.token_for(declared))
        assert reply.status in (404, 405), path
        assert is_error(await reply.json())


@pytest.mark.parametrize("route", GOOD)
async def test_other_methods_are_named(world: World, route: str) -> None:
    declared = next(one for one in world.routes() if name(one) == route)
    reply = await world.api.call("PROPFIND", world.path(declared), token=world.token_for(declared))
    assert reply.status == 405
    assert declared.method in re.split(r",\s*", reply.headers["Allow"])
    assert is_error(await reply.json())
    head = await world.api.call("HEAD", world.path(declared), token=world.token_for(declared))
    is_read = "GET" in reply.headers["Allow"] and declared.path != "/v1/responses"  # that is a WebSocket
    # Models may have slashes in their names, and so a name for an order is one that no model has.
    is_order = declared.access is Access.OPERATOR
    assert head.status == (404 if is_order else 200 if is_read else 405)
    assert await head.read() == b""


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────

BROKEN = {
    "nothing": (b"", None),
    "no JSON": (b"message=hello", "invalid_json"),
    "cut off": (b'{"message": "hel', "invalid_json"),
    "not UTF-8": (b'{"message": "\xff"}', "invalid_json"),
    "a lone surrogate": (b'{"message": "\\ud800"}', "invalid_json"),
    "a list": (b"[]", "invalid_json"),
    "a number": (b"1", "invalid_json"),
    "null": (b"null", "invalid_json"),
    "NaN": (b'{"temperature": NaN}', "invalid_json"),
    "infinity": (b'{"temperature": 1e999}', "invalid_json"),
    "deep": (b'{"message": ' + b"[" * 4000 + b"]" * 4000 + b"}", "invalid_json"),
    "deep but not too deep for JSON": (b'{"message": ' + b"[" * 900 + b"]" * 900 + b"}", None),
    "a name twice": (b'{"message": "a", "message": "b"}', "invalid_json"),
    "a name twice, escaped": (b'{"message": "a", "m\\u0065ssage": "b"}', "invalid_json"),
    "NUL": (b'{"message": "a\\u0000b"}', "invalid_value"),
    "NUL in a name": (b'{"mess\\u0000age": "a"}', "invalid_value"),
    "an unknown field": (b'{"sudo": true}', None),
}


EITHER = {"POST /v1/batches", "PATCH /conversations/{id}"}
"""They need one of several fields, none of which is required."""


def with_bodies(world: World) -> list[AnyRoute]:
    return [route for route in world.routes() if route.body is not None]


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_broken_body_is_explained(world: World, broken: str) -> None:
    data, code = BROKEN[broken]
    for route in with_bodies(world):
        headers = {"Content-Type": "application/json"}
        async with world.api.engine.answering():
            reply = await world.api.call(
                route.method, world.path(route), token=world.token_for(route), data=data, headers=headers
            )
        assert route.body is not None
        is_optional = not any(field.is_required() for field in route.body.model_fields.values())
        if not data and is_optional and name(route) not in EITHER:
            assert reply.status < 300
            continue
        assert reply.status == 400, name(route)
        error = await reply.json()
        assert is_error(error)
        assert code is None or error["error"]["code"] == code, error


async def test_each_field_has_a_type_and_may_be_missing_only_if_it_is_optional(world: World) -> None:
    for route in with_bodies(world):
        assert route.body is not None
        for field, info in route.body.model_fields.items():
            wrong = {**(world.body(route) or {}), field: [["wrong"]]}
            reply = await world.api.call(route.method, world.path(route), wrong, world.token_for(route))
            param = (await reply.json())["error"]["param"]
            assert (reply.status, param.partition("[")[0]) == (400, field)
            if info.is_required():
                less = {key: value for key, value in world.body(route).items() if key != field}
                reply = await world.api.call(route.method, world.path(route), less, world.token_for(route))
                assert (reply.status, (await reply.json())["error"]["param"]) == (400, field)


async def test_a_field_that_nobody_reads_is_refused(world: World) -> None:
    for route in with_bodies(world):
        more = {**(world.body(route) or {}), "sudo": True}
        reply = await world.api.call(route.method, world.path(route), more, world.token_for(route))
        error = (await reply.json())["error"]
        assert (reply.status, error["param"], error["code"]) == (400, "sudo", "unsupported_parameter")


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "application/json; charset=utf-16",
    ],
)
async def test_only_json_is_read(world: World, content_type: str) -> None:
    for route in with_bodies(world):
        data = json.dumps(world.body(route)).encode()
        headers = {"Content-Type": content_type}
        reply = await world.api.call(
            route.method, world.path(route), token=world.token_for(route), data=data, headers=headers
        )
        assert (reply.status, (await reply.json())["error"]["code"]) == (415, "unsupported_media_type")


async def test_a_compressed_body_is_not_read(world: World) -> None:
    for route in with_bodies(world):
        headers = {"Content-Type": "application/json"}
        reply = await world.api.call(
            route.method,
            world.path(route),
            token=world.token_for(route),
            data=b"{}",
            headers=headers,
            compress="deflate",
        )
        assert reply.status == 415


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_is_refused(world: World, chunked: bool) -> None:
    for route in with_bodies(world):
        data = io.BytesIO(b'{"message": "' + b"x" * 10_000_000 + b'"}')
        headers = {"Content-Type": "application/json"}
        reply = await world.api.call(
            route.method,
            world.path(route),
            token=world.token_for(route),
            data=data,
            headers=headers,
            chunked=chunked,
        )
        assert (reply.status, (await reply.json())["error"]["code"]) == (413, "request_too_large")


async def test_a_body_that_ends_early_does_no_harm(api: "Api", caplog: pytest.LogCaptureFixture) -> None:
    head = b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for broken in (b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", b'Content-Length: 100\r\n\r\n{"message"'):
        async with api.connection() as (_, writer):
            writer.write(head + broken)
            await writer.drain()
            await api.call("GET", "/livez")
    assert (await api.call("GET", "/livez")).status == 200
    assert not caplog.messages


# ── paths ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path",
    [
        b"/conversations/../../etc/passwd",
        b"/conversations/%2e%2e/%2e%2e/etc/passwd",
        b"/conversations/..%2f..%2fetc%2fpasswd/history",
        b"/conversations/%00/history",
        b"/conversations/%ff%fe/history",
        b"/conversations/%ed%a0%80/history",
        b"/conversations//history",
        b"/conversations/x/history/",
        b"/docs/../../../etc/passwd",
        b"/docs/%2e%2e%2fswagger-ui.js",
        b"/docs/swagger-ui.js",
        b"/chat/",
        b"/CHAT",
        b"/" + b"a" * 7000,
        b"/%",
        b"/%zz",
    ],
)
async def test_strange_paths_are_not_found(api: "Api", path: bytes) -> None:
    request = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path
    head, _, body = (await api.raw(request)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404"), head
    assert is_error(json.loads(body))


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=1e1", "limit"),
        ("limit=", "limit"),
        ("limit=1_0", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("limit=1&limit=2", "limit"),
        ("cursor=", "cursor"),
        ("cursor=nonsense", "cursor"),
        ("cursor=' OR 1=1 --", "cursor"),
        ("q=a%00b", "q"),
        ("q=" + "x" * 201, "q"),
        ("offset=1", "offset"),
        ("%00=1", "\ufffd"),
    ],
)
async def test_a_wrong_query_is_explained(world: World, query: str, param: str) -> None:
    request = (
        f"GET /conversations?{query.replace(' ', '%20')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    head, _, body = (await world.api.raw(request.encode())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400"), head
    assert json.loads(body)["error"]["param"] == param


@pytest.mark.parametrize(
    "text", ["' OR '1'='1", "\r\nSet-Cookie: a=b", "%ff%fe", "%ed%a0%80", "a%26b%3dc", "%"]
)
async def test_any_text_can_be_searched_for(world: World, text: str) -> None:
    request = f"GET /conversations?q={text} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    encoded = request.replace("q=" + text, "q=" + text.replace(" ", "%20").replace("\r\n", "%0d%0a"))
    head, _, body = (await world.api.raw(encoded.encode())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), body
    assert b"a=b" not in head


# ── time, and what else goes wrong ───────────────────────────────────────────────────────────────


async def test_a_slow_request_is_ended(api_type: "type[Api]") -> None:
    async with api_type(timeout_s=0.05).serving() as api:
        head = b"POST /chat HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        async with api.connection() as (reader, writer):
            writer.write(head + b"Content-Length: 100\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 503")
            assert b'"code":"timeout"' in await reader.readuntil(b"}}")


async def test_no_header_lets_a_request_take_longer(
    api_type: "type[Api]", monkeypatch: pytest.MonkeyPatch
) -> None:
    async with api_type(timeout_s=0.05).serving() as api:

        async def page(*_: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(api.storage, "page", page)
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
        async with asyncio.timeout(5):
            reply = await api.call("GET", "/conversations", headers=upgrade)
        assert (reply.status, (await reply.json())["error"]["code"]) == (503, "timeout")


async def test_an_upgrade_of_a_route_is_none(world: World) -> None:
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
    reply = await world.api.call("POST", "/chat", {"sudo": 1}, world.token, headers=upgrade)
    assert (reply.status, is_error(await reply.json())) == (400, True)
    reply = await world.api.call("GET", "/api/v1/me", headers=upgrade)
    assert (reply.status, is_error(await reply.json())) == (401, True)


async def test_a_storage_that_is_away_is_a_503(world: World) -> None:
    world.api.accounts.away = True
    reply = await world.api.call("GET", "/conversations", token=world.token)
    assert (reply.status, is_error(await reply.json())) == (503, True)


async def test_a_bug_is_told_without_a_trace(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(world.api.storage, "page", broken)
    reply = await world.api.call("GET", "/conversations", token=world.token)
    assert reply.status == 500
    assert "secret" not in await reply.text()
    assert "secret" in caplog.text


# ── what browsers are told ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("/v1/models", 200), ("/v1/workers", 200), ("/metrics", 200), ("/livez", 200), ("/docs", 200)),
        *(("/openapi.json", 200), ("/api/health", 200), ("/nowhere", 404), ("/ws", 426)),
        *(("/v1/responses", 426), ("/conversations?limit=0", 400), ("/conversations/conv_1/history", 404)),
        *(("/api/v1/me", 401), ("/chat", 405)),
    ],
)
async def test_no_browser_guesses_what_an_answer_is_or_keeps_an_error(
    api: "Api", path: str, status: int
) -> None:
    reply = await api.call("GET", path)
    assert reply.status == status
    assert reply.headers.getall("X-Content-Type-Options") == ["nosniff"]
    if status >= 400:
        assert reply.headers.getall("Cache-Control") == ["no-store"]


@pytest.mark.parametrize("method", ["GET history", "GET export", "PATCH", "DELETE"])
async def test_an_id_in_the_path_is_no_parameter(world: World, method: str) -> None:
    method, _, part = method.partition(" ")
    path = "/conversations/conv_1" + (f"/{part}" if part else "")
    body = {"title": "x"} if method == "PATCH" else None
    reply = await world.api.call(method, path, body, world.token)
    error = (await reply.json())["error"]
    assert (reply.status, error["code"], error["param"]) == (404, "conversation_not_found", None)
