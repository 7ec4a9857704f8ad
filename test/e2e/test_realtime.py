"""`/v1/realtime` of a server with its storage: the unmodified `openai` package, and what is kept."""

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from openai.types.realtime import RealtimeConversationItemAssistantMessage, RealtimeResponse

if TYPE_CHECKING:
    from test.e2e.conftest import RunServer, Server, Visitor

Chunks = Callable[..., list[str]]


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    models = [{"name": "echo", "generator": "echo", "options": {"interval": "2ms"}}]
    with run_server({"models": models}) as server:
        yield server


def message(text: str) -> Any:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


async def done(connection: AsyncRealtimeConnection) -> RealtimeResponse:
    """How the response at hand ended."""
    async for event in connection:
        assert event.type != "error", event
        if event.type == "response.done":
            return event.response
    raise AssertionError("the connection ended")


def text_of(response: RealtimeResponse) -> str:
    (item,) = response.output or []
    assert isinstance(item, RealtimeConversationItemAssistantMessage)
    return "".join(part.text or "" for part in item.content)


async def test_the_dialogue_is_a_conversation_like_any_other(
    server: "Server", visitor: "type[Visitor]", echo_chunks: Chunks
) -> None:
    ada = visitor(server)
    await ada.register("ada")
    one, two = ("".join(echo_chunks(text)) for text in ("one", "two"))
    async with (
        AsyncOpenAI(base_url=server.http("/v1"), api_key=(await ada.key())["key"]) as client,
        client.realtime.connect(model="echo") as connection,
    ):
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        for text, whole in (("one", one), ("two", two)):
            await connection.conversation.item.create(item=message(text))
            await connection.response.create()
            response = await done(connection)
            assert text_of(response) == whole
        await connection.response.create()
        response = await done(connection)
        assert text_of(response) == "".join(echo_chunks(""))
        conversation_id = response.conversation_id or ""
        dialogue = [("user", "one"), ("assistant", one), ("user", "two"), ("assistant", two)]
        assert (await ada.history(conversation_id))[:4] == dialogue
        assert [it["session_id"] for it in await ada.conversations()] == [conversation_id]

        # Deleted elsewhere, it is begun anew with all that this session knows.
        assert (await ada.call("DELETE", f"/conversations/{conversation_id}")).status == 204
        await connection.response.create(event_id="mine")
        refusal: Any = await connection.recv()
        assert (refusal.error.code, refusal.error.event_id) == ("conversation_not_found", "mine")
        await connection.response.create()
        anew = (await done(connection)).conversation_id or ""
        assert anew != conversation_id
        assert (await ada.history(anew))[:4] == dialogue

        # And another session goes on with that.
        more: Any = {"conversation": anew}
        async with client.realtime.connect(model="echo", extra_query=more) as other:
            await other.conversation.item.create(item=message("three"))
            await other.response.create()
            assert (await done(other)).conversation_id == anew
        assert (await ada.history(anew))[-2] == ("user", "three")


@pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")
async def test_the_synchronous_openai_client_works_too(server: "Server", echo_chunks: Chunks) -> None:
    def talk() -> str:
        with (
            OpenAI(base_url=server.http("/v1"), api_key="unused") as client,
            client.realtime.connect(model="echo") as connection,
        ):
            connection.conversation.item.create(item=message("hello there"))
            connection.response.create()
            deltas = []
            for event in connection:
                if event.type == "response.output_text.delta":
                    deltas.append(event.delta)
                if event.type == "response.done":
                    break
            return "".join(deltas)

    assert await asyncio.to_thread(talk) == "".join(echo_chunks("hello there"))
