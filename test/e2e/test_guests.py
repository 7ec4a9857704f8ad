"""Where one need not be a user: guests, their cookie or token, and what they find again."""

import secrets
from collections.abc import Callable, Iterator
from http.cookies import Morsel
from typing import TYPE_CHECKING

import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import connect

if TYPE_CHECKING:
    from test.e2e.conftest import JSON, HowClosed, RunServer, Say, Server, Until, Visitor

COOKIE = "sluice_guest"
A_YEAR_S = 365 * 86400
CONFIG: "JSON" = {
    "limits": {"login_attempts": 1000},
    "models": [
        {"name": "echo", "generator": "echo", "options": {"interval": "2ms"}},
        {"name": "slow", "generator": "echo", "options": {"chunks": 60, "interval": "20ms"}},
    ],
}


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    with run_server(CONFIG) as server:
        yield server


def check_flags(cookie: Morsel[str]) -> None:
    assert cookie["httponly"] is True
    assert (cookie["samesite"], cookie["path"]) == ("Lax", "/")
    assert A_YEAR_S - 10 <= int(cookie["max-age"]) <= A_YEAR_S
    assert not cookie["domain"], "no other host gets it"


async def test_the_first_message_over_http_makes_a_guest(server: "Server", visitor: "type[Visitor]") -> None:
    guest = visitor(server)
    assert await guest.conversations() == []
    assert not guest.cookies, "who only looks is nobody"
    conversation = (await guest.ask("hello"))["session_id"]
    check_flags(guest.cookies[COOKIE])
    assert not guest.cookies[COOKIE]["secure"]
    first = guest.cookies[COOKIE].value
    await guest.ask("and again", session_id=conversation)
    assert guest.cookies[COOKIE].value == first
    (found,) = await guest.conversations()
    assert (found["session_id"], found["message_count"]) == (conversation, 4)


@pytest.mark.parametrize("path", ["/ws", "/v1/responses"])
async def test_the_first_socket_makes_a_guest(server: "Server", visitor: "type[Visitor]", path: str) -> None:
    guest = visitor(server)
    async with guest.text(path):
        check_flags(guest.cookies[COOKIE])
        first = guest.cookies[COOKIE].value
    async with guest.text(path) as again:
        assert again.response is not None
        assert "Set-Cookie" not in again.response.headers
    assert guest.cookies[COOKIE].value == first


async def test_behind_tls_the_cookie_is_for_tls_only(server: "Server", visitor: "type[Visitor]") -> None:
    guest = visitor(server)
    await guest.call("POST", "/chat", {"message": "hello"}, {"X-Forwarded-Proto": "https"})
    assert guest.cookies[COOKIE]["secure"] is True


async def test_a_guest_finds_what_was_said_on_a_socket_and_nobody_else_does(
    server: "Server", visitor: "type[Visitor]", say: "Say", until: "Until"
) -> None:
    guest, other = visitor(server), visitor(server)
    async with guest.text() as socket, other.text() as another:
        answer = await say(socket, "hello there")
        await say(another, "something else")

    async def is_stored() -> bool:
        return [found["message_count"] for found in await guest.conversations()] == [2]

    await until(is_stored)
    (found,) = await guest.conversations()
    assert found["title"] == "hello there"
    conversation = found["session_id"]
    assert await guest.history(conversation) == [("user", "hello there"), ("assistant", answer)]
    (others,) = await other.conversations()
    assert others["title"] == "something else"
    assert (await other.call("GET", f"/conversations/{conversation}/history")).status == 404
    reply = await other.call("POST", "/chat", {"message": "mine", "session_id": conversation})
    assert (reply.status, reply.json["error"]["code"]) == (404, "conversation_not_found")


async def test_who_registers_or_logs_in_takes_what_was_said_as_a_guest_along(
    server: "Server", visitor: "type[Visitor]"
) -> None:
    name = f"user-{secrets.token_hex(4)}"
    at_home, elsewhere = visitor(server), visitor(server)
    said_at_home = (await at_home.ask("said at home"))["session_id"]
    said_elsewhere = (await elsewhere.ask("said elsewhere"))["session_id"]
    await at_home.register(name)
    assert [it["session_id"] for it in await at_home.conversations()] == [said_at_home]
    await elsewhere.login(name)
    for place in (at_home, elsewhere):
        assert [it["session_id"] for it in await place.conversations()] == [said_elsewhere, said_at_home]
    reply = await elsewhere.ask("and again", session_id=said_at_home)
    assert reply["session_id"] == said_at_home
    # The guest that they were has nothing any more.
    left = visitor(server, cookies=at_home.cookies)
    assert await left.conversations() == []


async def test_an_open_socket_of_a_guest_who_logs_in_goes_on(
    server: "Server", visitor: "type[Visitor]", say: "Say"
) -> None:
    guest = visitor(server)
    async with guest.text() as socket:
        await say(socket, "as a guest")
        await guest.register(f"user-{secrets.token_hex(4)}")
        # It is still the guest's, whose conversation is the user's now: a new one begins.
        await say(socket, "still on that socket")
        await say(socket, "and again")
    assert [it["title"] for it in await guest.conversations()] == ["as a guest"]
    left = visitor(server, cookies=guest.cookies)
    assert [it["title"] for it in await left.conversations()] == ["still on that socket"]


async def test_an_answer_that_runs_while_a_guest_registers_is_the_user_s(
    server: "Server", visitor: "type[Visitor]"
) -> None:
    guest = visitor(server)
    conversation = (await guest.ask("hello"))["session_id"]
    async with guest.responses() as socket:
        await socket.create("and this?", model="slow", conversation=conversation)
        seen = await socket.until("response.output_text.delta")
        await guest.register(f"user-{secrets.token_hex(4)}")
        answer = await socket.rest(seen)
        assert answer.response["status"] == "completed"
    assert (await guest.history(conversation))[2:] == [("user", "and this?"), ("assistant", answer.text)]
    await guest.ask("one more", session_id=conversation)


async def test_a_key_that_nobody_knows_is_ignored(
    server: "Server", visitor: "type[Visitor]", say: "Say", echo_chunks: Callable[..., list[str]]
) -> None:
    async with (
        AsyncOpenAI(base_url=server.http("/v1"), api_key="unused") as client,
        client.responses.connect() as connection,
    ):
        await connection.response.create(model="echo", input="hello")
        async for event in connection:
            if event.type == "response.completed":
                break
        assert event.type == "response.completed"
        assert event.response.output_text == "".join(echo_chunks("hello"))
    guest = visitor(server, token="sk-unknown")
    async with guest.text("/ws?token=nonsense") as socket:
        await say(socket, "hello")
    assert COOKIE in guest.cookies


async def test_a_forged_cookie_is_a_new_guest(server: "Server", visitor: "type[Visitor]", say: "Say") -> None:
    guest = visitor(server)
    await guest.ask("hello")
    real = guest.cookies[COOKIE].value
    head, claims, signature = real.split(".")
    flipped = f"{head}.{claims}.{signature[:-4]}{'AAAA' if signature[-4:] != 'AAAA' else 'BBBB'}"
    for forged in (flipped, f"{head}.{claims}.", f"{head}.{claims[:-2]}.{signature}", "nonsense", "x" * 5000):
        forger = visitor(server)
        forger.cookies[COOKIE] = forged
        assert await forger.conversations() == []
        async with forger.text() as socket:
            await say(socket, "hello")
        assert forger.cookies[COOKIE].value not in (forged, real)
        assert forger.cookies[COOKIE].value.count(".") == 2


async def test_a_guest_without_a_cookie_has_a_token(
    server: "Server", visitor: "type[Visitor]", say: "Say"
) -> None:
    reply = await visitor(server).call("POST", "/api/v1/auth/guest")
    assert (reply.status, reply.json["token_type"]) == (200, "bearer")
    assert A_YEAR_S - 10 <= reply.json["expires_in"] <= A_YEAR_S
    assert "Set-Cookie" not in reply.headers
    token = reply.json["access_token"]
    guest = visitor(server, token)
    conversation = (await guest.ask("hello"))["session_id"]
    async with connect(server.ws(f"/ws?token={token}&conversation={conversation}"), proxy=None) as socket:
        assert socket.response is not None
        assert "Set-Cookie" not in socket.response.headers
        await say(socket, "and again")
    assert not guest.cookies
    assert (await guest.call("GET", "/api/v1/me")).status == 401, "a guest is no user"
    assert [it["session_id"] for it in await guest.conversations()] == [conversation]


async def test_another_site_s_page_cannot_speak_for_a_guest(
    server: "Server", visitor: "type[Visitor]", how_closed: "HowClosed"
) -> None:
    guest = visitor(server)
    await guest.ask("hello")
    evil = {"Origin": "https://evil.example.org"}
    reply = await guest.call("POST", "/chat", {"message": "forged"}, evil)
    assert (reply.status, reply.json["error"]["code"]) == (403, "origin_not_allowed")
    async with connect(server.ws(), proxy=None, additional_headers={**guest.headers, **evil}) as socket:
        assert (await how_closed(socket, "forged")).code == 4403
    assert [it["title"] for it in await guest.conversations()] == ["hello"]


async def test_a_server_that_has_restarted_knows_its_guests(
    run_server: "RunServer", visitor: "type[Visitor]", tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    kept = {
        **CONFIG,
        "storage": {"url": f"sqlite:///{folder}/sluice.db"},
        "auth": {"secret_file": f"{folder}/secret.key"},
    }
    with run_server(kept) as first:
        guest = visitor(first)
        conversation = (await guest.ask("hello"))["session_id"]
    with run_server(kept) as second:
        same = visitor(second, cookies=guest.cookies)
        assert [role for role, _ in await same.history(conversation)] == ["user", "assistant"]


async def test_a_user_whose_login_has_ended_does_not_go_on_as_a_guest(
    server: "Server", visitor: "type[Visitor]", how_closed: "HowClosed"
) -> None:
    ada = visitor(server)
    tokens = await ada.register(f"user-{secrets.token_hex(4)}")
    logout = {"refresh_token": tokens["refresh_token"]}
    assert (await ada.call("POST", "/api/v1/auth/logout", logout)).status == 204
    assert (await ada.call("GET", "/conversations")).status == 401
    async with connect(server.ws(f"/ws?token={ada.token}"), proxy=None) as socket:
        assert await how_closed(socket) == (4401, "this login has ended; log in again")
