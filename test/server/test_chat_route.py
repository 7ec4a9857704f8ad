"""POST /chat, whole and as a stream: whose answer it is, how it ends, and who leaves or does not read."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientResponse

from internal.biz.errors import ContextLengthExceeded, GenerationFailed, RateLimited
from internal.biz.events import ReasoningDelta
from internal.biz.generation import FinishReason
from internal.biz.limits import Budget
from internal.biz.preferences import Preferences
from internal.server import sse

if TYPE_CHECKING:
    from test.server.conftest import Api


@asynccontextmanager
async def asking(
    api: "Api", body: Any, token: str | None = None
) -> AsyncIterator[asyncio.Task[ClientResponse]]:
    """A request that waits for its answer, in the background."""
    task = asyncio.create_task(api.call("POST", "/chat", body, token))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def streaming(api: "Api", token: str | None = None, **body: Any) -> AsyncIterator[ClientResponse]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = {"message": "hello", **body}
    async with api.client.post("/chat/message", json=body, headers=headers) as response:
        yield response


async def event(response: ClientResponse) -> Any:
    """The next event of a stream; None for a comment."""
    line = await response.content.readline()
    assert await response.content.readline() == b"\n"
    if line.startswith(b":"):
        return None
    assert line.startswith(b"data: ")
    return json.loads(line.removeprefix(b"data: "))


async def test_an_answer_in_a_conversation_that_goes_on(api: "Api") -> None:
    token = await api.user()
    session_id = await api.begin(token)
    async with api.engine.answering():
        reply = await api.call("POST", "/chat", {"session_id": session_id, "message": "hello"}, token)
    assert reply.status == 200
    assert await reply.json() == {
        "session_id": session_id,
        "user_message": "hello",
        "assistant_reply": "echo: hello",
    }
    history = await (await api.call("GET", f"/conversations/{session_id}/history", token=token)).json()
    assert [message["content"] for message in history["messages"]] == ["hello", "echo: hello"]


async def test_without_a_conversation_a_new_one_begins(api: "Api") -> None:
    token = await api.user()
    async with api.engine.answering():
        first = await (await api.call("POST", "/chat", {"message": "hello"}, token)).json()
        second = await (await api.call("POST", "/chat", {"message": "hello"}, token)).json()
    assert first["session_id"] != second["session_id"]
    assert first["session_id"].startswith("conv_")
    listed = await (await api.call("GET", "/conversations", token=token)).json()
    assert {one["session_id"] for one in listed["conversations"]} == {
        first["session_id"],
        second["session_id"],
    }


async def test_a_guest_goes_on_with_their_cookie(api: "Api") -> None:
    async with api.engine.answering():
        reply = await api.call("POST", "/chat", {"message": "hello"})
        cookie = {"Cookie": f"sluice_guest={reply.cookies['sluice_guest'].value}"}
        api.client.session.cookie_jar.clear()
        session_id = (await reply.json())["session_id"]
        again = {"session_id": session_id, "message": "and?"}
        assert (await api.call("POST", "/chat", again, headers=cookie)).status == 200
        assert (await api.call("POST", "/chat", again)).status == 404


async def test_a_stream_gives_a_guest_their_cookie_too(api: "Api") -> None:
    async with api.engine.answering(), streaming(api) as response:
        assert "sluice_guest" in response.cookies


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("session_id", ["conv_none", "conv_of_somebody_else"])
async def test_a_conversation_that_is_not_theirs_is_not_found(
    api: "Api", stream: bool, session_id: str
) -> None:
    if session_id != "conv_none":
        session_id = await api.begin(await api.user("eve"))
    body = {"session_id": session_id, "message": "hello", "stream": stream}
    reply = await api.call("POST", "/chat", body, await api.user())
    error = (await reply.json())["error"]
    assert (reply.status, error["code"], error["param"]) == (404, "conversation_not_found", "session_id")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("message", ""),
        ("message", " \n"),
        ("message", 5),
        ("session_id", ""),
        ("session_id", "a b"),
        ("session_id", "x\r\nSet-Cookie: a=b"),
        ("session_id", "x" * 65),
        ("model", ""),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("stream", "yes"),
    ],
)
async def test_a_wrong_field_is_named(api: "Api", field: str, value: object) -> None:
    reply = await api.call("POST", "/chat", {"message": "hello", field: value})
    assert (reply.status, (await reply.json())["error"]["param"]) == (400, field)
    assert not api.storage.requests


async def test_an_unknown_model_is_named(api: "Api") -> None:
    reply = await api.call("POST", "/chat", {"message": "hello", "model": "gpt"})
    assert (reply.status, (await reply.json())["error"]["param"]) == (404, "model")


async def test_what_is_asked_for_reaches_the_engine(api: "Api") -> None:
    body = {"message": "hello", "model": "m", "temperature": 1, "max_tokens": 3}
    async with asking(api, body) as answer:
        run = await api.engine.claim()
        settings = run.request.settings
        assert (run.request.model, settings.sampling.temperature, settings.max_output_tokens) == ("m", 1, 3)
        await run.say("hi")
        await run.finish()
        assert (await answer).status == 200


async def test_what_was_not_asked_for_is_as_the_user_has_set_it(api: "Api") -> None:
    token = await api.user()
    api.accounts.settings["user_1"] = Preferences(model="m", max_output_tokens=7)
    async with api.engine.answering():
        await api.call("POST", "/chat", {"message": "hello"}, token)
        await api.call("POST", "/chat", {"message": "hello", "max_tokens": 2}, token)
        api.accounts.settings["user_1"] = Preferences(model="gone")
        assert (await api.call("POST", "/chat", {"message": "hello"}, token)).status == 200
    asked = [(it.model, it.settings.max_output_tokens) for it in api.storage.requests]
    assert asked == [("m", 7), ("m", 2), ("m", None)]


OWN = Preferences(model="theirs", upstream_url="https://a.example/v1")


async def test_who_has_set_an_upstream_asks_that_when_they_name_no_model(own_api: "Api") -> None:
    token = await own_api.user()
    own_api.accounts.settings["user_1"] = OWN
    async with asking(own_api, {"message": "hello"}, token) as answer:
        run = await own_api.engine.claim("other")
        assert (run.request.model, run.request.user) == ("other", "user_1")
        assert "a.example" not in repr(run.request)
        await run.say("hi")
        await run.finish()
        assert (await answer).status == 200
    async with own_api.engine.answering():
        assert (await own_api.call("POST", "/chat", {"message": "hello", "model": "m"}, token)).status == 200
    assert [it.model for it in own_api.storage.requests] == ["other", "m"]


async def test_an_upstream_is_not_asked_where_that_is_not_allowed(api: "Api") -> None:
    token = await api.user()
    api.accounts.settings["user_1"] = OWN
    async with api.engine.answering():
        assert (await api.call("POST", "/chat", {"message": "hello"}, token)).status == 200
    assert [it.model for it in api.storage.requests] == ["m"]


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        (Preferences(), "set upstream_url, upstream_key and model"),
        (Preferences(model="other"), "set upstream_url, upstream_key and model"),
        (Preferences(upstream_url="https://a.example/v1"), "set model"),
    ],
)
async def test_who_has_set_no_upstream_is_told_what_to_do_before_anything_is_stored(
    own_api: "Api", mine: Preferences, says: str
) -> None:
    token = await own_api.user()
    own_api.accounts.settings["user_1"] = mine
    for path, body in (
        ("/chat", {"message": "hello", "model": "other"}),
        ("/v1/responses", {"input": "hello", "model": "other"}),
        ("/v1/batches", {"prompt": "hello", "model": "m, other"}),
    ):
        reply = await own_api.call("POST", path, body, token)
        error = (await reply.json())["error"]
        assert (reply.status, error["code"], error["param"]) == (400, "no_upstream", "model")
        assert says in error["message"]
    assert not own_api.storage.requests


async def test_a_stream(api: "Api") -> None:
    token = await api.user()
    session_id = await api.begin(token)
    async with streaming(api, token, session_id=session_id) as response:
        assert response.content_type == "text/event-stream"
        assert response.headers["X-Session-Id"] == session_id
        assert response.headers["Cache-Control"] == "no-store"
        run = await api.engine.claim()
        await run.say("hm, ", kind=ReasoningDelta)
        await run.say("one ", "two ")
        assert await event(response) == {"chunk": "one two "}
        await run.say("three\n\n“four”")
        assert await event(response) == {"chunk": "three\n\n“four”"}
        await run.finish()
        assert await event(response) == {"done": True}
        assert await response.content.read() == b""


async def test_a_stream_of_a_new_conversation_says_which(api: "Api") -> None:
    async with api.engine.answering(), streaming(api) as response:
        assert await event(response) == {"chunk": "echo: hello"}
        assert await event(response) == {"done": True, "session_id": response.headers["X-Session-Id"]}


async def test_chat_streams_when_it_is_asked_to(api: "Api") -> None:
    async with api.engine.answering():
        reply = await api.call("POST", "/chat", {"message": "hello", "stream": True})
    assert reply.content_type == "text/event-stream"
    contradiction = await api.call("POST", "/chat/message", {"message": "hello", "stream": False})
    assert contradiction.status == 400


async def test_an_answer_that_was_cut_short_says_so(api: "Api") -> None:
    async with asking(api, {"message": "hello"}) as answer:
        run = await api.engine.claim()
        await run.say("one")
        await run.finish(FinishReason.LENGTH)
        reply = await (await answer).json()
    assert (reply["assistant_reply"], reply["incomplete"]) == ("one", "max_output_tokens")
    async with streaming(api) as response:
        run = await api.engine.claim()
        await run.finish(FinishReason.LENGTH)
        end = await event(response)
    assert (end["done"], end["incomplete"]) == (True, "max_output_tokens")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (GenerationFailed("it broke", code="engine_broken"), 500),
        (ContextLengthExceeded("too long"), 400),
    ],
)
async def test_a_failure_is_told(api: "Api", error: Any, status: int) -> None:
    async with asking(api, {"message": "hello"}) as answer:
        await (await api.engine.claim()).finish(FinishReason.ERROR, error)
        reply = await answer
        assert (reply.status, (await reply.json())["error"]["code"]) == (status, error.code)
    async with streaming(api) as response:
        run = await api.engine.claim()
        await run.say("one")
        assert await event(response) == {"chunk": "one"}
        await run.finish(FinishReason.ERROR, error)
        failed = (await event(response))["error"]
        assert (failed["code"], failed["message"]) == (error.code, error.message)
        assert set(failed) == {"message", "type", "param", "code"}
        assert await response.content.read() == b""


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_refused_ahead_has_its_status(api: "Api", stream: bool) -> None:
    api.limiter.refusal = RateLimited("slow down", limit=5, remaining=0, reset_s=50, retry_after_s=11.2)
    reply = await api.call("POST", "/chat", {"message": "hello", "stream": stream})
    assert (reply.status, reply.headers["Retry-After"]) == (429, "12")
    assert reply.content_type == "application/json"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_says_what_is_left_of_the_budget(api: "Api", stream: bool) -> None:
    async with api.engine.answering():
        unlimited = await api.call("POST", "/chat", {"message": "hello", "stream": stream})
        api.limiter.budget = Budget(limit=5, remaining=3, reset_s=23.4)
        limited = await api.call("POST", "/chat", {"message": "hello", "stream": stream})
    assert not [name for name in unlimited.headers if name.startswith("X-RateLimit")]
    told = [limited.headers[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining", "Reset")]
    assert (limited.status, told) == (200, ["5", "3", "24"])


async def test_a_second_question_has_to_wait_for_the_first_answer(api: "Api") -> None:
    token = await api.user()
    session_id = await api.begin(token)
    async with streaming(api, token, session_id=session_id):
        await api.engine.claim()
        reply = await api.call("POST", "/chat", {"session_id": session_id, "message": "and?"}, token)
        assert (reply.status, (await reply.json())["error"]["code"]) == (409, "conversation_locked")


async def test_an_answer_may_take_longer_than_a_plain_request(api_type: "type[Api]") -> None:
    async with api_type(timeout_s=0.05).serving() as api, asking(api, {"message": "hello"}) as answer:
        run = await api.engine.claim()
        await asyncio.sleep(0.1)
        await run.finish()
        assert (await answer).status == 200


# ── who leaves, and who does not read ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_stops_the_answer(api: "Api", stream: bool) -> None:
    async with asking(api, {"message": "hello", "stream": stream}):
        run = await api.engine.claim()
        await run.say("one")
        await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        assert await api.engine.revoked.get() == run.request.response_id
    while len(api.streams):  # noqa: ASYNC110  # nothing announces it
        await asyncio.sleep(0.01)


async def test_a_stream_is_never_silent_for_long(api: "Api", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.1)
    monkeypatch.setattr("internal.server.streams.LOOK_S", 0.02)
    async with streaming(api) as response:
        run = await api.engine.claim()
        assert await event(response) is None
        assert await event(response) is None
        await run.say("one")
        assert await event(response) == {"chunk": "one"}


async def test_who_does_not_read_is_dropped_and_costs_no_memory(
    api: "Api", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("internal.server.streams.LOOK_S", 0.05)
    head = b"POST /chat/message HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    body = b'{"message": "hello"}'
    async with api.connection() as (reader, writer):
        transport: Any = writer.transport
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        run = await api.engine.claim()
        transport.pause_reading()
        for _ in range(100):
            await run.say("x" * 100_000)  # more than the kernel buffers
            await asyncio.sleep(0)
        assert await api.engine.revoked.get() == run.request.response_id
        while len(api.streams):  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.01)
        assert reader.at_eof() is False


async def test_who_reads_slowly_gets_everything(api: "Api") -> None:
    async with streaming(api) as response:
        run = await api.engine.claim()
        said = [f"{number:07d} " for number in range(100_000)]
        for start in range(0, len(said), 1000):
            await run.say(*said[start : start + 1000])
            await asyncio.sleep(0)
        await run.finish()
        got = ""
        while "done" not in (one := await event(response)):
            got += one["chunk"]
            await asyncio.sleep(0.001)
        assert got == "".join(said)


# ── the end of the server ────────────────────────────────────────────────────────────────────────


async def test_a_shutdown_lets_answers_finish_and_takes_no_more(api: "Api") -> None:
    async with streaming(api) as response:
        run = await api.engine.claim()
        drained = asyncio.create_task(api.streams.drain(5.0))
        await asyncio.sleep(0)
        late = await api.call("POST", "/chat", {"message": "hello"})
        assert (late.status, (await late.json())["error"]["code"]) == (503, "restarting")
        assert not drained.done()
        await run.say("one")
        await run.finish()
        assert await event(response) == {"chunk": "one"}
        assert (await event(response))["done"]
        await drained


async def test_what_does_not_finish_in_time_is_told(api: "Api") -> None:
    async with streaming(api) as response, asking(api, {"message": "hello"}) as answer:
        await api.engine.claim()
        await api.engine.claim()
        await api.streams.drain(0.01)
        assert (await event(response))["error"]["code"] == "restarting"
        assert await response.content.read() == b""
        reply = await answer
        assert (reply.status, (await reply.json())["error"]["code"]) == (503, "restarting")
    assert api.engine.revoked.empty()  # elsewhere it may go on


async def test_requests_that_wait_count_as_connections_of_their_address(api_type: "type[Api]") -> None:
    async with api_type(max_per_site=1).serving() as api:
        async with asking(api, {"message": "hello"}) as first:
            run = await api.engine.claim()
            for stream in (False, True):
                reply = await api.call("POST", "/chat", {"message": "hello", "stream": stream})
                assert (reply.status, (await reply.json())["error"]["code"]) == (429, "too_many_requests")
            await run.finish()
            assert (await first).status == 200
        async with asking(api, {"message": "hello"}) as second:
            await (await api.engine.claim()).finish()
            assert (await second).status == 200
