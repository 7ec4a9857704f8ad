"""Users, tokens, keys and settings over HTTP."""

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from internal.biz.generation import FinishReason
from internal.biz.preferences import Preferences

if TYPE_CHECKING:
    from test.server.conftest import Api

ADA = {"username": "ada", "email": "ada@example.org", "password": "password-1"}
LOGIN = {"username": "ada", "password": "password-1"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


async def json_of(api: "Api", method: str, path: str, body: object = None, token: str | None = None) -> Any:
    reply = await api.call(method, path, body, token)
    assert reply.status < 300, await reply.text()
    return await reply.json() if reply.status != 204 else None


async def test_from_registering_to_leaving(api: "Api") -> None:
    registered = await json_of(api, "POST", "/api/v1/auth/register", ADA)
    assert set(registered) == {"id", "username"}
    tokens = await json_of(api, "POST", "/api/v1/auth/login", LOGIN)
    assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 3600)
    renewed = await json_of(api, "POST", "/api/v1/auth/refresh", {"refresh_token": tokens["refresh_token"]})
    assert renewed["refresh_token"] != tokens["refresh_token"]
    token = renewed["access_token"]
    me = await json_of(api, "GET", "/api/v1/me", token=token)
    assert me == {**registered, "email": "ada@example.org", "created_at": me["created_at"]}
    assert TIME.fullmatch(me["created_at"])
    change = {"current_password": "password-1", "new_password": "password-2"}
    assert "access_token" in await json_of(api, "POST", "/api/v1/auth/password", change, token)
    await json_of(api, "POST", "/api/v1/auth/logout", {"refresh_token": renewed["refresh_token"]})
    wrong = await api.call("DELETE", "/api/v1/me", {"password": "password-1"}, token)
    assert (wrong.status, (await wrong.json())["error"]["code"]) == (401, "invalid_credentials")
    await json_of(api, "DELETE", "/api/v1/me", {"password": "password-2"}, token)
    assert (await api.call("GET", "/api/v1/me", token=token)).status == 401


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("register", {**ADA, "password": "short"}, 400, "invalid_request", "password"),
        ("register", ADA, 409, "name_taken", "username"),
        ("login", {**LOGIN, "password": "wrong"}, 401, "invalid_credentials", None),
        ("refresh", {"refresh_token": "used"}, 401, "login_ended", None),
        ("logout", {"refresh_token": "used"}, 401, "login_ended", None),
    ],
)
async def test_a_refusal_says_why(
    api: "Api", path: str, body: object, status: int, code: str, param: str | None
) -> None:
    await api.user()
    reply = await api.call("POST", f"/api/v1/auth/{path}", body)
    error = (await reply.json())["error"]
    assert (reply.status, error["code"], error["param"]) == (status, code, param)


async def test_no_complaint_repeats_a_password(api: "Api") -> None:
    body = {**ADA, "password": ["hunter2"], "hunter3": 1}
    text = await (await api.call("POST", "/api/v1/auth/register", body)).text()
    assert "hunter2" not in text


async def test_a_key_s_secret_is_shown_once(api: "Api") -> None:
    token = await api.user()
    made = await json_of(api, "POST", "/api/v1/keys", {"name": "laptop"}, token)
    secret = made.pop("key")
    listed = await json_of(api, "GET", "/api/v1/keys", token=secret)
    assert listed == {"keys": [made]}
    assert (made["name"], made["last_used_at"]) == ("laptop", None)
    await json_of(api, "DELETE", f"/api/v1/keys/{made['id']}", token=token)
    assert await json_of(api, "GET", "/api/v1/keys", token=token) == {"keys": []}
    assert (await api.call("GET", "/api/v1/keys", token=secret)).status == 401


async def test_a_new_password_takes_the_keys_along_if_told_to(api: "Api") -> None:
    token = await api.user()
    key = (await json_of(api, "POST", "/api/v1/keys", {"name": "laptop"}, token))["key"]
    first = {"current_password": "password-1", "new_password": "password-2"}
    await json_of(api, "POST", "/api/v1/auth/password", first, token)
    assert (await api.call("GET", "/api/v1/me", token=key)).status == 200
    second = {"current_password": "password-2", "new_password": "password-3", "revoke_keys": True}
    await json_of(api, "POST", "/api/v1/auth/password", second, token)
    assert (await api.call("GET", "/api/v1/me", token=key)).status == 401


async def test_who_leaves_stops_what_still_runs(api: "Api") -> None:
    token = await api.user()
    asking = asyncio.create_task(api.call("POST", "/chat", {"message": "hello"}, token))
    run = await api.engine.claim()
    api.accounts.running = ["resp_unknown", run.request.response_id]
    await json_of(api, "DELETE", "/api/v1/me", {"password": "password-1"}, token)
    assert await asyncio.wait_for(api.engine.revoked.get(), 5) == run.request.response_id
    await run.finish(FinishReason.CANCELLED)
    assert (await (await asking).json())["incomplete"] == "cancelled"


async def test_settings_are_changed_one_by_one(api: "Api") -> None:
    token = await api.user()
    nothing = {
        "model": None,
        "upstream_url": None,
        "upstream_key": None,
        "max_tokens": None,
        "presets": ["m", "other"],
        "upstream_model": None,
    }
    assert await json_of(api, "GET", "/api/config", token=token) == nothing
    changed = await json_of(api, "POST", "/api/config", {"model": "other"}, token)
    assert changed == {**nothing, "model": "other"}
    changed = await json_of(api, "POST", "/api/config", {"max_tokens": 7}, token)
    assert changed == {**nothing, "model": "other", "max_tokens": 7}
    changed = await json_of(api, "POST", "/api/config", {"model": None}, token)
    assert changed == await json_of(api, "GET", "/api/config", token=token) == {**nothing, "max_tokens": 7}


async def test_an_upstream_s_key_never_comes_back(api: "Api") -> None:
    token = await api.user()
    secret = "sk-0123456789abcdefghij"
    own = {"upstream_url": "https://a.example/v1", "upstream_key": secret, "model": "theirs"}
    shown = await json_of(api, "POST", "/api/config", own, token)
    assert shown["upstream_key"] == "********ghij"

    def kept() -> Preferences:
        return api.accounts.settings[token.removeprefix("access-")]

    # A form sends back what it was shown.
    await json_of(api, "POST", "/api/config", {"upstream_key": "********ghij", "max_tokens": 5}, token)
    assert (kept().upstream_key, kept().max_output_tokens) == (secret, 5)
    # The address was another's: they must not get the key.
    moved = await json_of(api, "POST", "/api/config", {"upstream_url": "https://evil.example/v1"}, token)
    assert (moved["upstream_key"], kept().upstream_key) == (None, None)
    short = await json_of(api, "POST", "/api/config", {"upstream_key": "short"}, token)
    assert short["upstream_key"] == "********"


@pytest.mark.parametrize(
    "change",
    [
        {"upstream_url": "https://evil.example/v1"},
        {"upstream_url": None},
        {"upstream_key": "sk-another"},
        {"upstream_key": None},
        {"upstream_url": "https://evil.example/v1", "upstream_key": "sk-0123456789abcdefghij"},
    ],
)
async def test_an_api_key_changes_no_upstream(api: "Api", change: dict[str, object]) -> None:
    token = await api.user()
    own = {"upstream_url": "https://a.example/v1", "upstream_key": "sk-0123456789abcdefghij"}
    shown = await json_of(api, "POST", "/api/config", own, token)
    key = (await json_of(api, "POST", "/api/v1/keys", {"name": "laptop"}, token))["key"]
    refused = await api.call("POST", "/api/config", {**change, "max_tokens": 9}, key)
    assert (refused.status, (await refused.json())["error"]["code"]) == (403, "login_required")
    assert await json_of(api, "GET", "/api/config", token=token) == shown
    # A form sends back what it was shown.
    back = {name: shown[name] for name in own}
    changed = await json_of(api, "POST", "/api/config", {**back, "max_tokens": 7}, key)
    assert changed == {**shown, "max_tokens": 7}


async def test_the_settings_say_which_model_asks_the_upstream(own_api: "Api") -> None:
    token = await own_api.user()
    assert (await json_of(own_api, "GET", "/api/config", token=token))["upstream_model"] == "other"
    changed = await json_of(own_api, "POST", "/api/config", {"max_tokens": 5}, token)
    assert changed["upstream_model"] == "other"
    description = await json_of(own_api, "GET", "/openapi.json")
    fields = description["components"]["schemas"]["ConfigChange"]["properties"]
    assert "null it is stored, and not used" in fields["upstream_url"]["description"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "nobody"}, 404, "model"),
        ({"model": ""}, 400, "model"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"max_tokens": 2**31}, 400, "max_tokens"),
        ({"upstream_url": "ftp://x"}, 400, "upstream_url"),
    ],
)
async def test_wrong_settings_are_refused(api: "Api", body: object, status: int, param: str) -> None:
    token = await api.user()
    reply = await api.call("POST", "/api/config", body, token)
    assert (reply.status, (await reply.json())["error"]["param"]) == (status, param)
    assert not api.accounts.settings


async def test_health(api: "Api") -> None:
    reply = await api.call("GET", "/api/health")
    assert (reply.status, (await reply.json())["status"]) == (200, "ready")
    api.readiness.draining = True
    reply = await api.call("GET", "/api/health")
    assert (reply.status, (await reply.json())["status"]) == (503, "draining")
