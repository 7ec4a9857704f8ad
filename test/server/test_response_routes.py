"""/v1/responses over HTTP: how a stream looks, resumes and lags, who leaves it, and how answers end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import ANY

import pytest
from aiohttp import ClientResponse

from internal.biz import responses
from internal.biz.errors import ContextLengthExceeded, GenerationFailed
from internal.biz.generation import FinishReason
from internal.biz.limits import Budget

if TYPE_CHECKING:
    from test.conftest import Clock
    from test.server.conftest import Api, Run

TERMINAL = ("response.completed", "response.incomplete", "response.failed")


class Event(NamedTuple):
    name: str
    id: str | None
    data: Any


@asynccontextmanager
async def streaming(api: "Api", **body: Any) -> AsyncIterator[ClientResponse]:
    body = {"input": "hello", "stream": True, **body}
    async with api.client.post("/v1/responses", json=body) as response:
        yield response


@asynccontextmanager
async def resuming(api: "Api", response_id: str, after: int | None = None) -> AsyncIterator[ClientResponse]:
    query = "" if after is None else f"&starting_after={after}"
    async with api.client.get(f"/v1/responses/{response_id}?stream=true{query}") as response:
        yield response


async def event(response: ClientResponse) -> Event:
    """The next event of a stream, comments left out."""
    fields: dict[str, str] = {}
    while line := (await response.content.readline()).decode().rstrip("\n"):
        name, _, value = line.partition(": ")
        fields[name] = value
    if not fields.get("data"):
        return await event(response)
    return Event(fields["event"], fields.get("id"), json.loads(fields["data"]))


async def until(response: ClientResponse, kind: str) -> list[Event]:
    seen = [await event(response)]
    while seen[-1].name != kind:
        seen.append(await event(response))
    return seen


async def rest(response: ClientResponse) -> list[Event]:
    seen = [await event(response)]
    while seen[-1].name not in TERMINAL:
        seen.append(await event(response))
    assert await response.content.read() == b""
    return seen


def text(events: list[Event]) -> str:
    return "".join(one.data["delta"] for one in events if one.name == "response.output_text.delta")


async def begun(api: "Api", response: ClientResponse) -> tuple["Run", list[Event]]:
    """An answer that has said two words, and what was told of it."""
    run = await api.engine.claim()
    await run.say("one ", "two ")
    return run, [*await until(response, "response.output_text.delta"), await event(response)]


async def get(api: "Api", response_id: str) -> Any:
    reply = await api.call("GET", f"/v1/responses/{response_id}")
    assert reply.status == 200
    return await reply.json()


# ── a stream ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_has_the_events_of_the_socket_each_under_its_number(api: "Api") -> None:
    async with streaming(api) as response:
        assert response.content_type == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        run, events = await begun(api, response)
        await run.finish()
        events += await rest(response)
    assert [one.name for one in events] == [
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [one.data["type"] for one in events] == [one.name for one in events]
    assert [one.data["sequence_number"] for one in events] == [int(one.id or "") for one in events]
    assert [one.id for one in events] == [str(number) for number in range(len(events))]
    # The API's order: `responses.stream()` of the openai package wants it.
    assert [one.data["response"]["status"] for one in events[:3]] == ["queued", "queued", "in_progress"]
    assert events[0].data["queue"] == {"position": 0, "message": ANY}
    assert events[-1].data["response"] == await get(api, run.request.response_id)


@pytest.mark.parametrize("after", [None, 0, 5, 6, 9])
async def test_a_stream_is_resumed_behind_any_number(api: "Api", after: int | None) -> None:
    async with streaming(api) as response:
        run, events = await begun(api, response)
        if after is not None and after < 7:  # while it runs, too
            async with resuming(api, run.request.response_id, after) as resumed:
                for expected in events[after + 1 :]:
                    assert await event(resumed) == expected
                await run.finish()
                events += await rest(response)
                assert await rest(resumed) == events[7:]
        else:
            await run.finish()
            events += await rest(response)
    async with resuming(api, run.request.response_id, after) as resumed:
        assert await rest(resumed) == events[0 if after is None else after + 1 :]


async def test_a_browser_resumes_by_itself_and_stops_at_the_end(api: "Api") -> None:
    async with streaming(api) as response:
        run, events = await begun(api, response)
        await run.finish()
        events += await rest(response)
    path = f"/v1/responses/{run.request.response_id}?stream=true&starting_after=2"
    async with api.client.get(path, headers={"Last-Event-ID": events[6].id or ""}) as resumed:
        assert await rest(resumed) == events[7:]
    ended = await api.call("GET", path, headers={"Last-Event-ID": events[-1].id or ""})
    assert (ended.status, await ended.read()) == (204, b"")
    first = await api.call("GET", path, headers={"Last-Event-ID": ""})
    assert first.status == 200


@pytest.mark.parametrize(
    ("query", "headers", "param"),
    [
        ("?stream=true&starting_after=100", {}, "starting_after"),
        ("?stream=true&starting_after=-1", {}, "starting_after"),
        ("?stream=true&starting_after=x", {}, "starting_after"),
        ("?stream=true&starting_after=", {}, "starting_after"),
        ("?starting_after=1", {}, "starting_after"),
        ("?stream=perhaps", {}, "stream"),
        ("?stream=true", {"Last-Event-ID": "x"}, "Last-Event-ID"),
        ("?stream=true", {"Last-Event-ID": "100"}, "starting_after"),
    ],
)
async def test_what_cannot_be_resumed_is_refused(
    api: "Api", query: str, headers: dict[str, str], param: str
) -> None:
    async with api.engine.answering():
        reply = await api.call("POST", "/v1/responses", {"input": "hello"})
    response_id = (await reply.json())["id"]
    refused = await api.call("GET", f"/v1/responses/{response_id}{query}", headers=headers)
    assert (refused.status, (await refused.json())["error"]["param"]) == (400, param)


async def test_who_asks_for_the_head_of_a_stream_gets_no_more(api: "Api") -> None:
    async with streaming(api) as response:
        run, _ = await begun(api, response)
        path = f"/v1/responses/{run.request.response_id}?stream=true"
        answer = await api.raw(f"HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Content-Type: text/event-stream" in head
        assert body == b""


async def test_who_lags_gets_all_of_the_text_in_fewer_events(api: "Api") -> None:
    words = [f"{number} " for number in range(5000)]
    async with streaming(api) as response:
        run = await api.engine.claim()
        await run.say(*words)
        await run.finish()
        events = await rest(response)
    deltas = [one for one in events if one.name == "response.output_text.delta"]
    assert text(events) == "".join(words)
    assert len(deltas) < 20
    numbers = [int(one.id or "") for one in events]
    assert numbers == sorted(set(numbers))
    # Whoever resumes behind a joined one gets what is behind it.
    async with resuming(api, run.request.response_id, int(deltas[0].id or "")) as resumed:
        assert text([deltas[0], *await rest(resumed)]) == "".join(words)


async def test_a_response_whose_log_is_forgotten_is_told_anew(api: "Api") -> None:
    async with streaming(api) as response:
        run, events = await begun(api, response)
        await run.finish()
        events += await rest(response)
    response_id = run.request.response_id
    await api.queue.forget(response_id)
    assert await get(api, response_id) == events[-1].data["response"]
    async with resuming(api, response_id, 6) as resumed:
        (only,) = await rest(resumed)
    assert only == Event("response.completed", "7", {**events[-1].data, "sequence_number": 7})
    async with resuming(api, response_id) as resumed:
        retold = await rest(resumed)
    del events[6]  # the two deltas are one
    assert [one.name for one in retold] == [one.name for one in events]
    assert [one.id for one in retold] == [str(number) for number in range(len(retold))]
    assert text(retold) == "one two "
    for one, before in zip(retold[3:5] + retold[6:-1], events[3:5] + events[6:-1], strict=True):
        assert {**one.data, "sequence_number": 0} == {**before.data, "sequence_number": 0}


async def test_a_restart_is_told_and_takes_no_number(api: "Api") -> None:
    async with streaming(api) as response:
        _, events = await begun(api, response)
        await api.streams.drain(0.01)
        error = await event(response)
        assert await response.content.read() == b""
    assert (error.name, error.id) == ("error", None)
    assert error.data["code"] == "restarting"
    assert error.data["sequence_number"] == events[-1].data["sequence_number"]
    assert set(error.data) == {"type", "code", "message", "param", "sequence_number"}
    assert api.engine.revoked.empty()


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"background": True}])
async def test_a_server_that_stops_takes_nothing_new(api: "Api", body: dict[str, Any]) -> None:
    await api.streams.drain(0.01)
    reply = await api.call("POST", "/v1/responses", {"input": "hello", **body})
    assert (reply.status, (await reply.json())["error"]["code"]) == (503, "restarting")
    assert not api.storage.requests


# ── who leaves ───────────────────────────────────────────────────────────────────────────────────


async def gone(api: "Api") -> None:
    while len(api.streams):  # noqa: ASYNC110  # nothing announces it
        await asyncio.sleep(0.01)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internal.server.streams.LOOK_S", 0.02)


@pytest.mark.usefixtures("looks")
async def test_who_leaves_a_stream_has_time_to_come_back(api: "Api", clock: "Clock") -> None:
    api.streams._grace_s = 100.0
    async with streaming(api) as response:
        run, events = await begun(api, response)
    for seen in (6, 7):  # whoever comes back may leave again, and has as much time
        await gone(api)
        await clock.advance(60)
        async with resuming(api, run.request.response_id, seen) as resumed:
            await run.say("again ")
            events.append(await event(resumed))
    await gone(api)
    await clock.advance(60)
    assert api.engine.revoked.empty()
    assert text(events) == "one two again again "
    await clock.advance(60)
    assert await api.engine.revoked.get() == run.request.response_id


@pytest.mark.usefixtures("looks")
async def test_who_waits_for_the_whole_and_leaves_stops_it_at_once(api: "Api") -> None:
    api.streams._grace_s = 1000.0
    task = asyncio.create_task(api.call("POST", "/v1/responses", {"input": "hello"}))
    run = await api.engine.claim()
    task.cancel()
    async with asyncio.timeout(5):
        assert await api.engine.revoked.get() == run.request.response_id
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.usefixtures("looks")
async def test_what_runs_in_the_background_goes_on_when_all_have_left(api: "Api", clock: "Clock") -> None:
    async with streaming(api, background=True) as response:
        run, events = await begun(api, response)
        assert events[0].data["response"]["background"] is True
    await gone(api)
    async with resuming(api, run.request.response_id):
        pass
    await gone(api)
    await clock.advance(1000)
    assert api.engine.revoked.empty()
    assert await api.queue.followers(run.request.response_id) == 0
    await run.finish()
    assert (await get(api, run.request.response_id))["status"] == "completed"


# ── as it stands ─────────────────────────────────────────────────────────────────────────────────


async def test_what_runs_in_the_background_is_answered_at_once_and_polled(api: "Api") -> None:
    api.limiter.budget = Budget(limit=5, remaining=3, reset_s=23.4)
    reply = await api.call("POST", "/v1/responses", {"input": "hello", "background": True})
    queued = await reply.json()
    assert (reply.status, queued["status"], queued["output"]) == (200, "queued", [])
    assert reply.headers["X-RateLimit-Remaining"] == "3"
    assert (await get(api, queued["id"])) == queued
    run = await api.engine.claim()
    await run.say("one ", "two ")
    running = await get(api, queued["id"])
    assert running["status"] == "in_progress"
    (message,) = running["output"]
    assert (message["status"], message["content"][0]["text"]) == ("in_progress", "one two ")
    await run.finish()
    ended = await get(api, queued["id"])
    assert ended["status"] == "completed"
    assert ended["output"][0]["id"] == message["id"]


async def test_an_answer_says_how_likely_it_was(api: "Api") -> None:
    body = {"input": "hello", "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    task = asyncio.create_task(api.call("POST", "/v1/responses", body))
    run = await api.engine.claim()
    await run.say_scored("Hi", "!")
    so_far = await get(api, run.request.response_id)
    await run.finish()
    whole = await (await task).json()
    token = {"token": "or", "logprob": -0.5, "bytes": [111, 114]}
    (part,) = whole["output"][0]["content"]
    assert part["logprobs"] == [
        {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": [token]},
        {"token": "!", "logprob": -0.5, "bytes": [33], "top_logprobs": [token]},
    ]
    assert so_far["output"][0]["content"][0]["logprobs"] == part["logprobs"]
    assert whole["top_logprobs"] == 1


async def test_what_is_not_stored_cannot_run_in_the_background(api: "Api") -> None:
    body = {"input": "hello", "background": True, "store": False}
    reply = await api.call("POST", "/v1/responses", body)
    assert (reply.status, (await reply.json())["error"]["param"]) == (400, "background")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"include": ["nonsense"]}, "include[0]"),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"conversation": "c", "previous_response_id": "r"}, "conversation"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(api: "Api", more: dict[str, Any], param: str) -> None:
    reply = await api.call("POST", "/v1/responses", {"input": "hello", **more})
    error = (await reply.json())["error"]
    assert reply.status == 400
    assert error["param"].startswith(param)


async def test_an_answer_that_failed_says_so(api: "Api") -> None:
    task = asyncio.create_task(api.call("POST", "/v1/responses", {"input": "hello"}))
    run = await api.engine.claim()
    await run.finish(FinishReason.ERROR, GenerationFailed("it broke", code="engine_broken"))
    reply = await task
    failed = await reply.json()
    assert (reply.status, failed["status"]) == (200, "failed")
    assert failed["error"] == {"code": "engine_broken", "message": "it broke"}


async def test_a_prompt_that_does_not_fit_is_the_client_s_fault(api: "Api") -> None:
    task = asyncio.create_task(api.call("POST", "/v1/responses", {"input": "hello"}))
    run = await api.engine.claim()
    await run.finish(FinishReason.ERROR, ContextLengthExceeded("too long"))
    reply = await task
    assert (reply.status, (await reply.json())["error"]["code"]) == (400, "context_length_exceeded")


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


async def obey(api: "Api", run: "Run") -> None:
    """Stop when told to, as an engine does."""
    assert await api.engine.revoked.get() == run.request.response_id
    await run.finish(FinishReason.CANCELLED)


async def test_a_cancel_answers_with_how_it_ended(api: "Api") -> None:
    async with streaming(api) as response:
        run, _ = await begun(api, response)
        path = f"/v1/responses/{run.request.response_id}/cancel"
        stopped, reply = await asyncio.gather(obey(api, run), api.call("POST", path))
        cancelled = await reply.json()
        assert stopped is None
        assert (cancelled["status"], cancelled["incomplete_details"]) == (
            "incomplete",
            {"reason": "cancelled"},
        )
        assert (await rest(response))[-1].data["response"] == cancelled
    assert await (await api.call("POST", path)).json() == cancelled
    await api.queue.forget(run.request.response_id)
    assert (await (await api.call("POST", path)).json())["status"] == "incomplete"


async def test_a_response_that_runs_is_stopped_and_deleted(api: "Api") -> None:
    async with streaming(api) as response:
        run, _ = await begun(api, response)
        path = f"/v1/responses/{run.request.response_id}"
        _, reply = await asyncio.gather(obey(api, run), api.call("DELETE", path))
        assert await reply.json() == {"id": run.request.response_id, "object": "response", "deleted": True}
        assert (await rest(response))[-1].name == "response.incomplete"
    for method, more in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "?stream=true")):
        assert (await api.call(method, f"{path}{more}")).status == 404
    following = {"input": "and?", "previous_response_id": run.request.response_id}
    refused = await api.call("POST", "/v1/responses", following)
    error = (await refused.json())["error"]
    assert (refused.status, error["code"]) == (404, "previous_response_not_found")


async def test_a_users_response_is_deleted_by_nobody_else(api: "Api") -> None:
    async with api.engine.answering():
        ada = await api.user()
        reply = await api.call("POST", "/v1/responses", {"input": "hello"}, ada)
        path = f"/v1/responses/{(await reply.json())['id']}"
        assert (await api.call("GET", path)).status == 200  # who knows the id
        assert (await api.call("DELETE", path)).status == 404
        assert (await api.call("DELETE", path, token=ada)).status == 200


async def test_what_does_not_stop_is_not_deleted_yet(api: "Api", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "STOP_S", 0.01)
    async with streaming(api) as response:
        run, _ = await begun(api, response)
        path = f"/v1/responses/{run.request.response_id}"
        reply = await api.call("DELETE", path)
        assert (reply.status, (await reply.json())["error"]["code"]) == (409, "response_running")
        await obey(api, run)
        assert (await api.call("DELETE", path)).status == 200


async def test_one_that_is_not_stored_is_there_for_a_while_and_deleted(api: "Api") -> None:
    async with api.engine.answering():
        reply = await api.call("POST", "/v1/responses", {"input": "hello", "store": False})
    response_id = (await reply.json())["id"]
    assert (await get(api, response_id))["output"][0]["content"][0]["text"] == "echo: hello"
    assert (await api.call("GET", f"/v1/responses/{response_id}/input_items")).status == 404
    assert (await api.call("DELETE", f"/v1/responses/{response_id}")).status == 200
    assert (await api.call("GET", f"/v1/responses/{response_id}")).status == 404


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_what_was_asked_comes_in_pages(api: "Api", order: str) -> None:
    asked = [{"role": "user", "content": f"q{number}"} for number in range(5)]
    async with api.engine.answering():
        reply = await api.call("POST", "/v1/responses", {"input": asked})
    path = f"/v1/responses/{(await reply.json())['id']}/input_items?limit=2&order={order}"
    pages, after = [], ""
    while True:
        page = await (await api.call("GET", f"{path}{after}")).json()
        pages.append([item["content"][0]["text"] for item in page["data"]])
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    if order == "asc":
        assert pages == [["q0", "q1"], ["q2", "q3"], ["q4"]]
    else:
        assert pages == [["q4", "q3"], ["q2", "q1"], ["q0"]]
    wrong = await api.call("GET", f"{path}&after=nonsense")
    assert (wrong.status, (await wrong.json())["error"]["param"]) == (400, "after")
