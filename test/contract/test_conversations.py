"""What stored conversations promise, on SQLite and on PostgreSQL."""

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.engine import Connection, Row
from sqlalchemy.sql.base import Executable

from internal.biz.conversations import ConversationStore
from internal.biz.errors import InvalidRequest, NotFound
from internal.biz.ids import new_id
from internal.biz.models import Attachment, Conversation, Message, Request, Role, Settings, Status
from internal.data.sql.conversations import SqlConversations
from internal.data.sql.database import Database
from internal.data.sql.history import SqlHistory
from internal.data.sql.tables import conversations, messages, responses
from internal.data.sql.titles import SqlTitles

ADA, BOB = "user_ada", "user_bob"


@pytest.fixture
def store(database: Database) -> ConversationStore:
    return SqlConversations(database)


@pytest.fixture
def untitled(database: Database) -> SqlTitles:
    return SqlTitles(database)


@pytest.fixture
def desk(database: Database, store: ConversationStore) -> "Desk":
    return Desk(database, store)


class Desk:
    """Puts conversations and what was said in them there."""

    def __init__(self, database: Database, store: ConversationStore) -> None:
        self._database = database
        self._store = store
        self._made = 0

    async def conversation(
        self, user: str = ADA, title: str = "", *, updated_at: float | None = None, has_title: bool = False
    ) -> Conversation:
        self._made += 1
        moment = 1000.0 + self._made if updated_at is None else updated_at
        one = Conversation(new_id("conv"), user, title, has_title, moment, moment, 0)
        await self._store.create(one)
        return one

    async def says(
        self, conversation: Conversation, *turn: tuple[str, str, str], status: Status = Status.COMPLETED
    ) -> str:
        """One response with its messages, each a kind, a role and a content. Returns the response's id."""
        self._made += 1
        response_id = f"resp_{self._made:06}"
        response = {
            "id": response_id,
            "user_id": conversation.user,
            "conversation_id": conversation.id,
            "model": "m",
            "status": status,
            "settings": "{}",
            "input_chars": 0,
            "output_chars": 0,
            "created_at": time.time(),
        }
        said = [
            {
                "id": new_id("msg"),
                "response_id": response_id,
                "position": position,
                "kind": kind,
                "role": role,
                "content": content,
                "created_at": time.time(),
            }
            for position, (kind, role, content) in enumerate(turn)
        ]

        def put(connection: Connection) -> None:
            connection.execute(insert(responses), response)
            # Whatever order they arrive in.
            connection.execute(insert(messages), said[::-1])

        await self._database.transact(put)
        return response_id


def asked(content: str) -> tuple[str, str, str]:
    return ("input", Role.USER, content)


def answered(content: str) -> tuple[str, str, str]:
    return ("output", Role.ASSISTANT, content)


async def titles(store: ConversationStore, search: str | None = None, user: str = ADA) -> Sequence[str]:
    return [one.title for one in (await store.page(user, 100, None, search)).conversations]


# ── one conversation ─────────────────────────────────────────────────────────────────────────────


async def test_what_was_created_is_found_as_it_was(store: ConversationStore) -> None:
    one = Conversation(new_id("conv"), ADA, "Über Äpfel 🍏", True, 1234.000001, 1735689600.123456, 0)
    await store.create(one)
    assert await store.get(one.id, ADA) == one


async def test_files_are_listed_with_their_message_also_where_nothing_was_said(
    store: ConversationStore, database: Database
) -> None:
    file = Attachment("a.txt", "text/plain", "file_1", text="hello")
    request = Request(
        "resp_1",
        "m",
        ADA,
        1000.0,
        (Message(Role.USER, "", attachments=(file,)),),
        Settings(conversation_id="conv_1"),
    )
    await SqlHistory(database).begin(request, None, begins=True, wants_title=False)
    (message,) = await store.messages("conv_1", ADA)
    assert (message.content, message.attachments) == ("", (file,))
    assert (await store.get("conv_1", ADA)).message_count == 1


async def test_messages_come_in_the_order_in_which_they_were_said(
    store: ConversationStore, desk: Desk
) -> None:
    one = await desk.conversation()
    first = await desk.says(one, asked("one"), answered("1"))
    second = await desk.says(one, asked("two"), answered("2"), status=Status.INCOMPLETE)
    told = await store.messages(one.id, ADA)
    assert [(it.role, it.content) for it in told] == [
        (Role.USER, "one"),
        (Role.ASSISTANT, "1"),
        (Role.USER, "two"),
        (Role.ASSISTANT, "2"),
    ]
    assert [it.response_id for it in told] == [first, first, second, second]
    assert [it.status for it in told] == [Status.COMPLETED] * 2 + [Status.INCOMPLETE] * 2
    assert {it.model for it in told} == {"m"}


async def test_only_what_people_and_models_said_is_listed_and_counted(
    store: ConversationStore, desk: Desk
) -> None:
    one = await desk.conversation()
    await desk.says(one, ("input", Role.SYSTEM, "be brief"), asked("why?"))
    await desk.says(one, asked("so?"), ("reasoning", Role.ASSISTANT, "hm"), answered("so!"))
    await desk.says(one, asked("and?"), answered(""), status=Status.FAILED)
    assert [it.content for it in await store.messages(one.id, ADA)] == ["why?", "so?", "so!", "and?"]
    assert (await store.get(one.id, ADA)).message_count == 4
    (listed,) = (await store.page(ADA, 10, None, None)).conversations
    assert listed.message_count == 4


async def test_a_conversation_without_messages_has_none(store: ConversationStore, desk: Desk) -> None:
    one = await desk.conversation()
    assert await store.messages(one.id, ADA) == []
    assert (await store.get(one.id, ADA)).message_count == 0


@pytest.mark.parametrize("text", ["a\0b", "half \ud83d a pair", "\ud83c\udf4f"])
async def test_what_a_database_cannot_keep_does_not_stop_a_conversation(
    store: ConversationStore, desk: Desk, text: str
) -> None:
    one = await desk.conversation(title=text)
    await desk.says(one, asked(text))
    (said,) = await store.messages(one.id, ADA)
    assert said.content in ("a�b", "half � a pair", "🍏")
    assert (await store.get(one.id, ADA)).title == said.content
    assert await titles(store, text) == [said.content]


# ── whose it is ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("whose", ["another user's", "deleted", "unknown", "no id at all"])
async def test_what_is_not_there_is_not_found_anywhere(
    store: ConversationStore, desk: Desk, whose: str
) -> None:
    one = await desk.conversation(title="mine")
    await desk.says(one, asked("hello"))
    conversation_id, user = one.id, ADA
    if whose == "another user's":
        user = BOB
    elif whose == "deleted":
        await store.delete(one.id, ADA)
    else:
        conversation_id = new_id("conv") if whose == "unknown" else "a\0\ud800" * 100
    for attempt in (
        store.get(conversation_id, user),
        store.messages(conversation_id, user),
        store.rename(conversation_id, user, "yours"),
        store.delete(conversation_id, user),
    ):
        with pytest.raises(NotFound) as error:
            await attempt
        assert error.value.param is None, "the id was no parameter"
    if whose == "another user's":
        assert (await store.get(one.id, ADA)).title == "mine"


async def test_a_page_shows_the_user_s_own_only(store: ConversationStore, desk: Desk) -> None:
    await desk.conversation(ADA, "hers")
    await desk.conversation(BOB, "his")
    assert await titles(store, user=ADA) == ["hers"]
    assert await titles(store, "his", user=ADA) == []


async def test_what_was_deleted_is_kept_but_not_shown(
    store: ConversationStore, desk: Desk, database: Database
) -> None:
    one, two = await desk.conversation(title="one"), await desk.conversation(title="two")
    await store.delete(one.id, ADA)
    assert await titles(store) == ["two"]
    assert await titles(store, "one") == []
    (row,) = await database.read(select(conversations.c.deleted_at).where(conversations.c.id == one.id))
    assert row.deleted_at == pytest.approx(time.time(), abs=60)
    assert await store.get(two.id, ADA) == two


# ── titles ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_suggested_title_gives_way_to_a_given_one(
    store: ConversationStore, untitled: SqlTitles, desk: Desk
) -> None:
    one = await desk.conversation(title="what is the…")
    await untitled.suggest_title(one.id, "Apples")
    assert await store.get(one.id, ADA) == replace(one, title="Apples", has_title=True)
    await untitled.suggest_title(one.id, "Pears")
    assert (await store.get(one.id, ADA)).title == "Apples"
    await store.rename(one.id, ADA, "Fruit")
    await untitled.suggest_title(one.id, "Pears")
    assert (await store.get(one.id, ADA)).title == "Fruit"


async def test_a_suggestion_for_what_is_not_there_harms_nobody(
    store: ConversationStore, untitled: SqlTitles, desk: Desk
) -> None:
    one = await desk.conversation(title="old")
    await store.delete(one.id, ADA)
    await untitled.suggest_title(one.id, "new")
    await untitled.suggest_title("conv_none", "new")
    with pytest.raises(NotFound):
        await store.get(one.id, ADA)


async def test_a_new_name_is_no_news(store: ConversationStore, desk: Desk) -> None:
    one, _ = await desk.conversation(title="one"), await desk.conversation(title="two")
    await store.rename(one.id, ADA, "first")
    assert await titles(store) == ["two", "first"]


# ── pages ────────────────────────────────────────────────────────────────────────────────────────


async def test_pages_show_each_conversation_once_those_with_news_first(
    store: ConversationStore, desk: Desk
) -> None:
    made = [await desk.conversation(updated_at=moment) for moment in (1.5, 3, 3, 3, 0.1, 7)]
    expected = sorted(made, key=lambda one: (one.updated_at, one.id), reverse=True)
    found: list[Conversation] = []
    cursor = None
    for left in (4, 2, 0):
        page = await store.page(ADA, 2, cursor, None)
        found += page.conversations
        cursor = page.cursor
        assert (cursor is None) == (left == 0)
    assert found == expected


async def test_what_arrives_or_goes_meanwhile_moves_no_page(store: ConversationStore, desk: Desk) -> None:
    made = [await desk.conversation(title=str(number)) for number in range(4)]
    page = await store.page(ADA, 2, None, None)
    await desk.conversation(title="new")
    await store.delete(made[2].id, ADA)  # the one that the cursor names
    rest = await store.page(ADA, 2, page.cursor, None)
    assert [one.title for one in rest.conversations] == ["1", "0"]


async def test_the_last_page_says_so_also_when_it_is_full_or_empty(
    store: ConversationStore, desk: Desk
) -> None:
    assert (await store.page(ADA, 1, None, None)).cursor is None
    await desk.conversation()
    assert (await store.page(ADA, 1, None, None)).cursor is None


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "x", "ä", "=", "W10", "bnVsbA", "WzEsICJhIl0", "WzEuMCwgMV0"),
        *("W05hTiwgImEiXQ", "WzFlOTk5LCAiYSJd", "[" * 10_000, "W1tb" * 10_000),
    ],
)
async def test_what_is_no_cursor_is_refused(store: ConversationStore, cursor: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        await store.page(ADA, 10, cursor, None)
    assert error.value.param == "cursor"


@pytest.mark.parametrize(
    "place",
    [
        r'[1.0,"\ud800"]',
        r'[1.0,"a\u0000b"]',
        '[1.0,""]',
        '[1.0,"a b"]',
        '[1.0,"a\\n"]',
        f'[1.0,"{"a" * 300}"]',
        '[NaN,"conv_a"]',
        '[Infinity,"conv_a"]',
        '[-Infinity,"conv_a"]',
        '[1e999,"conv_a"]',
        f'[{"9" * 400},"conv_a"]',
        f'[1{"0" * 5000},"conv_a"]',
        '[1,"conv_a"]',
        '[true,"conv_a"]',
        '["1.0","conv_a"]',
        '[[1.0],"conv_a"]',
        '[1.0,["conv_a"]]',
        '[1.0,{"a":"b"}]',
        "[1.0,null]",
        '[1.0,"conv_a",1]',
        '{"a":1.0,"b":2}',
        "1.0",
        '"ab"',
    ],
)
async def test_a_forged_cursor_is_refused(store: ConversationStore, place: str) -> None:
    cursor = base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")
    with pytest.raises(InvalidRequest) as error:
        await store.page(ADA, 10, cursor, None)
    assert error.value.param == "cursor"


@pytest.mark.parametrize("moment", ["1e308", "-1e308", "5e-324", "-0.0"])
async def test_a_cursor_to_an_odd_moment_leads_to_a_page(
    store: ConversationStore, desk: Desk, moment: str
) -> None:
    await desk.conversation()
    cursor = base64.urlsafe_b64encode(f'[{moment},"conv_a"]'.encode()).decode().rstrip("=")
    assert len((await store.page(ADA, 10, cursor, None)).conversations) == (moment == "1e308")


async def test_another_user_s_cursor_opens_nothing(store: ConversationStore, desk: Desk) -> None:
    for _ in range(2):
        await desk.conversation(ADA, "hers")
    await desk.conversation(BOB, "his", updated_at=1.0)
    page = await store.page(ADA, 1, None, None)
    told = await store.page(BOB, 10, page.cursor, None)
    assert [one.title for one in told.conversations] == ["his"]


# ── search ───────────────────────────────────────────────────────────────────────────────────────


SEARCHES: list[tuple[str, list[str]]] = [
    ("apple", ["Apple pie"]),
    ("PIE", ["Apple pie"]),
    ("  pie   apple ", ["Apple pie"]),
    ("apple cinnamon", ["Apple pie"]),  # one word in the title, the other in a message
    ("cinnamon sugar", ["Apple pie"]),  # two messages
    ("apple motor", []),
    ("ÄPFEL", ["äpfel"]),
    ("äpfel", ["äpfel"]),
    ("straße", ["äpfel"]),
    ("привет", ["äpfel"]),
    ("ПРИВЕТ", ["äpfel"]),
    ("100%", ["Motors"]),
    ("100_", []),
    ("%", ["Motors"]),
    ("_", ["Motors"]),
    ("a_b", ["Motors"]),
    ("\\", ["Motors"]),
    ("c:\\temp", ["Motors"]),
    ("'", ["Motors"]),
    ('"; drop table', []),
    ("", ["Motors", "äpfel", "Apple pie"]),
    ("   ", ["Motors", "äpfel", "Apple pie"]),
    ("brief", []),  # instructions
    ("thinking", []),
]


async def test_search_finds_every_word_in_titles_and_messages(store: ConversationStore, desk: Desk) -> None:
    pie = await desk.conversation(title="Apple pie")
    await desk.says(pie, ("input", Role.SYSTEM, "be brief"), asked("how much Cinnamon?"))
    await desk.says(pie, asked("and?"), ("reasoning", Role.ASSISTANT, "thinking"), answered("Sugar."))
    fruit = await desk.conversation(title="äpfel")
    await desk.says(fruit, asked("Straße, ПРИВЕТ"))
    motors = await desk.conversation(title="Motors")
    await desk.says(motors, asked("it's 100% of a_b in C:\\Temp"))
    for search, found in SEARCHES:
        assert await titles(store, search) == found, search


async def test_search_is_paged_too(store: ConversationStore, desk: Desk) -> None:
    for number in range(6):
        await desk.conversation(title=f"{'even' if number % 2 == 0 else 'odd'} {number}")
    page = await store.page(ADA, 2, None, "even")
    assert [one.title for one in page.conversations] == ["even 4", "even 2"]
    page = await store.page(ADA, 2, page.cursor, "even")
    assert [one.title for one in page.conversations] == ["even 0"]
    assert page.cursor is None


async def test_a_search_for_too_many_words_is_refused(store: ConversationStore) -> None:
    with pytest.raises(InvalidRequest) as error:
        await store.page(ADA, 10, None, "word " * 11)
    assert error.value.param == "q"


async def test_searches_take_turns_and_a_list_does_not_wait_for_them(
    store: ConversationStore, desk: Desk, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.conversation(title="apple")
    reading, most = 0, 0
    read = database.read
    go_on = asyncio.Event()

    async def slowly(statement: Executable) -> Sequence[Row[Any]]:
        nonlocal reading, most
        if "lower(" not in str(statement):
            return await read(statement)
        reading += 1
        most = max(most, reading)
        await go_on.wait()
        reading -= 1
        return await read(statement)

    monkeypatch.setattr(database, "read", slowly)
    searches = [asyncio.create_task(titles(store, "apple", user)) for user in (ADA, ADA, BOB, "eve", "dan")]
    async with asyncio.timeout(5):
        assert await titles(store) == ["apple"]
        go_on.set()
        assert await asyncio.gather(*searches) == [["apple"], ["apple"], [], [], []]
    assert most == 2
