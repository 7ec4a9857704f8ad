"""One conversation, whichever way it is spoken to; and what is listed, kept, exported and deleted of it."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from test.e2e.conftest import JSON, OpenText, RunServer, Say, Server, Until, Visitor

MODELS: "list[JSON]" = [
    {"name": "echo", "generator": "echo", "options": {"interval": "2ms"}},
    {"name": "endless", "generator": "echo", "options": {"chunks": 3000, "interval": "10ms"}},
]
KEPT = 3
NOTHING = "conv_0000000000000000"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, run_server: "RunServer") -> Iterator["Server"]:
    config: JSON = {"models": MODELS}
    if request.param == "postgresql":
        config["storage"] = {"url": request.getfixturevalue("empty_postgres")}
    with run_server(config) as server:
        yield server


@pytest.fixture
def guest(server: "Server", visitor: "type[Visitor]") -> "Visitor":
    return visitor(server)


@pytest.fixture(scope="module")
def forgetful(run_server: "RunServer", impatient: Sequence[str]) -> Iterator["Server"]:
    storage = {"keep_conversations": KEPT}
    with run_server({"models": MODELS, "storage": storage}, program=impatient) as server:
        yield server


@pytest.fixture(scope="module")
def without_storage(run_server: "RunServer") -> Iterator["Server"]:
    with run_server({"models": MODELS, "storage": {"url": ""}}) as server:
        yield server


class Stored:
    """Waits for what a client of the bare text cannot see: that the answer has ended and is stored."""

    def __init__(self, until: "Until") -> None:
        self._until = until

    async def __call__(self, guest: "Visitor", conversation_id: str, messages: int) -> None:
        async def are_there() -> bool:
            return len(await guest.history(conversation_id)) == messages

        await self._until(are_there)


@pytest.fixture
def stored(until: "Until") -> Stored:
    return Stored(until)


def dialogue(*said: str, echo: Callable[..., list[str]]) -> list[tuple[str, str]]:
    turns = [(("user", text), ("assistant", "".join(echo(text)))) for text in said]
    return [message for turn in turns for message in turn]


# ── one dialogue ─────────────────────────────────────────────────────────────────────────────────


async def test_all_dialects_speak_to_the_same_conversation(
    guest: "Visitor", say: "Say", stored: Stored, echo_chunks: Callable[..., list[str]]
) -> None:
    async with guest.text() as socket:
        await say(socket, "one")
        await say(socket, "two")
        (found,) = await guest.conversations()
        conversation = found["session_id"]
        await stored(guest, conversation, 4)
        async with guest.text(f"/ws?conversation={conversation}") as another:
            await say(another, "three")
            await stored(guest, conversation, 6)
        async with guest.responses() as responses:
            answer = await responses.ask("four", conversation=conversation)
            assert answer.response["conversation"] == {"id": conversation}
            answer = await responses.ask("five", conversation={"id": conversation})
            assert answer.text == "".join(echo_chunks("five"))
        reply = await guest.ask("six", session_id=conversation)
        assert (reply["session_id"], reply["user_message"]) == (conversation, "six")
        assert reply["assistant_reply"] == "".join(echo_chunks("six"))
        stream = await guest.call("POST", "/chat/message", {"message": "seven", "session_id": conversation})
        assert stream.headers["X-Session-Id"] == conversation
        # The socket that it began on goes on with all of it.
        await say(socket, "eight")
    said = ("one", "two", "three", "four", "five", "six", "seven", "eight")
    await stored(guest, conversation, 2 * len(said))
    assert await guest.history(conversation) == dialogue(*said, echo=echo_chunks)
    (found,) = await guest.conversations()
    assert (found["message_count"], found["title"]) == (16, "one")


async def test_a_conversation_that_was_made_ahead_is_named_by_its_first_words(
    guest: "Visitor", say: "Say"
) -> None:
    made = await guest.call("POST", "/conversations", {})
    conversation = made.json["session_id"]
    assert [(it["title"], it["message_count"]) for it in await guest.conversations()] == [("", 0)]
    assert await guest.history(conversation) == []
    async with guest.text(f"/ws?conversation={conversation}") as socket:
        await say(socket, "what is a sluice")
    assert [it["title"] for it in await guest.conversations()] == ["what is a sluice"]


async def test_while_an_answer_runs_nobody_else_may_ask(guest: "Visitor", say: "Say") -> None:
    conversation = (await guest.ask("hello"))["session_id"]
    here = f"/ws?conversation={conversation}"
    async with guest.responses() as socket, guest.text(here) as text:
        await socket.create("go on", model="endless", conversation=conversation)
        seen = await socket.until("response.output_text.delta")
        reply = await guest.call("POST", "/chat", {"message": "me too", "session_id": conversation})
        assert (reply.status, reply.json["error"]["code"]) == (409, "conversation_locked")
        await text.send("me too")
        assert await text.recv() == "error: an answer in this conversation has not ended yet"
        async with guest.responses() as other:
            await other.create("me too", conversation=conversation)
            error = await other.event()
            assert (error["status"], error["error"]["code"]) == (409, "conversation_locked")
        assert (await guest.history(conversation))[2:] == [("user", "go on")]
        await socket.cancel(seen[0]["response"]["id"])
        answer = await socket.rest(seen)
        # What had been said by then is kept.
        assert (await guest.history(conversation))[3] == ("assistant", answer.text)
        await say(text, "and now")


async def test_of_many_who_ask_at_once_one_is_answered(guest: "Visitor") -> None:
    conversation = (await guest.ask("hello"))["session_id"]
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(guest.responses()) for _ in range(8)]
        asking = (socket.create("go on", model="endless", conversation=conversation) for socket in sockets)
        await asyncio.gather(*asking)
        events = await asyncio.gather(*(socket.event() for socket in sockets))
        codes = [event["error"]["code"] for event in events if event["type"] == "error"]
        assert codes == ["conversation_locked"] * 7
    assert len([text for role, text in await guest.history(conversation) if text == "go on"]) == 1


async def test_a_conversation_deleted_behind_an_open_socket_is_followed_by_a_new_one(
    guest: "Visitor", say: "Say", stored: Stored
) -> None:
    async with guest.text() as socket:
        await say(socket, "one")
        (found,) = await guest.conversations()
        await stored(guest, found["session_id"], 2)
        async with guest.text(f"/ws?conversation={found['session_id']}") as named:
            assert (await guest.call("DELETE", f"/conversations/{found['session_id']}")).status == 204
            assert await guest.conversations() == []
            await say(socket, "two")
            (new,) = await guest.conversations()
            assert (new["title"], new["session_id"] == found["session_id"]) == ("two", False)
            # Who asked for that one is told that it is gone.
            await named.send("three")
            assert await named.recv() == f"error: there is no conversation '{found['session_id']}'"
        await stored(guest, new["session_id"], 2)
        await say(socket, "four")
        await stored(guest, new["session_id"], 4)


async def test_an_answer_in_a_deleted_conversation_goes_on(guest: "Visitor") -> None:
    conversation = (await guest.ask("hello"))["session_id"]
    async with guest.responses() as socket:
        await socket.create("go on", model="endless", conversation=conversation)
        seen = await socket.until("response.output_text.delta")
        assert (await guest.call("DELETE", f"/conversations/{conversation}")).status == 204
        seen += await socket.until("response.output_text.delta")
        await socket.cancel(seen[0]["response"]["id"])
        assert (await socket.rest(seen)).response["status"] == "incomplete"
        await socket.create("more", conversation=conversation)
        assert (await socket.error())["code"] == "conversation_not_found"
        await socket.create("more", previous_response_id=seen[0]["response"]["id"])
        assert (await socket.error())["code"] == "previous_response_not_found"


async def test_what_does_not_exist_is_not_found(guest: "Visitor", text_socket: "OpenText") -> None:
    for name in (NOTHING, "x" * 64, "%00", "ünï", "../x"):
        async with text_socket(guest.server, f"/ws?conversation={name}") as socket:
            await socket.send("hello")
            assert str(await socket.recv()).startswith("error: there is no conversation")
    for method, path in (("GET", "/history"), ("GET", "/export"), ("DELETE", ""), ("PATCH", "")):
        body = {"title": "mine"} if method == "PATCH" else None
        reply = await guest.call(method, f"/conversations/{NOTHING}{path}", body)
        assert (reply.status, reply.json["error"]["code"]) == (404, "conversation_not_found")


async def test_an_address_that_names_no_conversation_begins_one(guest: "Visitor", say: "Say") -> None:
    async with guest.text("/ws?conversation=") as socket:
        await say(socket, "hello")
    assert [it["title"] for it in await guest.conversations()] == ["hello"]


async def test_what_is_not_to_be_stored_is_not(guest: "Visitor") -> None:
    conversation = (await guest.ask("hello"))["session_id"]
    async with guest.responses() as socket:
        alone = await socket.ask("in passing", store=False)
        assert alone.response["store"] is False
        beside = await socket.ask("beside the point", conversation=conversation, store=False)
        assert beside.response["status"] == "completed"
        await socket.create("and?", previous_response_id=alone.id)
        assert (await socket.error())["code"] == "previous_response_not_found"
        kept = await socket.ask("in no conversation")
        assert (await socket.ask("and?", previous_response_id=kept.id)).response["status"] == "completed"
    assert len(await guest.history(conversation)) == 2
    (found,) = await guest.conversations()
    assert (found["session_id"], found["title"]) == (conversation, "hello")
    for words in ("passing", "beside"):
        assert await guest.conversations(f"?q={words}") == []


# ── what is done with them ───────────────────────────────────────────────────────────────────────


async def test_conversations_are_listed_page_by_page_those_with_news_first(guest: "Visitor") -> None:
    ids = [(await guest.ask(f"question {number}"))["session_id"] for number in range(5)]
    await guest.ask("and again", session_id=ids[1])
    expected = [ids[1], ids[4], ids[3], ids[2], ids[0]]
    found, cursor = [], ""
    while True:
        page = (await guest.call("GET", f"/conversations?limit=2{cursor}")).json
        found += [it["session_id"] for it in page["conversations"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert found == expected


async def test_search_finds_all_words_in_titles_questions_and_answers(guest: "Visitor") -> None:
    lisbon = (await guest.ask("a trip to Lisbon"))["session_id"]
    porto = (await guest.ask("the food of Porto, ÜBER alles"))["session_id"]
    await guest.call("PATCH", f"/conversations/{porto}", {"title": "Eating by the sea"})
    for query, expected in (
        ("lisbon", [lisbon]),
        ("TRIP%20lis", [lisbon]),
        ("sea", [porto]),
        ("sea%20food", [porto]),
        ("%C3%BCber", [porto]),
        ("chunk%205", [porto, lisbon]),
        ("lisbon%20porto", []),
        ("%25", []),
        ("_", []),
    ):
        found = [it["session_id"] for it in await guest.conversations(f"?q={query}")]
        assert found == expected, query


async def test_a_conversation_is_exported_in_both_formats(
    guest: "Visitor", echo_chunks: Callable[..., list[str]]
) -> None:
    conversation = (await guest.ask("What is a *sluice*?"))["session_id"]
    await guest.ask("Really?", session_id=conversation)
    await guest.call("PATCH", f"/conversations/{conversation}", {"title": "On sluices, & more"})
    path = f"/conversations/{conversation}/export"
    exported = await guest.call("GET", path)
    assert exported.headers["Content-Disposition"] == 'attachment; filename="on-sluices-more.json"'
    export = json.loads(exported.text)
    said = [(message["role"], message["content"]) for message in export["messages"]]
    assert said == dialogue("What is a *sluice*?", "Really?", echo=echo_chunks)
    assert (export["session_id"], export["title"]) == (conversation, "On sluices, & more")
    markdown = await guest.call("GET", f"{path}?format=markdown")
    assert markdown.headers["Content-Type"] == "text/markdown; charset=utf-8"
    assert markdown.headers["Content-Disposition"] == 'attachment; filename="on-sluices-more.md"'
    assert markdown.text.startswith("# On sluices, & more\n\n## User\n\n")
    at = [markdown.text.index(text) for _, text in said]
    assert at == sorted(at)
    assert (await guest.call("GET", f"{path}?format=pdf")).status == 400


async def test_a_conversation_is_renamed_and_deleted(guest: "Visitor") -> None:
    conversation = (await guest.ask("hello"))["session_id"]
    path = f"/conversations/{conversation}"
    renamed = await guest.call("PATCH", path, {"title": "  Ça   va?  "})
    assert (renamed.status, renamed.json["title"]) == (200, "Ça va?")
    for title in ("", "   ", "x" * 51, None, 5):
        refused = await guest.call("PATCH", path, {"title": title})
        assert (refused.status, refused.json["error"]["param"]) == (400, "title")
    await guest.ask("and again", session_id=conversation)
    assert [it["title"] for it in await guest.conversations()] == ["Ça va?"]
    assert (await guest.call("DELETE", path)).status == 204
    assert (await guest.call("DELETE", path)).status == 404
    assert await guest.conversations() == []


async def test_only_the_newest_conversations_of_each_are_kept(
    forgetful: "Server", visitor: "type[Visitor]", until: "Until"
) -> None:
    guest, other = visitor(forgetful), visitor(forgetful)
    others = (await other.ask("of somebody else"))["session_id"]
    ids = [(await guest.ask(f"question {number}"))["session_id"] for number in range(KEPT + 3)]

    async def are_few() -> bool:
        return len(await guest.conversations()) <= KEPT

    await until(are_few)
    assert [it["session_id"] for it in await guest.conversations()] == ids[: -KEPT - 1 : -1]
    assert (await guest.call("GET", f"/conversations/{ids[0]}/history")).status == 404
    assert [it["session_id"] for it in await other.conversations()] == [others]


# ── nothing stored ───────────────────────────────────────────────────────────────────────────────


async def test_without_a_storage_sockets_work(
    without_storage: "Server", visitor: "type[Visitor]", say: "Say"
) -> None:
    guest = visitor(without_storage)
    async with guest.text() as text, guest.responses() as socket:
        await say(text, "hello")
        await say(text, "and again")
        first = await socket.ask("hello")
        assert (await socket.ask("and?", previous_response_id=first.id)).response["status"] == "completed"
        await socket.create("hello", conversation=NOTHING)
        assert (await socket.error())["code"] == "conversation_not_found"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/chat"),
        ("POST", "/chat/message"),
        ("GET", "/conversations"),
        ("POST", "/conversations"),
        ("GET", f"/conversations/{NOTHING}/history"),
        ("POST", "/api/v1/auth/register"),
        ("POST", "/api/v1/auth/login"),
        ("GET", "/api/v1/me"),
        ("GET", "/api/config"),
    ],
)
async def test_without_a_storage_what_needs_one_is_not_found(
    without_storage: "Server", visitor: "type[Visitor]", method: str, path: str
) -> None:
    reply = await visitor(without_storage).call(
        method, path, {"message": "hello"} if method == "POST" else None
    )
    assert reply.status == 404
    error = reply.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", "not_found")
    assert (await visitor(without_storage).call("GET", "/api/health")).status == 200
