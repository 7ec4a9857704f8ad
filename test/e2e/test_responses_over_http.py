"""`/v1/responses` and `/v1/conversations` over HTTP with the unmodified `openai` package, and one answer on
every protocol at once."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

if TYPE_CHECKING:
    from test.e2e.conftest import JSON, RunServer, Server, Until, Visitor

Chunks = Callable[..., list[str]]

COUNT = 60


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    models = [
        {"name": "echo", "generator": "echo", "options": {"interval": "5ms"}},
        {"name": "slow", "generator": "echo", "options": {"chunks": COUNT, "interval": "20ms"}},
        {"name": "endless", "generator": "echo", "options": {"chunks": 3000, "interval": "20ms"}},
    ]
    with run_server({"models": models}) as server:
        yield server


@pytest.fixture
def sync(server: "Server") -> Iterator[OpenAI]:
    with OpenAI(base_url=server.http("/v1"), api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
async def client(server: "Server") -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.http("/v1"), api_key="unused", max_retries=0) as client:
        yield client


def test_a_response_is_asked_for_read_and_deleted(sync: OpenAI, echo_chunks: Chunks) -> None:
    first = sync.responses.create(model="echo", input="hello", instructions="be brief", metadata={"a": "b"})
    assert (first.status, first.output_text) == ("completed", "".join(echo_chunks("hello")))
    assert first.usage is not None
    assert (first.usage.output_tokens, first.metadata) == (5, {"a": "b"})
    assert sync.responses.retrieve(first.id) == first
    second = sync.responses.create(model="echo", input="and?", previous_response_id=first.id)
    (item,) = sync.responses.input_items.list(second.id)
    assert item.type == "message"
    assert item.content[0].model_dump(include={"text"}) == {"text": "and?"}
    sync.responses.delete(first.id)
    for call in (sync.responses.retrieve, sync.responses.delete, sync.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call(first.id)
    with pytest.raises(openai.NotFoundError) as refused:
        sync.responses.create(model="echo", input="and?", previous_response_id=first.id)
    assert (refused.value.code, refused.value.param) == (
        "previous_response_not_found",
        "previous_response_id",
    )


def test_a_stream_is_read_and_resumed(sync: OpenAI, echo_chunks: Chunks) -> None:
    with sync.responses.create(model="echo", input="hello", stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(14))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "".join(echo_chunks("hello"))
    with sync.responses.retrieve(events[-1].response.id, stream=True, starting_after=6) as again:
        assert list(again) == events[7:]


async def test_the_package_s_own_helper_reads_a_stream(client: AsyncOpenAI, echo_chunks: Chunks) -> None:
    async with client.responses.stream(model="echo", input="hello") as stream:
        said = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert said == echo_chunks("hello")
    assert final.output_text == "".join(said)
    async with client.responses.stream(response_id=final.id, starting_after=6) as stream:
        numbers = [event.sequence_number async for event in stream]
        assert (await stream.get_final_response()).output_text == final.output_text
    assert numbers == list(range(7, 14))


async def test_what_runs_in_the_background_is_polled_followed_and_stopped(
    client: AsyncOpenAI, echo_chunks: Chunks, until: "Until"
) -> None:
    running = await client.responses.create(model="endless", input="hello", background=True)
    assert (running.status, running.background, running.output) == ("queued", True, [])
    seen = running

    async def says_something() -> bool:
        nonlocal seen
        seen = await client.responses.retrieve(running.id)
        return bool(seen.output_text)

    await until(says_something)
    assert seen.status == "in_progress"
    whole = "".join(echo_chunks("hello", 3000))
    assert whole.startswith(seen.output_text)
    async with await client.responses.retrieve(running.id, stream=True, starting_after=5) as stream:
        heard = [event async for event in first(stream, 5)]
    assert [event.sequence_number for event in heard] == [6, 7, 8, 9, 10]
    stopped = await client.responses.cancel(running.id)
    assert stopped.status == "incomplete"
    assert stopped.incomplete_details is not None
    assert stopped.incomplete_details.model_dump() == {"reason": "cancelled"}
    assert whole.startswith(stopped.output_text)
    assert await client.responses.cancel(running.id) == stopped == await client.responses.retrieve(running.id)


async def first(stream: AsyncIterator[Any], count: int) -> AsyncIterator[Any]:
    for _ in range(count):
        yield await anext(stream)


async def test_a_background_stream_that_broke_off_is_resumed(
    client: AsyncOpenAI, echo_chunks: Chunks
) -> None:
    stream = await client.responses.create(model="slow", input="hello", background=True, stream=True)
    heard = [event async for event in first(stream, 10)]
    await stream.close()
    async with await client.responses.retrieve(
        heard[0].response.id, stream=True, starting_after=heard[-1].sequence_number
    ) as again:
        heard += [event async for event in again]
    assert [event.sequence_number for event in heard] == list(range(len(heard)))
    deltas = [event.delta for event in heard if event.type == "response.output_text.delta"]
    assert deltas == echo_chunks("hello", COUNT)


def test_a_conversation_is_made_filled_read_and_deleted(sync: OpenAI, echo_chunks: Chunks) -> None:
    items: Any = [
        {"role": "user", "content": "I am Ada"},
        {"type": "function_call", "call_id": "call_1", "name": "greet", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "done"},
    ]
    conversation = sync.conversations.create(items=items, metadata={"topic": "trip"})
    answer = sync.responses.create(model="echo", input="hello", conversation=conversation.id)
    (more,) = sync.conversations.items.create(
        conversation.id, items=[{"role": "user", "content": "thanks"}]
    ).data
    assert more.id is not None
    # In pages, one after another.
    listed = list(sync.conversations.items.list(conversation.id, order="asc", limit=2))
    kinds = ["message", "function_call", "function_call_output", "message", "message", "message"]
    assert [item.type for item in listed] == kinds
    assert list(sync.conversations.items.list(conversation.id)) == listed[::-1]
    assert listed[4].id == answer.output[0].id
    assert listed[5] == more == sync.conversations.items.retrieve(more.id, conversation_id=conversation.id)
    assert sync.conversations.items.delete(more.id, conversation_id=conversation.id) == conversation
    with pytest.raises(openai.NotFoundError):
        sync.conversations.items.retrieve(more.id, conversation_id=conversation.id)
    renamed = sync.conversations.update(conversation.id, metadata={"topic": "home"})
    assert renamed == sync.conversations.retrieve(conversation.id)
    assert renamed.metadata == {"topic": "home"}
    assert sync.conversations.delete(conversation.id).deleted
    with pytest.raises(openai.NotFoundError):
        sync.conversations.retrieve(conversation.id)


async def test_what_goes_wrong_has_the_package_s_exceptions(
    server: "Server", client: AsyncOpenAI, visitor: "type[Visitor]"
) -> None:
    with pytest.raises(openai.NotFoundError) as model:
        await client.responses.create(model="gpt-9", input="hello")
    assert (model.value.code, model.value.param) == ("model_not_found", "model")
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("temperature", {"temperature": 5}),
        ("tools", {"tools": [{"type": "function", "name": "f", "parameters": {}, "strict": True}]}),
        ("max_tool_calls", {"max_tool_calls": 3}),
        ("logprobs", {"include": ["message.output_text.logprobs"]}),
        ("background", {"background": True, "store": False}),
    ]
    for param, fields in wrong:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="echo", input="hello", **fields)
        assert refused.value.param == param
    conversation = await client.conversations.create()
    busy = await client.responses.create(
        model="endless", input="hello", conversation=conversation.id, background=True
    )
    with pytest.raises(openai.ConflictError) as locked:
        await client.responses.create(model="echo", input="hello", conversation=conversation.id)
    assert locked.value.code == "conversation_locked"
    await client.responses.cancel(busy.id)
    ada = visitor(server)
    tokens = await ada.register("ada")
    own = client.with_options(api_key=tokens["access_token"])
    assert (await own.responses.create(model="echo", input="hello")).status == "completed"
    with pytest.raises(openai.NotFoundError):
        await own.conversations.retrieve(conversation.id)
    await ada.call("POST", "/api/v1/auth/logout", {"refresh_token": tokens["refresh_token"]})
    with pytest.raises(openai.AuthenticationError):
        await own.responses.create(model="echo", input="hello")


# ── one answer, every protocol ───────────────────────────────────────────────────────────────────


async def test_an_answer_that_began_as_bare_text_is_followed_everywhere(
    server: "Server", visitor: "type[Visitor]", until: "Until", echo_chunks: Chunks
) -> None:
    ada = visitor(server)
    async with ada.text("/ws?model=slow") as text:
        await text.send("hello")
        frames = [str(await text.recv()) for _ in range(10)]
        (conversation,) = await ada.conversations()
        path = f"/v1/conversations/{conversation['session_id']}/items?limit=1"
        (question,) = (await ada.call("GET", path)).json["data"]
        assert question["content"][0]["text"] == "hello"
        response_id = question["response_id"]
        sse = asyncio.create_task(follow(ada, response_id, after=9))
        async with ada.responses() as socket:
            await socket.resume(response_id, starting_after=9)
            resumed = await socket.rest()
        frames += [str(await text.recv()) for _ in range(COUNT - 10)]
        streamed = await sse
    whole = "".join(echo_chunks("hello", COUNT))
    assert "".join(frames) == whole
    # Five events go before the first piece of text.
    assert "".join(frames[:5]) + resumed.text == whole
    assert streamed == resumed.events
    polled = (await ada.call("GET", f"/v1/responses/{response_id}")).json
    assert polled == resumed.response
    assert resumed.output_text == whole


async def follow(visitor: "Visitor", response_id: str, after: int) -> "list[JSON]":
    """The events of an answer behind number `after`, as server-sent events."""
    url = visitor.server.http(f"/v1/responses/{response_id}?stream=true&starting_after={after}")
    async with aiohttp.ClientSession(headers=visitor.headers) as session, session.get(url) as reply:
        assert reply.status == 200
        return [json.loads(line[6:]) async for line in reply.content if line.startswith(b"data: ")]
