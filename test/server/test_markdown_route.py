"""/api/markdown: who may ask, and what they are answered."""

from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import Unavailable
from internal.service.api.markdown import MAX_TEXTS

if TYPE_CHECKING:
    from test.server.conftest import Api

PATH = "/api/markdown"


async def test_each_text_is_answered_in_its_place(api: "Api") -> None:
    reply = await api.call("POST", PATH, {"texts": ["b", "", "a", "b"]})
    assert (reply.status, await reply.json()) == (200, {"html": ["[b]", "[]", "[a]", "[b]"]})


async def test_nobody_becomes_a_guest_by_it(api: "Api") -> None:
    reply = await api.call("POST", PATH, {"texts": ["a"]})
    assert "Set-Cookie" not in reply.headers
    assert api.limiter.spent == []


async def test_callers_are_told_apart_by_their_address_or_as_users(api: "Api", closed_api: "Api") -> None:
    await api.call("POST", PATH, {"texts": ["a"]}, "a key that nobody knows")
    assert api.renderer.callers == ["127.0.0.1"]
    token = await closed_api.user()
    await closed_api.call("POST", PATH, {"texts": ["a"]}, token)
    assert closed_api.renderer.callers == [token.removeprefix("access-")]


async def test_where_users_are_required_nobody_else_is_served(closed_api: "Api") -> None:
    for token in (None, "nonsense", "token-guest_1"):
        reply = await closed_api.call("POST", PATH, {"texts": ["a"]}, token)
        assert reply.status == 401
    assert closed_api.renderer.callers == []
    described = await (await closed_api.call("GET", "/openapi.json")).json()
    assert described["paths"][PATH]["post"]["security"] == [{"bearer": []}]


@pytest.mark.parametrize(
    ("texts", "param"), [([], "texts"), (["a"] * (MAX_TEXTS + 1), "texts"), (["a", 1], "texts[1]")]
)
async def test_there_are_neither_none_nor_too_many(api: "Api", texts: list[object], param: str) -> None:
    reply = await api.call("POST", PATH, {"texts": texts})
    assert (reply.status, (await reply.json())["error"]["param"]) == (400, param)
    assert (await api.call("POST", PATH, {"texts": ["a"] * MAX_TEXTS})).status == 200


async def test_who_comes_when_too_many_wait_may_come_again(api: "Api") -> None:
    api.renderer.refusal = Unavailable("more is waiting", code="markdown_busy")
    reply = await api.call("POST", PATH, {"texts": ["a"]})
    assert (reply.status, (await reply.json())["error"]["code"]) == (503, "markdown_busy")
