"""Conversations over HTTP: pages, search, names, files."""

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from internal.biz.models import Role, Status, StoredMessage
from internal.service.api.conversations import AttachedFile, Export, HistoryMessage, file_name, markdown

if TYPE_CHECKING:
    from test.server.conftest import Api


async def listed(api: "Api", token: str, query: str = "") -> Any:
    reply = await api.call("GET", f"/conversations{query}", token=token)
    assert reply.status == 200
    return await reply.json()


async def test_a_conversation_from_its_beginning_to_its_end(api: "Api") -> None:
    token = await api.user()
    session_id = await api.begin(token, "  A   trip ")
    (found,) = (await listed(api, token))["conversations"]
    assert found == {
        "session_id": session_id,
        "title": "A trip",
        "created_at": found["created_at"],
        "updated_at": found["updated_at"],
        "message_count": 0,
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["created_at"])
    renamed = await api.call("PATCH", f"/conversations/{session_id}", {"title": "Lisbon"}, token)
    assert await renamed.json() == {**found, "title": "Lisbon"}
    assert (await api.call("DELETE", f"/conversations/{session_id}", token=token)).status == 204
    assert (await listed(api, token))["conversations"] == []
    for path in ("history", "export"):
        assert (await api.call("GET", f"/conversations/{session_id}/{path}", token=token)).status == 404


async def test_it_may_begin_without_a_body(api: "Api") -> None:
    assert (await api.call("POST", "/conversations")).status == 201


@pytest.mark.parametrize("title", ["", " ", "\u00a0", "\u202e"])
async def test_it_does_not_begin_with_a_title_that_is_none(api: "Api", title: str) -> None:
    reply = await api.call("POST", "/conversations", {"title": title})
    assert (reply.status, (await reply.json())["error"]["param"]) == (400, "title")


def test_an_export_names_the_files() -> None:
    file = AttachedFile(file_id="file_1", name="a.txt", media_type="text/plain")
    said = [
        HistoryMessage(role=Role.USER, content="", created_at="now", model="m", attachments=[file]),
        HistoryMessage(role=Role.ASSISTANT, content="Hi", created_at="now", model="m"),
    ]
    export = Export(session_id="conv_1", title="T", created_at="now", updated_at="now", messages=said)
    assert "*now*\n\nAttached: a.txt\n\n## Assistant" in markdown(export)
    first, second = export.model_dump()["messages"]
    assert first["attachments"] == [{"file_id": "file_1", "name": "a.txt", "media_type": "text/plain"}]
    assert "attachments" not in second


async def test_pages_lead_to_each_other(api: "Api") -> None:
    token = await api.user()
    ids = []
    for number in range(5):
        ids.append(await api.begin(token, f"number {number}"))
        await asyncio.sleep(0.002)  # ids sort by time
    found: list[str] = []
    query: str | None = "?limit=2"
    while query is not None:
        page = await listed(api, token, query)
        found += [one["session_id"] for one in page["conversations"]]
        query = page["next_cursor"] and f"?limit=2&cursor={page['next_cursor']}"
    assert found == ids[::-1]


async def test_search(api: "Api") -> None:
    token = await api.user()
    session_id = await api.begin(token, "A trip to Lisbon")
    await api.begin(token, "Bread")
    (found,) = (await listed(api, token, "?q=Lisbon"))["conversations"]
    assert found["session_id"] == session_id
    assert len((await listed(api, token, "?q=%20"))["conversations"]) == 2


@pytest.mark.parametrize("title", ["", "   ", "x" * 51, None, 1, "a\0b", "a\u202eb", "\u200b"])
async def test_a_title_that_is_none(api: "Api", title: object) -> None:
    token = await api.user()
    session_id = await api.begin(token, "A trip")
    reply = await api.call("PATCH", f"/conversations/{session_id}", {"title": title}, token)
    assert (reply.status, (await reply.json())["error"]["param"]) == (400, "title")
    (found,) = (await listed(api, token))["conversations"]
    assert found["title"] == "A trip"


async def talked(api: "Api", token: str, title: str = "A trip: to\r\nLisbon?") -> str:
    session_id = await api.begin(token, "x")
    conversation = api.storage.conversations[session_id]
    object.__setattr__(conversation, "title", title)
    api.storage.said[session_id] = [
        StoredMessage("msg_1", "resp_1", Role.USER, "Where?", 1_700_000_000.9, "m", Status.COMPLETED),
        StoredMessage(
            "msg_2",
            "resp_1",
            Role.ASSISTANT,
            "# Lisbon\n\n“Of course.”",
            1_700_000_002.0,
            "m",
            Status.COMPLETED,
        ),
    ]
    return session_id


async def test_history(api: "Api") -> None:
    token = await api.user()
    session_id = await talked(api, token)
    reply = await api.call("GET", f"/conversations/{session_id}/history", token=token)
    assert await reply.json() == {
        "session_id": session_id,
        "messages": [
            {"role": "user", "content": "Where?", "created_at": "2023-11-14T22:13:20Z", "model": "m"},
            {
                "role": "assistant",
                "content": "# Lisbon\n\n“Of course.”",
                "created_at": "2023-11-14T22:13:22Z",
                "model": "m",
            },
        ],
    }


async def test_export_as_json(api: "Api") -> None:
    token = await api.user()
    session_id = await talked(api, token)
    reply = await api.call("GET", f"/conversations/{session_id}/export", token=token)
    assert reply.headers["Content-Disposition"] == 'attachment; filename="a-trip-to-lisbon.json"'
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    export = json.loads(await reply.text())
    assert (export["session_id"], len(export["messages"])) == (session_id, 2)


async def test_export_as_markdown(api: "Api") -> None:
    token = await api.user()
    session_id = await talked(api, token)
    reply = await api.call("GET", f"/conversations/{session_id}/export?format=markdown", token=token)
    assert reply.content_type == "text/markdown"
    assert reply.headers["Content-Disposition"] == 'attachment; filename="a-trip-to-lisbon.md"'
    assert await reply.text() == (
        "# A trip: to Lisbon?\n\n## User\n\n*2023-11-14T22:13:20Z*\n\nWhere?\n\n"
        "## Assistant\n\n*2023-11-14T22:13:22Z, m*\n\n# Lisbon\n\n“Of course.”\n"
    )
    wrong = await api.call("GET", f"/conversations/{session_id}/export?format=pdf", token=token)
    assert (wrong.status, (await wrong.json())["error"]["param"]) == (400, "format")


def export_of(title: str) -> Export:
    said = HistoryMessage(role=Role.USER, content="hi", created_at="2026-01-01T00:00:00Z", model="m")
    return Export(
        session_id="conv_1",
        title=title,
        created_at="2026-01-01T00:00:00Z",
        updated_at="2026-01-01T00:00:00Z",
        messages=[said],
    )


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("A trip", "a-trip.md"),
        ("../../etc/passwd", "etc-passwd.md"),
        ('x"; filename="evil.exe', "x-filename-evil-exe.md"),
        ("a\r\nSet-Cookie: b=c", "a-set-cookie-b-c.md"),
        ("旅行", "conv_1.md"),
        ("", "conv_1.md"),
        ("CON", "con.md"),
        ("word " * 30, "word-word-word-word-word-word-word-word.md"),
    ],
)
def test_a_file_s_name_is_harmless(title: str, name: str) -> None:
    assert file_name(export_of(title), "md") == name


def test_markdown_without_a_title_is_named_by_its_id() -> None:
    assert markdown(export_of(" ")).startswith("# conv_1\n")


# ── branches ─────────────────────────────────────────────────────────────────────────────────────


async def asked(api: "Api", token: str, conversation: str, **body: Any) -> Any:
    """How a response ended."""
    async with api.engine.answering():
        body = {"input": "hello", "conversation": conversation, **body}
        reply = await api.call("POST", "/v1/responses", body, token)
    assert reply.status == 200, await reply.text()
    return await reply.json()


async def test_a_conversation_goes_on_from_another_response(api: "Api") -> None:
    token = await api.user()
    session_id = await api.begin(token, "A trip")
    first = await asked(api, token, session_id)
    await asked(api, token, session_id, replaces=first["id"])
    settings = api.storage.requests[-1].settings
    assert (settings.conversation_id, settings.replaces) == (session_id, first["id"])
    path = f"/conversations/{session_id}"
    moved = await api.call("PATCH", path, {"head": first["id"]}, token)
    assert (moved.status, (await moved.json())["title"]) == (200, "A trip")
    assert api.storage.heads == {session_id: first["id"]}
    both = await api.call("PATCH", path, {"head": first["id"], "title": "Lisbon"}, token)
    assert (both.status, (await both.json())["title"]) == (200, "Lisbon")


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({}, 400, "title", None),
        ({"title": None, "head": None}, 400, "title", None),
        ({"head": "a b"}, 400, "head", None),
        ({"head": 5}, 400, "head", None),
        ({"head": "HEAD", "title": "\u200b"}, 400, "title", None),
        ({"head": "resp_none"}, 404, "head", "response_not_found"),
        ({"head": "resp_none", "title": "Lisbon"}, 404, "head", "response_not_found"),
    ],
)
async def test_a_change_that_cannot_be_made_changes_nothing(
    api: "Api", body: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    token = await api.user()
    session_id = await api.begin(token, "A trip")
    response = await asked(api, token, session_id)
    body = {key: response["id"] if value == "HEAD" else value for key, value in body.items()}
    reply = await api.call("PATCH", f"/conversations/{session_id}", body, token)
    error = (await reply.json())["error"]
    assert (reply.status, error["param"]) == (status, param)
    assert code is None or error["code"] == code
    (found,) = (await listed(api, token))["conversations"]
    assert (found["title"], api.storage.heads) == ("A trip", {})


async def test_a_conversation_goes_on_from_nothing_else_while_an_answer_runs(api: "Api") -> None:
    token = await api.user()
    session_id = await api.begin(token, "A trip")
    first = await asked(api, token, session_id)
    body = {"input": "again", "conversation": session_id, "replaces": first["id"], "background": True}
    assert (await api.call("POST", "/v1/responses", body, token)).status == 200
    for method, path, more in (
        ("POST", "/v1/responses", body),
        ("POST", "/v1/batches", {"prompt": "x", "conversation_id": session_id, "replaces": first["id"]}),
        ("PATCH", f"/conversations/{session_id}", {"head": first["id"]}),
    ):
        reply = await api.call(method, path, more, token)
        assert (reply.status, (await reply.json())["error"]["code"]) == (409, "conversation_locked")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "hello"}),
        ("/v1/responses", {"input": "hello", "previous_response_id": "RESPONSE"}),
        ("/v1/responses", {"input": "hello", "conversation": "CONVERSATION", "store": False}),
        ("/v1/batches", {"prompt": "hello"}),
        ("/v1/batches", {"prompt": "hello", "previous_response_id": "RESPONSE"}),
        ("/v1/batches", {"prompt": "hello", "conversation_id": "CONVERSATION", "store": False}),
    ],
)
async def test_what_replaces_a_turn_names_its_conversation_and_is_stored(
    api: "Api", path: str, body: dict[str, Any]
) -> None:
    token = await api.user()
    session_id = await api.begin(token)
    named = {"CONVERSATION": session_id, "RESPONSE": (await asked(api, token, session_id))["id"]}
    body = {key: named.get(str(value), value) for key, value in body.items()}
    reply = await api.call("POST", path, {**body, "replaces": named["RESPONSE"]}, token)
    assert (reply.status, (await reply.json())["error"]["param"]) == (400, "replaces")


async def test_what_is_not_of_the_conversation_is_not_replaced(api: "Api") -> None:
    token = await api.user()
    session_id = await api.begin(token)
    await asked(api, token, session_id)
    for path, body in (
        ("/v1/responses", {"input": "x", "conversation": session_id}),
        ("/v1/batches", {"prompt": "x", "conversation_id": session_id}),
    ):
        reply = await api.call("POST", path, {**body, "replaces": "resp_none"}, token)
        error = (await reply.json())["error"]
        assert (reply.status, error["code"], error["param"]) == (404, "response_not_found", "replaces")


async def test_turns_are_listed_page_by_page(api: "Api") -> None:
    token = await api.user()
    session_id = await api.begin(token)
    path = f"/v1/conversations/{session_id}/turns"
    empty = await (await api.call("GET", path, token=token)).json()
    ends = {"first_id": None, "last_id": None, "head_id": None}
    assert empty == {"object": "list", "data": [], "has_more": False, **ends}
    ended = [await asked(api, token, session_id, input=f"q{number}") for number in range(3)]
    api.storage.heads[session_id] = ended[2]["id"]
    page = await (await api.call("GET", f"{path}?limit=2", token=token)).json()
    newest, before = page.pop("data")
    assert page == {
        "object": "list",
        "first_id": ended[2]["id"],
        "last_id": ended[1]["id"],
        "has_more": True,
        "head_id": ended[2]["id"],
    }
    (item,) = newest["input"]
    assert newest == {
        "id": ended[2]["id"],
        "object": "conversation.turn",
        "previous_response_id": None,
        "aside": False,
        "created_at": newest["created_at"],
        "first_token_at": None,
        "ended_at": None,
        "input": [item],
        "response": ended[2],
    }
    assert (item["role"], item["content"][0]["text"], item["response_id"]) == ("user", "q2", newest["id"])
    rest = await (await api.call("GET", f"{path}?after={before['id']}", token=token)).json()
    assert ([turn["id"] for turn in rest["data"]], rest["has_more"]) == ([ended[0]["id"]], False)
    oldest = await (await api.call("GET", f"{path}?order=asc&limit=1", token=token)).json()
    assert [turn["id"] for turn in oldest["data"]] == [ended[0]["id"]]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "order=up", "after=", "after=a%20b", "before=x"])
async def test_a_page_of_turns_that_cannot_be(api: "Api", query: str) -> None:
    token = await api.user()
    session_id = await api.begin(token)
    reply = await api.call("GET", f"/v1/conversations/{session_id}/turns?{query}", token=token)
    assert (reply.status, (await reply.json())["error"]["param"]) == (400, query.partition("=")[0])
