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
