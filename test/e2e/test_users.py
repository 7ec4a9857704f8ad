"""A server for its users only: who gets in with what, for how long, and what they find there."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError

if TYPE_CHECKING:
    from test.conftest import RunProgram
    from test.e2e.conftest import (
        JSON,
        HowClosed,
        OpenText,
        Raw,
        RunServer,
        Say,
        Server,
        Until,
        Visitor,
    )

PAGE = "https://chat.example.org"
UNKNOWN = "sk-" + "x" * 43
CONFIG: "JSON" = {
    "auth": {"required": True, "jwt_secret": secrets.token_urlsafe(32)},
    "limits": {"login_attempts": 1000},
    "server": {"allowed_origins": [PAGE]},
    "log": {"level": "debug"},
    "models": [
        {"name": "echo", "generator": "echo", "options": {"interval": "5ms"}},
        {"name": "endless", "generator": "echo", "options": {"chunks": 3000, "interval": "10ms"}},
    ],
}


@pytest.fixture(scope="module")
def server(run_server: "RunServer", impatient: Sequence[str]) -> Iterator["Server"]:
    with run_server(CONFIG, program=impatient) as server:
        yield server


Register = Callable[[], Awaitable["Visitor"]]


@pytest.fixture
def user(server: "Server", visitor: "type[Visitor]") -> Register:
    """A new user who is logged in; the name is the test's."""

    async def register() -> "Visitor":
        somebody = visitor(server)
        await somebody.register(f"user-{secrets.token_hex(4)}")
        return somebody

    return register


# ── how one gets in ──────────────────────────────────────────────────────────────────────────────


async def test_who_registers_can_log_in_and_is_known(server: "Server", visitor: "type[Visitor]") -> None:
    ada = visitor(server)
    tokens = await ada.register("Ada")
    assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 3600)
    me = await ada.call("GET", "/api/v1/me")
    assert (me.status, me.json["username"], me.json["email"]) == (200, "Ada", "Ada@example.org")
    assert not ada.cookies, "a user is no guest"

    wrong = await ada.call("POST", "/api/v1/auth/login", {"username": "ada", "password": "wrong horse"})
    assert (wrong.status, wrong.json["error"]["code"]) == (401, "invalid_credentials")
    assert wrong.headers["WWW-Authenticate"] == "Bearer"

    refreshed = await ada.call("POST", "/api/v1/auth/refresh", {"refresh_token": tokens["refresh_token"]})
    assert refreshed.status == 200
    assert (await visitor(server, refreshed.json["access_token"]).call("GET", "/api/v1/me")).status == 200


async def test_nobody_else_is_served(server: "Server", visitor: "type[Visitor]") -> None:
    for token in (None, UNKNOWN):
        stranger = visitor(server, token)
        for method, path in (("GET", "/conversations"), ("POST", "/chat"), ("GET", "/api/v1/me")):
            reply = await stranger.call(method, path, {"message": "hello"} if method == "POST" else None)
            assert (reply.status, reply.json["error"]["type"]) == (401, "authentication_error")
        assert not stranger.cookies, "there are no guests here"


Carried = Callable[["Server", str, str], AbstractAsyncContextManager[ClientConnection]]


def in_the_header(server: "Server", path: str, token: str) -> AbstractAsyncContextManager[ClientConnection]:
    headers = {"Authorization": f"Bearer {token}"}
    return connect(server.ws(path), proxy=None, additional_headers=headers)


def in_the_address(server: "Server", path: str, token: str) -> AbstractAsyncContextManager[ClientConnection]:
    return connect(server.ws(f"{path}?token={token}"), proxy=None)


@contextlib.asynccontextmanager
async def in_the_subprotocol(server: "Server", path: str, token: str) -> AsyncIterator[ClientConnection]:
    offered = ["realtime", f"openai-insecure-api-key.{token}"]
    async with connect(server.ws(path), proxy=None, subprotocols=offered) as socket:  # type: ignore[arg-type]
        assert socket.subprotocol == "realtime"
        yield socket


@contextlib.asynccontextmanager
async def in_the_only_subprotocol(server: "Server", path: str, token: str) -> AsyncIterator[ClientConnection]:
    offered = [f"openai-insecure-api-key.{token}"]
    async with connect(server.ws(path), proxy=None, subprotocols=offered) as socket:  # type: ignore[arg-type]
        assert socket.subprotocol is None, "a key is not sent back"
        yield socket


CARRIED = [in_the_header, in_the_address, in_the_subprotocol, in_the_only_subprotocol]


@pytest.mark.parametrize("carried", CARRIED)
async def test_a_token_and_a_key_open_a_socket(
    user: Register, say: "Say", until: "Until", carried: Carried
) -> None:
    ada = await user()
    assert ada.token is not None
    for credential in (ada.token, (await ada.key())["key"]):
        async with carried(ada.server, "/ws", credential) as socket:
            await say(socket, "hello")

    async def are_stored() -> bool:
        return [found["message_count"] for found in await ada.conversations()] == [2, 2]

    await until(are_stored)


@pytest.mark.parametrize("path", ["/ws", "/v1/responses"])
@pytest.mark.parametrize("carried", CARRIED)
async def test_who_is_not_known_is_told_4401(
    server: "Server", how_closed: "HowClosed", carried: Carried, path: str
) -> None:
    async with carried(server, path, UNKNOWN) as socket:
        closed = await how_closed(socket)
    assert closed == (4401, "there is no such API key; it may have been revoked")


async def test_who_shows_nothing_is_told_what_to_show(
    server: "Server", text_socket: "OpenText", how_closed: "HowClosed"
) -> None:
    for path in ("/ws", "/v1/responses", "/ws?token=", "/ws?conversation=conv_1"):
        async with text_socket(server, path) as socket:
            code, reason = await how_closed(socket, "hello")
        assert code == 4401
        assert "Authorization: Bearer TOKEN" in reason


async def test_subprotocols_may_be_offered_in_several_lines(user: Register, raw: "Raw") -> None:
    """A list in a header may be spread over several lines. Source: RFC 9110 §5.3."""
    ada = await user()
    offered = [f"openai-insecure-api-key.{ada.token}", "realtime"]
    socket = await raw.connect(ada.server)
    headers = [("Sec-WebSocket-Protocol", name) for name in offered]
    await socket.send(raw.upgrade_request("/ws", headers))
    head = await socket.read_head()
    assert "sec-websocket-protocol: realtime\r\n" in head.lower()
    await socket.send_text("hello")
    assert await socket.text() == "chunk 1: hello"


async def test_a_page_of_an_allowed_origin_gets_in_with_its_token(
    user: Register, say: "Say", how_closed: "HowClosed"
) -> None:
    ada = await user()
    address = ada.server.ws(f"/ws?token={ada.token}")
    async with connect(address, proxy=None, additional_headers={"Origin": PAGE}) as socket:
        await say(socket, "hello")
    evil = {"Origin": "https://evil.example.org"}
    async with connect(address, proxy=None, additional_headers=evil) as socket:
        assert await how_closed(socket) == (4403, "pages of this origin may not connect")


async def test_the_openai_package_gets_in_with_a_key(
    user: Register, echo_chunks: Callable[..., list[str]]
) -> None:
    ada = await user()
    key = (await ada.key())["key"]
    async with (
        AsyncOpenAI(base_url=ada.server.http("/v1"), api_key=key) as client,
        client.responses.connect() as connection,
    ):
        await connection.response.create(model="echo", input="hello")
        async for event in connection:
            if event.type == "response.completed":
                break
        assert event.type == "response.completed"
        assert event.response.output_text == "".join(echo_chunks("hello"))


async def test_the_openai_package_says_that_a_key_is_wrong(server: "Server") -> None:
    async with (
        AsyncOpenAI(base_url=server.http("/v1"), api_key=UNKNOWN) as client,
        client.responses.connect() as connection,
    ):
        with pytest.raises(ConnectionClosedError) as closed:
            await connection.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason[:24]) == (4401, "there is no such API key")


# ── for how long ─────────────────────────────────────────────────────────────────────────────────


async def test_an_expired_token_ends_the_session_at_the_next_message_and_not_before(
    run_server: "RunServer", visitor: "type[Visitor]", how_closed: "HowClosed"
) -> None:
    auth = {**CONFIG["auth"], "access_ttl": "2s"}
    models = [{"name": "echo", "generator": "echo", "options": {"chunks": 66, "interval": "50ms"}}]
    with run_server({**CONFIG, "auth": auth, "models": models}) as server:
        ada = visitor(server)
        tokens = await ada.register("ada")
        assert tokens["expires_in"] == 2
        async with ada.responses() as idle, ada.responses() as socket:
            # It takes longer than the token lasts, which may be a second more than it was told to.
            answer = await socket.ask("hello")
            assert answer.text == "".join(f"chunk {number}: hello" for number in range(1, 67))
            assert (await ada.call("GET", "/api/v1/me")).status == 401
            for connection in (idle.connection, socket.connection):
                closed = await how_closed(connection, '{"type": "response.create", "input": "hello"}')
                assert closed == (4401, "your login has expired; log in again")
        refreshed = await ada.call("POST", "/api/v1/auth/refresh", {"refresh_token": tokens["refresh_token"]})
        ada.token = refreshed.json["access_token"]
        async with ada.responses() as socket:
            await socket.resume(answer.id)
            assert (await socket.rest()).text == answer.text


End = Callable[["Visitor", "JSON", "RunProgram"], Awaitable[None]]


async def change_the_password(ada: "Visitor", tokens: "JSON", run_program: "RunProgram") -> None:
    passwords = {"current_password": "correct horse battery", "new_password": "another horse battery"}
    assert (await ada.call("POST", "/api/v1/auth/password", passwords)).status == 200


async def log_out(ada: "Visitor", tokens: "JSON", run_program: "RunProgram") -> None:
    logout = {"refresh_token": tokens["refresh_token"]}
    assert (await ada.call("POST", "/api/v1/auth/logout", logout)).status == 204


async def disable_the_user(ada: "Visitor", tokens: "JSON", run_program: "RunProgram") -> None:
    name = (await ada.call("GET", "/api/v1/me")).json["username"]
    done = await asyncio.to_thread(
        run_program, "-m", "cmd.user", "-conf", str(ada.server.config_file), "disable", name
    )
    assert done.status == 0, done.errors


async def delete_the_account(ada: "Visitor", tokens: "JSON", run_program: "RunProgram") -> None:
    proof = {"password": "correct horse battery"}
    assert (await ada.call("DELETE", "/api/v1/me", proof)).status == 204


@pytest.mark.parametrize("end", [change_the_password, log_out, disable_the_user, delete_the_account])
async def test_who_is_not_let_in_any_more_is_closed_at_the_next_message(
    server: "Server",
    visitor: "type[Visitor]",
    run_program: "RunProgram",
    say: "Say",
    how_closed: "HowClosed",
    end: End,
) -> None:
    ada = visitor(server)
    tokens = await ada.register(f"user-{secrets.token_hex(4)}")
    async with ada.text() as socket:
        await say(socket, "hello")
        await end(ada, tokens, run_program)
        assert await how_closed(socket, "and again") == (4401, "your login has expired; log in again")
    assert (await ada.call("GET", "/api/v1/me")).status == 401


async def test_a_revoked_key_is_closed_at_the_next_message_and_other_ways_stay_open(
    user: Register, say: "Say", how_closed: "HowClosed", visitor: "type[Visitor]"
) -> None:
    ada = await user()
    key = await ada.key()
    async with ada.text() as own, visitor(ada.server, key["key"]).text() as program:
        await say(program, "hello")
        assert (await ada.call("DELETE", f"/api/v1/keys/{key['id']}")).status == 204
        assert (await how_closed(program, "and again")).code == 4401
        await say(own, "hello")


# ── whose it is ──────────────────────────────────────────────────────────────────────────────────


async def test_another_user_s_answer_cannot_be_followed_stopped_or_continued(user: Register) -> None:
    ada, eve = await user(), await user()
    async with ada.responses() as hers, eve.responses() as other:
        await hers.create("hello", model="endless")
        seen = await hers.until("response.output_text.delta")
        running = seen[0]["response"]["id"]
        for event in (
            {"type": "response.resume", "response_id": running},
            {"type": "response.cancel", "response_id": running},
        ):
            await other.send(event)
            assert (await other.error())["code"] == "response_not_found"
        await other.create("and?", previous_response_id=running)
        assert (await other.error())["code"] == "previous_response_not_found"
        # It went on.
        await hers.until("response.output_text.delta")
        await hers.cancel(running)
        assert (await hers.rest(seen)).response["status"] == "incomplete"


async def test_another_user_s_conversation_cannot_be_read_continued_or_changed(
    user: Register, text_socket: "OpenText"
) -> None:
    ada, eve = await user(), await user()
    conversation = (await ada.ask("hello"))["session_id"]
    response = await eve.call("POST", "/chat", {"message": "hello", "session_id": conversation})
    assert (response.status, response.json["error"]["param"]) == (404, "session_id")
    for method, path, body in (
        ("GET", "/history", None),
        ("GET", "/export", None),
        ("PATCH", "", {"title": "mine"}),
        ("DELETE", "", None),
    ):
        reply = await eve.call(method, f"/conversations/{conversation}{path}", body)
        assert (reply.status, reply.json["error"]["code"]) == (404, "conversation_not_found")
    async with eve.responses() as socket:
        await socket.create("hello", conversation=conversation)
        assert (await socket.error())["code"] == "conversation_not_found"
    async with eve.text(f"/ws?conversation={conversation}") as text:
        await text.send("hello")
        assert str(await text.recv()).startswith("error: there is no conversation")
    assert await eve.conversations() == await eve.conversations("?q=hello") == []
    assert len(await ada.history(conversation)) == 2


async def test_one_s_own_answer_is_resumed_on_another_connection(user: Register) -> None:
    ada = await user()
    async with ada.responses() as first:
        answer = await first.ask("hello")
        following = await first.ask("and?", previous_response_id=answer.id)
        assert following.response["status"] == "completed"
    async with ada.responses() as second:
        await second.resume(answer.id, starting_after=answer.numbers[3])
        assert (await second.rest()).events == answer.events[4:]


# ── what nobody else learns ──────────────────────────────────────────────────────────────────────


async def test_no_secret_and_no_prompt_reaches_the_log(
    user: Register, visitor: "type[Visitor]", how_closed: "HowClosed", say: "Say"
) -> None:
    ada = await user()
    password, prompt = f"pass-{secrets.token_hex(8)}", f"prompt-{secrets.token_hex(8)}"
    wrong, wrong_key = f"wrong-{secrets.token_hex(8)}", f"sk-{secrets.token_urlsafe(32)}"
    name = f"user-{secrets.token_hex(4)}"
    bob = visitor(ada.server)
    tokens = await bob.register(name, password)
    login = {"username": name, "password": wrong}
    assert (await bob.call("POST", "/api/v1/auth/login", login)).status == 401
    assert bob.token is not None
    key = (await bob.key())["key"]
    for carried in CARRIED:
        for credential in (bob.token, key):
            async with carried(ada.server, "/ws", credential) as socket:
                await say(socket, prompt)
        async with carried(ada.server, "/v1/responses", wrong_key) as socket:
            await how_closed(socket, prompt)
    conversation = (await bob.ask(prompt))["session_id"]
    assert len(await bob.conversations(f"?q={prompt}")) == 9
    await bob.call("GET", f"/conversations/{conversation}/export?format=markdown&token={bob.token}")
    passwords = {"current_password": password, "new_password": f"{password}!"}
    assert (await bob.call("POST", "/api/v1/auth/password", passwords)).status == 200

    said = ada.server.log
    assert "session opened" in said, "the level is debug"
    for secret in (password, wrong, wrong_key, key, bob.token, tokens["refresh_token"], prompt, "argon2"):
        assert secret not in said
