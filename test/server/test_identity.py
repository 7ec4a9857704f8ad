"""Who a request is from: tokens, keys, guests and their cookie, and pages that have no business here."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp.web_urldispatcher import UrlMappingMatchInfo

from internal.biz.errors import Unauthenticated
from internal.server.identity import GUEST_COOKIE, chosen_subprotocol, credential_of
from internal.server.upgrade import is_upgrade, upgradable

if TYPE_CHECKING:
    from test.server.conftest import Api

UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade"}
FOREIGN = {"Origin": "https://evil.example"}


async def guests_cookie(api: "Api") -> dict[str, str]:
    """Of a new guest, as a header."""
    reply = await api.call("POST", "/conversations")
    cookie = {"Cookie": f"{GUEST_COOKIE}={reply.cookies[GUEST_COOKIE].value}"}
    api.client.session.cookie_jar.clear()
    return cookie


async def test_who_comes_with_nothing_is_a_new_guest_and_gets_a_cookie(api: "Api") -> None:
    reply = await api.call("POST", "/conversations")
    assert reply.status == 201
    cookie = reply.cookies[GUEST_COOKIE]
    assert cookie["httponly"]
    assert (cookie["samesite"], cookie["path"], cookie["secure"]) == ("Lax", "/", "")
    assert 990 <= int(cookie["max-age"]) <= 1000


async def test_a_guest_is_known_again(api: "Api") -> None:
    cookie = await guests_cookie(api)
    reply = await api.call("GET", "/conversations", headers=cookie)
    assert len((await reply.json())["conversations"]) == 1
    assert "Set-Cookie" not in reply.headers
    again = await api.call("POST", "/conversations", headers=cookie)
    assert "Set-Cookie" not in again.headers


async def test_who_only_reads_is_nobody_s_guest(api: "Api") -> None:
    reply = await api.call("GET", "/conversations")
    assert (reply.status, (await reply.json())["conversations"]) == (200, [])
    assert "Set-Cookie" not in reply.headers
    assert "Set-Cookie" not in (await api.call("GET", "/livez")).headers


async def test_a_proxy_may_say_that_it_was_https(api: "Api") -> None:
    reply = await api.call("POST", "/conversations", headers={"X-Forwarded-Proto": "https"})
    assert reply.cookies[GUEST_COOKIE]["secure"] is True


async def test_a_guest_s_token_works_as_a_bearer_too(api: "Api") -> None:
    token = (await (await api.call("POST", "/api/v1/auth/guest")).json())["access_token"]
    await api.begin(token)
    reply = await api.call("GET", "/conversations", token=token)
    assert len((await reply.json())["conversations"]) == 1


async def test_the_token_counts_before_the_cookie(api: "Api") -> None:
    token = await api.user()
    cookie = await guests_cookie(api)
    reply = await api.call("GET", "/conversations", token=token, headers=cookie)
    assert (await reply.json())["conversations"] == []


@pytest.mark.parametrize("header", ["Bearer", "Basic YTpi", "access-user_1", ""])
async def test_where_guests_are_welcome_who_sends_no_token_is_one(api: "Api", header: str) -> None:
    await api.user()
    reply = await api.call("POST", "/conversations", headers={"Authorization": header})
    assert (reply.status, GUEST_COOKIE in reply.cookies) == (201, True)


PAST = ("past-token_expired", "past-login_ended", "past-user_disabled")


@pytest.mark.parametrize("token", ["nonsense", *PAST])
async def test_whose_token_is_no_good_does_not_become_a_guest(api: "Api", token: str) -> None:
    cookie = await guests_cookie(api)
    for method, headers in (("GET", {}), ("POST", {}), ("GET", cookie), ("POST", cookie)):
        reply = await api.call(method, "/conversations", token=token, headers=headers)
        assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "Set-Cookie" not in reply.headers


@pytest.mark.parametrize("token", ["nonsense", *PAST])
async def test_whose_cookie_is_no_good_is_a_new_guest(api: "Api", token: str) -> None:
    reply = await api.call("POST", "/conversations", headers={"Cookie": f"{GUEST_COOKIE}={token}"})
    assert (reply.status, GUEST_COOKIE in reply.cookies) == (201, True)


@pytest.mark.parametrize("token", ["nonsense", *PAST])
async def test_an_old_token_keeps_nobody_from_logging_in(api: "Api", token: str) -> None:
    await api.user()
    body = {"username": "ada", "password": "password-1"}
    assert (await api.call("POST", "/api/v1/auth/login", body, token)).status == 200


def carrying(credential: str) -> list[web.Request]:
    """Requests of clients that always send a key."""
    bearer = {"Authorization": f"Bearer {credential}"}
    subprotocol = {"Sec-WebSocket-Protocol": f"realtime, openai-insecure-api-key.{credential}"}
    return [
        requested("GET", "/ws", {**UPGRADE, **bearer}),
        requested("GET", f"/ws?token={credential}", UPGRADE),
        requested("GET", "/v1/responses", {**UPGRADE, **subprotocol}),
        requested("POST", "/v1/chat/completions", bearer, page),
    ]


async def test_any_key_will_do_where_clients_always_send_one(api: "Api") -> None:
    for request in carrying("unused"):
        assert (await api.identity.identify(request)).is_guest


@pytest.mark.parametrize("token", PAST)
async def test_but_not_one_that_was_somebody_s(api: "Api", token: str) -> None:
    for request in carrying(token):
        with pytest.raises(Unauthenticated) as error:
            await api.identity.identify(request)
        assert error.value.code == token.removeprefix("past-")


@pytest.mark.parametrize("header", ["Bearer nonsense", "Bearer", "Basic YTpi", "access-user_1", ""])
async def test_where_they_are_not_it_is_refused(closed_api: "Api", header: str) -> None:
    await closed_api.user()
    reply = await closed_api.call("POST", "/conversations", headers={"Authorization": header})
    assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_a_closed_server_takes_no_guest_s_token(closed_api: "Api") -> None:
    closed_api.accounts.guests = True
    token, _ = closed_api.accounts.guest()
    assert (await closed_api.call("GET", "/conversations", token=token)).status == 401
    cookie = {"Cookie": f"{GUEST_COOKIE}={token}"}
    assert (await closed_api.call("GET", "/conversations", headers=cookie)).status == 401


async def test_the_scheme_s_case_does_not_matter(closed_api: "Api") -> None:
    token = await closed_api.user()
    reply = await closed_api.call("GET", "/api/v1/me", headers={"Authorization": f"bearer  {token}"})
    assert reply.status == 200


async def test_another_site_s_page_may_not_use_a_guest_s_cookie(api: "Api") -> None:
    cookie = await guests_cookie(api)
    for method, path, body in (
        ("POST", "/conversations", {}),
        ("POST", "/chat", {"message": "hello"}),
        ("POST", "/api/v1/auth/login", {"username": "ada", "password": "password-1"}),
    ):
        reply = await api.call(method, path, body, headers={**cookie, **FOREIGN})
        assert (reply.status, (await reply.json())["error"]["code"]) == (403, "origin_not_allowed")
        assert "Set-Cookie" not in reply.headers


async def test_it_may_do_what_a_token_allows(api: "Api") -> None:
    token = await api.user()
    assert (await api.call("POST", "/conversations", token=token, headers=FOREIGN)).status == 201


async def test_our_own_pages_may(api: "Api") -> None:
    cookie, server = await guests_cookie(api), api.client.server
    origin = {"Origin": f"http://{server.host}:{server.port}"}
    assert (await api.call("POST", "/conversations", headers={**cookie, **origin})).status == 201


@pytest.mark.parametrize("path", ["/api/v1/auth/register", "/api/v1/auth/login"])
async def test_what_a_guest_said_becomes_the_user_s(api: "Api", path: str) -> None:
    cookie = await guests_cookie(api)
    if path.endswith("login"):
        await api.user()
    body = {"username": "ada", "password": "password-1"}
    if path.endswith("register"):
        body["email"] = "ada@example.org"
    assert (await api.call("POST", path, body, headers=cookie)).status < 300
    ((guest, user),) = api.accounts.taken_over
    assert guest.startswith("guest_")
    assert user in api.accounts.users


async def test_a_user_is_not_taken_over(api: "Api") -> None:
    token = await api.user()
    body = {"username": "eve", "email": "eve@example.org", "password": "password-2"}
    assert (await api.call("POST", "/api/v1/auth/register", body, token)).status == 201
    assert not api.accounts.taken_over


@upgradable
async def socket(request: web.Request) -> web.Response:
    return web.Response()


async def page(request: web.Request) -> web.Response:
    return web.Response()


def requested(
    method: str, path: str, headers: Mapping[str, str], handler: Callable[..., Any] = socket
) -> web.Request:
    """A request that has found its route."""
    app = web.Application()
    route = app.router.add_route(method, path.partition("?")[0], handler)
    request = make_mocked_request(method, path, headers=headers)
    request._match_info = UrlMappingMatchInfo({}, route)
    return request


def test_an_upgrade_is_one_only_where_something_is_to_be_upgraded_to() -> None:
    assert is_upgrade(requested("GET", "/ws", UPGRADE))
    assert is_upgrade(requested("GET", "/ws", {"Upgrade": " WebSocket"}))
    assert not is_upgrade(requested("GET", "/ws", {}))
    assert not is_upgrade(requested("GET", "/ws", {"Upgrade": "h2c"}))
    assert not is_upgrade(requested("POST", "/ws", UPGRADE))
    assert not is_upgrade(requested("GET", "/conversations", UPGRADE, page))


async def test_a_page_that_asks_for_an_upgrade_only_reads(api: "Api") -> None:
    reply = await api.call("GET", "/conversations", headers={**UPGRADE, **FOREIGN})
    assert (reply.status, "Set-Cookie" in reply.headers) == (200, False)
    assert (await api.call("GET", "/nowhere", headers=UPGRADE)).status == 404
    token = await api.user()
    assert (await api.call("GET", f"/api/v1/me?token={token}", headers=UPGRADE)).status == 401


@pytest.mark.parametrize(
    ("path", "headers", "credential"),
    [
        ("/ws", {}, None),
        ("/ws", {"Authorization": "Bearer abc"}, "abc"),
        ("/ws", {**UPGRADE, "Authorization": "Bearer abc"}, "abc"),
        ("/ws?token=abc", UPGRADE, "abc"),
        ("/ws?token=abc", {}, None),  # addresses are logged; where a header can be sent it has to be
        ("/ws?token=", UPGRADE, None),
        ("/ws", {**UPGRADE, "Sec-WebSocket-Protocol": "realtime, openai-insecure-api-key.abc"}, "abc"),
        ("/ws", {**UPGRADE, "Sec-WebSocket-Protocol": "openai-insecure-api-key."}, None),
        ("/ws", {**UPGRADE, "Sec-WebSocket-Protocol": "realtime"}, None),
        ("/ws", {"Sec-WebSocket-Protocol": "openai-insecure-api-key.abc"}, None),
        ("/ws?token=def", {**UPGRADE, "Authorization": "Bearer abc"}, "abc"),
    ],
)
def test_where_credentials_are_carried(path: str, headers: Mapping[str, str], credential: str | None) -> None:
    assert credential_of(requested("GET", path, headers)) == credential


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, None),
        ("realtime", "realtime"),
        ("openai-insecure-api-key.abc, realtime", "realtime"),
        ("openai-insecure-api-key.abc", None),
        ("chat", None),
    ],
)
def test_the_answered_subprotocol_is_never_the_key(offered: str | None, chosen: str | None) -> None:
    headers = UPGRADE if offered is None else {**UPGRADE, "Sec-WebSocket-Protocol": offered}
    assert chosen_subprotocol(requested("GET", "/ws", headers)) == chosen
