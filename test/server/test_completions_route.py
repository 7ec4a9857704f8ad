"""POST /v1/chat/completions and /v1/models, asked by the unmodified `openai` package."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

from internal.biz.errors import ContextLengthExceeded, GenerationFailed, RateLimited, Unavailable
from internal.biz.events import ReasoningDelta, ResponseCompleted
from internal.biz.generation import FinishReason
from internal.biz.limits import Budget
from internal.biz.models import Caller, Role, ToolCall, Usage
from internal.biz.subscription import Subscription
from internal.server import sse
from internal.server.routes import completions

if TYPE_CHECKING:
    from test.server.conftest import Api, Run

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
BODY = {"messages": HELLO}
STREAM = {**BODY, "stream": True}
TOO_LONG = ContextLengthExceeded("the prompt is too long")
CHAT = "/v1/chat/completions"


@asynccontextmanager
async def client_of(api: "Api", key: str = "unused") -> AsyncIterator[AsyncOpenAI]:
    url = str(api.client.make_url("/v1"))
    # To read the system's certificates takes long.
    http = openai.DefaultAsyncHttpxClient(verify=False)
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0, http_client=http) as client:
        yield client


@pytest.fixture
async def client(api: "Api") -> AsyncIterator[AsyncOpenAI]:
    async with client_of(api) as client:
        yield client


@asynccontextmanager
async def asked(client: AsyncOpenAI, **fields: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """A question that waits for its answer, in the background."""
    fields = {"model": "m", "messages": HELLO, **fields}
    task = asyncio.create_task(client.chat.completions.create(**fields))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def streamed(client: AsyncOpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    fields = {"model": "m", "messages": HELLO, **fields}
    return [chunk async for chunk in await client.chat.completions.create(**fields, stream=True)]


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


async def test_an_answer(api: "Api", client: AsyncOpenAI) -> None:
    async with asked(client) as answer:
        run = await api.engine.claim()
        await run.say("hm", kind=ReasoningDelta)
        await run.say("Hi", "!")
        await run.finish(usage=Usage(9, 4, 5, 2))
        found: ChatCompletion = await answer
    message: Any = found.choices[0].message
    assert (message.content, message.reasoning_content, found.model) == ("Hi!", "hm", "m")
    usage: Any = found.usage
    assert (usage.total_tokens, usage.prompt_tokens_details.cached_tokens) == (14, 4)
    assert usage.completion_tokens_details.reasoning_tokens == 2


async def test_an_answer_says_how_likely_it_was(api: "Api", client: AsyncOpenAI) -> None:
    for stream in (False, True):
        async with asked(client, stream=stream, logprobs=True, top_logprobs=1) as answer:
            run = await api.engine.claim()
            assert run.request.settings.logprobs == 1
            await run.say_scored("Hi", "!")
            await run.finish()
            found = [await answer] if not stream else [chunk async for chunk in await answer]
        told = [choice.logprobs.content for it in found for choice in it.choices if choice.logprobs]
        scores = [score for content in told for score in content]
        assert [(score.token, score.logprob, score.bytes) for score in scores] == [
            ("Hi", -0.5, [72, 105]),
            ("!", -0.5, [33]),
        ]
        assert [score.top_logprobs[0].token for score in scores] == ["or", "or"]


async def test_the_blocking_client(api: "Api") -> None:
    def talk() -> tuple[str | None, str]:
        with OpenAI(base_url=str(api.client.make_url("/v1")), api_key="unused") as client:
            whole = client.chat.completions.create(model="m", messages=HELLO)
            parts = client.chat.completions.create(model="m", messages=HELLO, stream=True)
            return whole.choices[0].message.content, "".join(
                chunk.choices[0].delta.content or "" for chunk in parts
            )

    async with api.engine.answering():
        assert await asyncio.to_thread(talk) == ("echo: hello", "echo: hello")


async def test_a_stream(api: "Api", client: AsyncOpenAI) -> None:
    async with asked(client, stream=True, stream_options={"include_usage": True}) as answer:
        run = await api.engine.claim()
        await run.say("Hi")
        stream = await answer  # which begins with the first word
        assert (await anext(stream)).choices[0].delta.role == "assistant"
        assert (await anext(stream)).choices[0].delta.content == "Hi"
        await run.say("!")
        assert (await anext(stream)).choices[0].delta.content == "!"
        await run.finish(usage=Usage(1, 0, 2))
        last, usage = [chunk async for chunk in stream]
        assert last.choices[0].finish_reason == "stop"
        assert (usage.choices, usage.usage and usage.usage.total_tokens) == ([], 3)


async def test_the_model_may_be_left_out(api: "Api") -> None:
    async with api.engine.answering():
        reply = await api.call("POST", CHAT, BODY)
    assert (reply.status, (await reply.json())["model"]) == (200, "m")


async def test_a_tool_is_called_and_its_result_fed_back(api: "Api", client: AsyncOpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    add = ToolCall("call_1", "add", '{"a": 1}')
    async with asked(client, tools=tools, tool_choice="required") as answer:
        run = await api.engine.claim()
        assert [tool.name for tool in run.request.settings.tooling.offered] == ["add"]
        await run.call(add)
        await run.finish()
        (choice,) = (await answer).choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    said = choice.message.model_dump(exclude_none=True)
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    async with asked(client, tools=tools, messages=[*HELLO, said, result]) as answer:
        run = await api.engine.claim()
        _, asking, fed_back = run.request.messages
        assert (asking.role, asking.calls) == (Role.ASSISTANT, (add,))
        assert (fed_back.role, fed_back.call_id, fed_back.content) == (Role.TOOL, "call_1", "3")
        await run.say("Three.")
        await run.finish()
        assert (await answer).choices[0].message.content == "Three."


async def test_the_package_puts_streamed_calls_together(api: "Api", client: AsyncOpenAI) -> None:
    async def talk() -> Any:
        async with client.chat.completions.stream(model="m", messages=HELLO) as stream:
            return await stream.get_final_completion()

    calls = (ToolCall("call_1", "add", '{"a": 1}'), ToolCall("call_2", "sub", "{}"))
    task = asyncio.create_task(talk())
    run = await api.engine.claim()
    await run.say("Well,")
    await run.call(*calls)
    await run.finish()
    (choice,) = (await task).choices
    found = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert found == [(call.id, call.name, call.arguments) for call in calls]
    assert (choice.message.content, choice.finish_reason) == ("Well,", "tool_calls")


async def test_a_completion_is_the_response_of_the_same_number(api: "Api") -> None:
    async with api.engine.answering():
        reply = await api.call("POST", CHAT, BODY)
    response_id = reply.headers["X-Response-Id"]
    assert (await reply.json())["id"] == response_id.replace("resp_", "chatcmpl-")
    subscription = Subscription()
    cursor = await api.chat.follow(Caller("anybody"), response_id, -1, subscription)
    events = [event async for batch in subscription.read(cursor) for event in batch]
    assert isinstance(events[-1], ResponseCompleted)
    assert events[-1].response.text == "echo: hello"


async def test_only_what_asks_for_it_is_stored(api: "Api") -> None:
    async with api.engine.answering():
        await api.call("POST", CHAT, BODY)
        assert not api.storage.requests
        await api.call("POST", CHAT, {**BODY, "store": True, "metadata": {"a": "b"}})
    (stored,) = api.storage.requests
    assert stored.settings.metadata == {"a": "b"}


async def test_who_cancels_it_elsewhere_ends_it(api: "Api", client: AsyncOpenAI) -> None:
    async with asked(client) as answer:
        run = await api.engine.claim()
        await run.say("Once")
        await run.finish(FinishReason.CANCELLED)
        (choice,) = (await answer).choices
    assert (choice.message.content, choice.finish_reason) == ("Once", "length")


async def test_an_answer_may_take_longer_than_a_plain_request(api_type: "type[Api]") -> None:
    async with api_type(timeout_s=0.05).serving() as api, client_of(api) as client:
        for stream in (False, True):
            async with asked(client, stream=stream) as answer:
                run = await api.engine.claim()
                await asyncio.sleep(0.1)
                await run.finish()
                await answer


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_an_answer_says_what_is_left_of_the_budget(api: "Api", body: Any) -> None:
    api.limiter.budget = Budget(limit=5, remaining=3, reset_s=23.4)
    async with api.engine.answering():
        reply = await api.call("POST", CHAT, body)
    told = [reply.headers[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining", "Reset")]
    assert (reply.status, told) == (200, ["5", "3", "24"])


async def test_a_long_dialogue_with_many_values_is_read(api_type: "type[Api]") -> None:
    said = [{"role": "user", "content": [{"type": "text", "text": "x"}]}] * 4000
    async with api_type(max_body_bytes=1 << 20).serving() as api, api.engine.answering():
        reply = await api.call("POST", CHAT, {"messages": [*said, *HELLO]})
        assert reply.status == 200, await reply.text()
        more = [{"role": "user", "content": [{"type": "text", "text": "x"}] * 10}] * 2000
        reply = await api.call("POST", CHAT, {"messages": more})
        assert (reply.status, (await reply.json())["error"]["code"]) == (400, "invalid_json")


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_wrong_key(closed_api: "Api") -> None:
    async with client_of(closed_api, "wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="m", messages=HELLO)
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
        with pytest.raises(openai.AuthenticationError):
            await client.models.retrieve("m")
    user = (await closed_api.user()).removeprefix("access-")
    _, key = await closed_api.accounts.create_key(user, "laptop")
    async with client_of(closed_api, key) as client, closed_api.engine.answering():
        assert (await client.chat.completions.create(model="m", messages=HELLO)).model == "m"
        assert [model.id async for model in client.models.list()] == ["m", "other"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"n": 2}, openai.BadRequestError, "unsupported_parameter", "n"),
        ({"messages": []}, openai.BadRequestError, "invalid_value", "messages"),
        ({"model": "other", "seed": 1}, openai.BadRequestError, "unsupported_parameter", "seed"),
    ],
)
async def test_what_is_wrong_is_raised(
    client: AsyncOpenAI, fields: Any, kind: type[openai.APIStatusError], code: str, param: str, stream: bool
) -> None:
    fields = {"model": "m", "messages": HELLO, "stream": stream, **fields}
    with pytest.raises(kind) as error:
        await client.chat.completions.create(**fields)
    assert (error.value.code, error.value.param, error.value.type) == (code, param, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_refused_for_now_is_raised(api: "Api", client: AsyncOpenAI, stream: bool) -> None:
    api.limiter.refusal = RateLimited("slow down", limit=5, retry_after_s=11.2)
    with pytest.raises(openai.RateLimitError) as limited:
        await client.chat.completions.create(model="m", messages=HELLO, stream=stream)
    assert limited.value.response.headers["Retry-After"] == "12"
    api.limiter.refusal = Unavailable("too much to do")
    with pytest.raises(openai.InternalServerError) as overloaded:
        await client.chat.completions.create(model="m", messages=HELLO, stream=stream)
    assert (overloaded.value.status_code, overloaded.value.code) == (503, "overloaded")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "kind"),
    [(TOO_LONG, openai.BadRequestError), (GenerationFailed("no"), openai.InternalServerError)],
)
async def test_a_failure_before_the_first_word_has_its_status(
    api: "Api", client: AsyncOpenAI, failure: Any, kind: type[openai.APIStatusError], stream: bool
) -> None:
    async with asked(client, stream=stream) as answer:
        run = await api.engine.claim()
        await run.finish(FinishReason.ERROR, failure)
        with pytest.raises(kind) as error:
            await answer
    assert error.value.code == failure.code
    # What was generated is not generated again.
    again = error.value.response.headers.get("x-should-retry")
    assert again == ("false" if isinstance(failure, GenerationFailed) else None)


async def test_a_failure_behind_the_first_word_is_raised_there(api: "Api", client: AsyncOpenAI) -> None:
    async with asked(client, stream=True) as answer:
        run = await api.engine.claim()
        await run.say("one")
        stream = await answer
        await run.finish(FinishReason.ERROR, GenerationFailed("the engine broke"))
        with pytest.raises(openai.APIError, match="the engine broke") as error:
            [chunk async for chunk in stream]
    assert not isinstance(error.value, openai.APIStatusError)
    assert error.value.code == "generation_failed"


async def test_a_stream_that_outlives_the_server_is_told(api: "Api", client: AsyncOpenAI) -> None:
    async with asked(client, stream=True) as answer:
        run = await api.engine.claim()
        await run.say("one")
        stream = await answer
        await api.streams.drain(0.01)
        with pytest.raises(openai.APIError, match="restarting"):
            [chunk async for chunk in stream]


# ── who leaves, and who waits ────────────────────────────────────────────────────────────────────


async def stopped(api: "Api", run: "Run") -> None:
    async with asyncio.timeout(5):
        assert await api.engine.revoked.get() == run.request.response_id
    while len(api.streams):  # noqa: ASYNC110  # nothing announces it
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_before_the_answer_stops_it(api: "Api", client: AsyncOpenAI, stream: bool) -> None:
    async with asked(client, stream=stream):
        run = await api.engine.claim()
    await stopped(api, run)


async def test_who_leaves_a_stream_stops_it(api: "Api", client: AsyncOpenAI) -> None:
    async with asked(client, stream=True) as answer:
        run = await api.engine.claim()
        await run.say("one")
        async with await answer as stream:
            await anext(stream)
        await stopped(api, run)


async def test_who_waits_long_for_the_first_word_is_kept_awake(
    api: "Api", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.1)
    monkeypatch.setattr(completions, "KEEP_ALIVE_S", 0.1)
    monkeypatch.setattr("internal.server.streams.LOOK_S", 0.02)
    async with asyncio.timeout(5), api.client.post(CHAT, json=STREAM) as response:
        assert response.headers["X-Response-Id"].startswith("resp_")
        assert b'"role":"assistant"' in await response.content.readline()
        await response.content.readline()
        assert (await response.content.readline()).startswith(b":")
        run = await api.engine.claim()
        await run.finish(FinishReason.ERROR, TOO_LONG)  # too late for a status
        *_, last = (await response.content.read()).decode().split("data: ")
        assert json.loads(last)["error"]["code"] == "context_length_exceeded"


# ── models ───────────────────────────────────────────────────────────────────────────────────────

NAMES = ("m", "org/model:Q4", "org/a b%2F?#", "é")


async def test_models_of_any_name(api_type: "type[Api]") -> None:
    async with api_type(models=NAMES).serving() as api, client_of(api) as client:
        listed = [model async for model in client.models.list()]
        assert [model.id for model in listed] == list(NAMES)
        for model in listed:
            assert await client.models.retrieve(model.id) == model
            assert (model.object, model.owned_by) == ("model", "sluice")
        for path in ("org/model:Q4", "org%2Fmodel%3AQ4", "org/model%3aQ4"):
            reply = await api.call("GET", f"/v1/models/{path}")
            assert (await reply.json())["id"] == "org/model:Q4"
        with pytest.raises(openai.NotFoundError) as error:
            await client.models.retrieve("org/model")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


async def test_a_page_of_models_names_the_default_first(api: "Api") -> None:
    reply = await api.call("GET", "/v1/models")
    assert "Set-Cookie" not in reply.headers
    assert (await reply.json())["data"][0]["id"] == "m"
