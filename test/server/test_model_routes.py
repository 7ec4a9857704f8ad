"""/v1/models for operators: load and unload, and who may."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import openai
import pytest
from aiohttp import ClientResponse

from internal.biz import model_orders
from internal.biz.errors import Conflict
from internal.biz.model_orders import ModelOrders
from internal.biz.models import Condition, ModelState, Order

if TYPE_CHECKING:
    from test.server.conftest import Api

LOAD, UNLOAD = "/v1/models/m/load", "/v1/models/m/unload"


@pytest.fixture
async def orders(api: "Api") -> AsyncIterator[ModelOrders]:
    """As in a server, where they run."""
    running = asyncio.create_task(api.orders.run())
    yield api.orders
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def order(api: "Api", path: str, **body: object) -> ClientResponse:
    return await api.call("POST", path, body or None, api.operator_key)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # the server looks now and then, too
            await asyncio.sleep(0.005)


async def streamed(api: "Api", path: str, finish_at: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """What is told of an order, which is carried out when it is told that it is so far."""
    found: list[dict[str, Any]] = []
    headers = {"Authorization": f"Bearer {api.operator_key}"}
    async with asyncio.timeout(5), api.client.post(path, json={"stream": True}, headers=headers) as reply:
        assert reply.content_type == "text/event-stream"
        while block := await reply.content.readuntil(b"\n\n"):
            kind, data = block.decode().strip().split("\n")
            event: dict[str, Any] = json.loads(data.removeprefix("data: "))
            assert kind == f"event: {event['type']}"
            found.append(event)
            if event == finish_at:
                api.resident.finish()
    return found


async def test_an_operator_unloads_a_model_and_loads_it_again(api: "Api") -> None:
    reply = await order(api, UNLOAD)
    assert (reply.status, (await reply.json())["state"]) == (200, "unloaded")
    shown = await (await api.call("GET", "/v1/models/m")).json()
    assert (shown["id"], shown["object"], shown["state"]) == ("m", "model", "unloaded")
    reply = await order(api, LOAD)
    assert (await reply.json())["state"] == "loaded"
    assert api.resident.told == ["unload", "load"]


async def test_the_models_say_how_they_are(api: "Api") -> None:
    api.resident.condition = Condition(ModelState.LOADING, 0.256)
    listed = (await (await api.call("GET", "/v1/models")).json())["data"]
    assert [(it["id"], it["state"], it.get("progress")) for it in listed] == [
        ("m", "loading", 0.26),
        ("other", "unloaded", None),  # it has no worker
    ]
    ready = await (await api.call("GET", "/readyz")).json()
    assert ready["status"] == "ready"
    assert ready["models"]["m"]["state"] == "loading"
    assert "being loaded" in ready["models"]["m"]["message"]
    (worker,) = (await (await api.call("GET", "/v1/workers")).json())["data"]
    assert (worker["state"], worker["progress"], worker["slots"]) == ("loading", 0.26, 0)


async def test_the_openai_package_reads_the_state(api: "Api") -> None:
    address = str(api.client.make_url("/v1"))
    async with openai.AsyncOpenAI(base_url=address, api_key="none") as client:
        found = await client.models.retrieve("m")
        assert (found.id, found.model_extra) == ("m", {"state": "loaded"})


async def test_a_stream_tells_how_far_it_is(api: "Api") -> None:
    api.resident.is_slow = True
    quarter = {"type": "model.loading", "model": "m", "progress": 0.25}
    told = await streamed(api, LOAD, quarter)
    assert told == [quarter, {"type": "model.loaded", "model": "m"}]


async def test_a_stream_tells_that_a_model_goes(api: "Api") -> None:
    api.resident.is_slow = True
    leaving = {"type": "model.unloading", "model": "m"}
    told = await streamed(api, UNLOAD, leaving)
    assert told == [leaving, {"type": "model.unloaded", "model": "m"}]


async def test_a_load_that_fails_says_why(api: "Api") -> None:
    await order(api, UNLOAD)
    api.resident.failure = "there is no model file x.gguf"
    reply = await order(api, LOAD)
    error = (await reply.json())["error"]
    assert (reply.status, error["code"]) == (500, "model_not_loaded")
    assert error["message"] == api.resident.failure
    told = await streamed(api, LOAD)
    assert told[-1]["type"] == "model.failed"
    assert told[-1]["error"]["message"] == api.resident.failure


async def test_why_a_load_failed_is_not_told_to_all(api: "Api") -> None:
    api.resident.failure = "there is no model file /srv/x.gguf"
    await order(api, LOAD)
    for path in ("/v1/workers", "/v1/models", "/readyz"):
        assert "/srv" not in await (await api.call("GET", path)).text()


async def test_a_load_that_was_done_counts_though_the_model_went_again(api: "Api") -> None:
    carry_out = api.resident.carry_out

    def and_unload(order_id: str, order: Order) -> None:
        carry_out(order_id, order)
        api.resident.condition = Condition(ModelState.UNLOADED, 0.0, api.resident.condition.orders)

    api.resident.carry_out = and_unload  # type: ignore[method-assign]
    reply = await order(api, LOAD)
    assert (reply.status, (await reply.json())["state"]) == (200, "unloaded")


async def test_the_same_order_is_joined(api: "Api") -> None:
    api.resident.is_slow = True
    asked = [asyncio.create_task(order(api, UNLOAD)) for _ in range(3)]
    await until(lambda: api.resident.told and len(api.streams) == 3)
    api.resident.finish()
    assert [(await reply.json())["state"] for reply in await asyncio.gather(*asked)] == ["unloaded"] * 3
    assert api.resident.told == ["unload"]


async def test_the_last_order_counts_though_the_same_was_given_before_a_contrary_one(
    api: "Api", orders: ModelOrders
) -> None:
    errands = [await orders.give("m", one) for one in (Order.LOAD, Order.UNLOAD, Order.LOAD)]
    assert await orders.give("m", Order.LOAD) is errands[2]
    for errand in errands:
        async for _ in errand.follow():
            pass
    assert api.resident.told == ["load", "unload", "load"]
    assert api.resident.condition.state is ModelState.LOADED


async def test_orders_that_wait_are_bounded(api: "Api", orders: ModelOrders) -> None:
    api.resident.is_slow = True
    given = [Order.UNLOAD, Order.LOAD] * (model_orders.MAX_ERRANDS // 2)
    last = [await orders.give("m", one) for one in given][-1]
    reply = await order(api, UNLOAD)
    assert (reply.status, (await reply.json())["error"]["code"]) == (503, "too_many_orders")
    assert await orders.give("m", Order.LOAD) is last


async def test_a_client_that_leaves_does_not_stop_the_order(
    api: "Api", orders: ModelOrders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_orders, "TOLD_AGAIN_S", 0.05)
    monkeypatch.setattr(model_orders, "LOOK_S", 0.01)
    deaf = asyncio.Event()
    listen, said = api.queue.order, []

    async def lost_at_first(model: str, order_id: str, order: Order) -> None:
        said.append(order_id)
        if deaf.is_set():
            await listen(model, order_id, order)

    monkeypatch.setattr(api.queue, "order", lost_at_first)
    asked = asyncio.create_task(order(api, UNLOAD))
    await until(lambda: said)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await until(lambda: not len(api.streams))
    deaf.set()
    await until(lambda: api.resident.condition.state is ModelState.UNLOADED)
    assert len(set(said)) == 1


async def test_what_takes_too_long_is_told(api: "Api") -> None:
    api.resident.is_slow = True
    errand = await ModelOrders(api.queue, patience_s=0.05).give("m", Order.LOAD)
    with pytest.raises(Exception, match=r"is not loaded after 0.05 s") as raised:
        async for _ in errand.follow():
            pass
    assert getattr(raised.value, "code", None) == "timeout"


async def test_orders_end_with_the_server(api: "Api") -> None:
    api.resident.is_slow = True
    orders = ModelOrders(api.queue)
    running = asyncio.create_task(orders.run())
    errand = await orders.give("m", Order.LOAD)
    await until(lambda: api.resident.told)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    with pytest.raises(Exception, match="restarting"):
        async for _ in errand.follow():
            pass


@pytest.mark.parametrize("stream", [False, True])
async def test_who_waits_for_an_order_does_not_hold_up_a_server_that_drains(
    api: "Api", orders: ModelOrders, stream: bool
) -> None:
    api.resident.is_slow = True
    asked = asyncio.create_task(order(api, LOAD, stream=stream))
    await until(lambda: api.resident.told)
    draining = asyncio.create_task(api.streams.drain(60.0))
    async with asyncio.timeout(5):
        assert '"restarting"' in await (await asked).text()
        await draining
    assert api.resident.told == ["load"]


async def test_a_model_without_a_worker_cannot_be_loaded(api: "Api") -> None:
    reply = await order(api, "/v1/models/other/load")
    assert (reply.status, (await reply.json())["error"]["code"]) == (409, "no_worker")
    with pytest.raises(Conflict, match="start one"):
        await api.orders.give("other", Order.LOAD)


async def test_a_model_that_does_not_exist_is_not_found(api: "Api") -> None:
    reply = await order(api, "/v1/models/none/load")
    assert (reply.status, (await reply.json())["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("name", ["org/model:1b", "load", "a/load/unload"])
async def test_any_name_may_stand_in_the_path(api_type: "type[Api]", name: str) -> None:
    async with api_type(models=(name,)).serving() as api:
        reply = await order(api, f"/v1/models/{name}/unload")
        assert (reply.status, (await reply.json())["id"]) == (200, name)


# ── who may ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_where_nobody_is_an_operator_it_says_what_to_set(api_type: "type[Api]", path: str) -> None:
    async with api_type(operator_key="").serving() as api:
        for token in (None, "", await api.user()):
            reply = await api.call("POST", path, token=token)
            error = (await reply.json())["error"]
            assert (reply.status, error["code"]) == (403, "no_operator")
            assert "SLUICE_AUTH__OPERATOR_KEY" in error["message"]
        assert not api.resident.told


async def test_who_gives_orders_or_may_not_is_logged_without_the_key(
    api: "Api", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "internal.server")
    wrong = api.operator_key[::-1]
    await api.call("POST", LOAD, token=wrong)
    await order(api, UNLOAD)
    told = [(it.getMessage(), vars(it)["address"]) for it in caplog.records if "operator" in it.getMessage()]
    assert told == [
        ("an operator's key was refused", "127.0.0.1"),
        ("an operator's order: unload", "127.0.0.1"),
    ]
    everything = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert api.operator_key not in everything
    assert wrong not in everything


async def test_only_the_operator_s_key_will_do(api: "Api") -> None:
    key = api.operator_key
    for token in (await api.user(), key[:-1], key + "x", key.upper(), "é" * 40):
        reply = await api.call("POST", LOAD, token=token)
        assert (reply.status, (await reply.json())["error"]["code"]) == (403, "not_operator"), token
    reply = await api.call("POST", LOAD)
    assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
    # Not where a log would show it.
    assert (await api.call("POST", f"{LOAD}?token={key}")).status == 401
    assert not api.resident.told


async def test_the_operator_s_key_makes_nobody_a_user(closed_api: "Api") -> None:
    for path in ("/v1/models", "/conversations", "/api/v1/keys"):
        reply = await closed_api.call("GET", path, token=closed_api.operator_key)
        assert reply.status == 401
    assert (await order(closed_api, UNLOAD)).status == 200


async def test_the_description_names_the_key(api: "Api") -> None:
    described = await (await api.call("GET", "/openapi.json")).json()
    assert described["paths"]["/v1/models/{model}/load"]["post"]["security"] == [{"operator": []}]
    assert described["components"]["securitySchemes"]["operator"]["scheme"] == "bearer"
