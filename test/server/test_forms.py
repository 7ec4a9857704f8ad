"""Two operations in one place: one takes a form, one takes JSON."""

from collections.abc import AsyncIterator
from typing import cast

import pytest
from aiohttp import FormData, web
from aiohttp.test_utils import TestClient, TestServer

from internal.biz.limits import NoLimits
from internal.server.multipart import fields
from internal.server.openapi import describe
from internal.server.rest import AnyRoute, Authenticator, Call, Rest, Route
from internal.service.api.base import Answer, Body, Query


class Words(Body):
    text: str


class Form(Body):
    file: str


class Told(Answer):
    told: str


async def words(call: Call[Words, Query]) -> Told:
    return Told(told=f"words {call.body.text}")


async def form(call: Call[Body, Query]) -> Told:
    return Told(told=" ".join([f"{field.name}={await field.text()}" async for field in fields(call.request)]))


JSON_ROUTE: AnyRoute = Route(
    method="POST",
    path="/say",
    summary="Say",
    description="As JSON.",
    tag="chat",
    body=Words,
    answer=Told,
    handler=words,
)
FORM_ROUTE: AnyRoute = Route(
    method="POST",
    path="/say",
    summary="Send",
    description="As a form.",
    tag="chat",
    form=Form,
    answer=Told,
    status=202,
    errors=(409,),
    handler=form,
)
ORDERS = [[JSON_ROUTE, FORM_ROUTE], [FORM_ROUTE, JSON_ROUTE]]


class Nobody:
    def address_of(self, request: web.Request) -> str:
        return ""


@pytest.fixture(params=ORDERS, ids=["JSON first", "form first"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    app = web.Application()
    Rest(request.param, cast(Authenticator, Nobody()), NoLimits(), 1000).register(app)
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_each_gets_what_is_meant_for_it(client: TestClient[web.Request, web.Application]) -> None:
    as_json = await client.post("/say", json={"text": "hi"})
    assert (as_json.status, await as_json.json()) == (200, {"told": "words hi"})
    as_form = await client.post("/say", data=FormData({"file": "hi"}, default_to_multipart=True))
    assert (as_form.status, await as_form.json()) == (202, {"told": "file=hi"})


@pytest.mark.parametrize("routes", ORDERS)
def test_both_are_described_as_one(routes: list[AnyRoute]) -> None:
    described = describe(routes, auth_required=False)["paths"]["/say"]["post"]
    assert set(described["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert {"200", "202", "409"} <= set(described["responses"])
    for words_of_one in ("As JSON.", "As a form."):
        assert words_of_one in described["description"]
