"""Budgets of users and addresses: what is told of them, and that nobody else suffers when one is spent."""

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from test.conftest import OwnRedis
    from test.e2e.conftest import JSON, Reply, RunServer, Say, Server, Visitor

PER_MINUTE = 60
TOKENS = 100
IN_FLIGHT = 2
ADDRESS_PER_MINUTE = 90
LOGINS = 2
LIMITS = {
    "user": {"requests": PER_MINUTE, "tokens": TOKENS, "in_flight": IN_FLIGHT},
    "address": {"requests": ADDRESS_PER_MINUTE},
    "login_attempts": LOGINS,
}
MODELS: "list[JSON]" = [
    {"name": "word", "generator": "echo", "options": {"chunks": 1, "interval": "0"}},
    {"name": "wordy", "generator": "echo", "options": {"chunks": TOKENS + 20, "interval": "0"}},
    {"name": "endless", "generator": "echo", "options": {"chunks": 3000, "interval": "10ms"}},
]
PROXY = "127.0.0.1"
ELSEWHERE = "127.0.0.2"
_addresses = (f"198.18.{number >> 8}.{number & 255}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    config = {"limits": LIMITS, "server": {"trusted_proxies": [PROXY]}, "models": MODELS}
    with run_server(config) as server:
        yield server


Come = Callable[..., "Visitor"]


@pytest.fixture
def come(server: "Server", visitor: "type[Visitor]") -> Come:
    """A new guest from an address of their own, or from the one that is given."""

    def come(address: str | None = None) -> "Visitor":
        return visitor(server, forwarded_for=address or next(_addresses))

    return come


async def spend(guest: "Visitor") -> "Reply":
    """Ask until it is refused."""
    for _ in range(2 * ADDRESS_PER_MINUTE):
        reply = await guest.call("POST", "/chat", {"message": "hello"})
        if reply.status != 200:
            return reply
    raise AssertionError("nobody has refused anything")


def told(reply: "Reply") -> tuple[int, int, int]:
    limit, remaining, reset = (
        int(reply.headers[f"X-RateLimit-{name}"]) for name in ("Limit", "Remaining", "Reset")
    )
    return limit, remaining, reset


# ── what is told ─────────────────────────────────────────────────────────────────────────────────


async def test_every_answer_tells_what_is_left(come: Come) -> None:
    guest = come()
    first = await guest.call("POST", "/chat", {"message": "hello"})
    assert told(first) == (PER_MINUTE, PER_MINUTE - 1, 1)
    stream = await guest.call("POST", "/chat/message", {"message": "hello"})
    limit, remaining, reset = told(stream)
    assert (limit, reset in (1, 2)) == (PER_MINUTE, True)
    assert remaining in (PER_MINUTE - 1, PER_MINUTE - 2)
    assert "X-RateLimit-Limit" not in (await guest.call("GET", "/conversations")).headers


async def test_a_spent_budget_is_a_429_that_says_when_to_come_back(come: Come) -> None:
    guest, other = come(), come()
    refused = await spend(guest)
    assert refused.status == 429
    assert refused.headers["Content-Type"] == "application/json"
    error = refused.json["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert error["message"].startswith(f"you may have {PER_MINUTE} requests a minute")
    limit, remaining, reset = told(refused)
    assert (limit, remaining) == (PER_MINUTE, 0)
    assert 50 < reset <= 60
    assert refused.headers["Retry-After"] == "1"
    # To read what was said costs nothing, and nobody else pays.
    assert len(await guest.conversations()) == 20
    await other.ask("hello")
    await asyncio.sleep(int(refused.headers["Retry-After"]))
    await guest.ask("and again")


async def test_both_dialects_tell_it_and_stay_open(come: Come, say: "Say") -> None:
    guest = come()
    async with guest.text() as text, guest.responses() as socket:
        refused = await spend(guest)
        assert refused.status == 429
        await text.send("hello")
        sentence = str(await text.recv())
        assert sentence.startswith(f"error: you may have {PER_MINUTE} requests a minute; try again in")
        await socket.create("hello", stream_id="a")
        event = await socket.event()
        assert (event["type"], event["status"], event["stream_id"]) == ("error", 429, "a")
        assert (event["error"]["type"], event["error"]["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        await asyncio.sleep(int(refused.headers["Retry-After"]))
        await say(text, "hello", 1)
        await asyncio.sleep(int(refused.headers["Retry-After"]))
        assert (await socket.ask("hello")).text == "chunk 1: hello"


async def test_generated_tokens_are_paid_afterwards(come: Come) -> None:
    guest = come()
    # It begins with a full budget, and takes more than there is.
    await guest.ask("hello", model="wordy")
    refused = await guest.call("POST", "/chat", {"message": "hello"})
    assert refused.status == 429
    assert refused.json["error"]["message"].startswith(f"you may have {TOKENS} generated tokens a minute")
    limit, remaining, reset = told(refused)
    assert (limit, remaining) == (TOKENS, 0)
    assert reset > 60
    # 20 more than there are come in within 12 seconds.
    assert 1 <= int(refused.headers["Retry-After"]) <= 13


async def test_only_so_many_answers_of_a_user_run_at_a_time(come: Come) -> None:
    guest = come()
    async with guest.responses() as socket, guest.responses() as another, guest.text("/ws") as text:
        await socket.create("1", model="endless")
        first = (await socket.until("response.in_progress"))[0]["response"]["id"]
        await another.create("2", model="endless")
        await another.until("response.in_progress")
        await another.create("3", model="endless", stream_id="b")
        event = await another.event()
        while event["type"] != "error":
            event = await another.event()
        assert (event["status"], event["error"]["code"]) == (429, "too_many_in_flight")
        await text.send("4")
        assert str(await text.recv()).startswith(f"error: at most {IN_FLIGHT} of your responses")
        refused = await guest.call("POST", "/chat", {"message": "5"})
        assert (refused.status, refused.json["error"]["code"]) == (429, "too_many_in_flight")
        # One ends, one may begin.
        await socket.cancel(first)
        await socket.rest()
        await guest.ask("6")


# ── whose budget it is ───────────────────────────────────────────────────────────────────────────


async def users(come: Come, count: int) -> "list[Visitor]":
    """Registered each from an address of their own."""
    found = []
    for _ in range(count):
        found.append(user := come())
        await user.register(f"user-{secrets.token_hex(4)}")
    return found


async def test_all_from_one_address_share_its_budget(come: Come) -> None:
    address, somewhere = next(_addresses), next(_addresses)
    first, second = await users(come, 2)
    first.forwarded_for = second.forwarded_for = address
    assert (await spend(first)).json["error"]["message"].startswith("you may")
    refused = await spend(second)
    assert refused.status == 429
    assert refused.json["error"]["message"].startswith(
        f"your address may have {ADDRESS_PER_MINUTE} requests a minute"
    )
    assert told(refused)[:2] == (ADDRESS_PER_MINUTE, 0)
    # A client cannot talk itself out of it: what it says of itself stands before what the proxy says.
    second.forwarded_for = f"198.51.100.7, {address}"
    assert (await spend(second)).json["error"]["message"].startswith("your address")
    second.forwarded_for = somewhere
    await second.ask("from elsewhere")


async def test_the_addresses_of_an_ipv6_network_are_one(come: Come) -> None:
    first, second = await users(come, 2)
    first.forwarded_for, second.forwarded_for = "2001:db8::1", "2001:db8::2"
    await spend(first)
    assert (await spend(second)).json["error"]["message"].startswith("your address")
    second.forwarded_for = "2001:db8:0:1::1"
    await second.ask("from another network")


async def test_guests_of_one_address_count_as_one(come: Come) -> None:
    """To be another guest costs nothing."""
    address = next(_addresses)
    await spend(come(address))
    another = await come(address).call("POST", "/chat", {"message": "hello"})
    assert another.json["error"]["message"].startswith("you may")
    await come().ask("from elsewhere")


async def test_who_is_no_trusted_proxy_is_not_believed(server: "Server", visitor: "type[Visitor]") -> None:
    async def somebody() -> "Reply":
        liar = visitor(server, forwarded_for=next(_addresses), source=ELSEWHERE)
        return await liar.call("POST", "/chat", {"message": "hello"})

    replies = [await somebody() for _ in range(PER_MINUTE + 20)]
    assert replies[-1].status == 429
    assert (await visitor(server, source="127.0.0.3").call("POST", "/chat", {"message": "hi"})).status == 200


# ── logins ───────────────────────────────────────────────────────────────────────────────────────


async def test_passwords_cannot_be_tried_at_will(come: Come) -> None:
    name = f"user-{secrets.token_hex(4)}"
    ada = come()
    await ada.register(name)
    address = next(_addresses)
    wrong = {"username": name, "password": "wrong horse battery"}
    right = {**wrong, "password": "correct horse battery"}
    replies = [await come(address).call("POST", "/api/v1/auth/login", wrong) for _ in range(LOGINS + 1)]
    assert [reply.status for reply in replies] == [401] * LOGINS + [429]
    refused = await come(address).call("POST", "/api/v1/auth/login", right)
    assert refused.status == 429, "not even the right one"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60 / LOGINS
    assert refused.json["error"]["message"].startswith(
        f"your address may have {LOGINS} tries with a password"
    )
    assert "X-RateLimit-Limit" in refused.headers
    # Who they are not is not kept out by that.
    assert (await come().call("POST", "/api/v1/auth/login", right)).status == 200
    for _ in range(30 * LOGINS):
        refused = await come().call("POST", "/api/v1/auth/login", wrong)
        if refused.status == 429:
            break
    assert refused.json["error"]["message"].startswith(f"this name may have {10 * LOGINS} tries")
    # Nor is who has logged in, whatever strangers do.
    change = {"current_password": right["password"], "new_password": "another horse battery"}
    assert (await ada.call("POST", "/api/v1/auth/password", change)).status == 200


async def test_names_cannot_be_tried_at_will(come: Come) -> None:
    address = next(_addresses)
    wrong = {"password": "wrong horse battery"}
    replies = [
        await come(address).call("POST", "/api/v1/auth/login", {**wrong, "username": f"nobody-{number}"})
        for number in range(LOGINS + 1)
    ]
    assert [reply.status for reply in replies] == [401] * LOGINS + [429]
    assert replies[-1].json["error"]["message"].startswith("your address may have")


# ── several servers ──────────────────────────────────────────────────────────────────────────────

FEW = 6
Config = Callable[[str], "JSON"]


@pytest.fixture
def shared(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """What servers have in common that are one."""
    folder = tmp_path_factory.mktemp("shared")

    def config(redis_url: str) -> "JSON":
        return {
            "queue": {"driver": "redis", "url": redis_url, "prefix": f"limits-{secrets.token_hex(4)}"},
            "storage": {"url": f"sqlite:///{folder}/sluice.db"},
            "auth": {"secret_file": f"{folder}/secret.key"},
            "limits": {"user": {"requests": FEW}, "login_attempts": 3},
            "server": {"trusted_proxies": [PROXY]},
            "models": MODELS,
        }

    return config


async def test_servers_share_the_budgets_and_pass_everything_while_redis_is_away(
    run_server: "RunServer", visitor: "type[Visitor]", shared: Config, own_redis: "OwnRedis"
) -> None:
    config = shared(own_redis.url)
    with run_server(config) as here, run_server(config) as there:
        here.expected_alarm = there.expected_alarm = r"ERROR +internal\.data\.redis\.link: Redis is away"
        guest = visitor(here)
        async with guest.responses() as one:
            elsewhere = visitor(there, cookies=guest.cookies)
            async with elsewhere.responses() as two:
                # There is no worker, so what is admitted waits.
                for number in range(FEW):
                    socket = (one, two)[number % 2]
                    await socket.create("hello", stream_id=f"{number}")
                    await socket.until("response.queued")
                for socket in (one, two):
                    await socket.create("one too many", stream_id="x")
                    assert (await socket.error())["code"] == "rate_limit_exceeded"
            for place in (guest, elsewhere):
                refused = await place.call("POST", "/chat", {"message": "one too many"})
                assert (refused.status, told(refused)[:2]) == (429, (FEW, 0))
                assert 1 <= int(refused.headers["Retry-After"]) <= 60 / FEW
            wrong = {"username": "nobody", "password": "wrong horse battery"}
            address = next(_addresses)

            def tries(server: "Server") -> Awaitable["Reply"]:
                somebody = visitor(server, forwarded_for=address)
                return somebody.call("POST", "/api/v1/auth/login", wrong)

            replies = [await tries(server) for server in (here, there, here, there)]
            assert [reply.status for reply in replies] == [401, 401, 401, 429]

            await own_redis.kill()
            before = (await here.metrics()).value("sluice_limiter_failures_total")
            await one.create("nobody counts now", stream_id="y")
            error = await one.error()
            # The budget is not what it fails for.
            assert error["type"] == "server_error"
            assert "requests a minute" not in error["message"]
            assert (await here.metrics()).value("sluice_limiter_failures_total") > before
            # Logins are counted all the same, by each server for itself.
            replies = [await tries(here) for _ in range(4)]
            assert [reply.status for reply in replies] == [401, 401, 401, 429]
            await own_redis.start()
