"""Stored conversations, as SQL. Knows tables, not who may ask: what is another user's is not found."""

import base64
import binascii
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, insert, literal, or_, select, tuple_, update
from sqlalchemy.engine import Connection, Row

from internal.biz.conversations import Page
from internal.biz.errors import InvalidRequest, unknown_conversation
from internal.biz.ids import ID_PATTERN
from internal.biz.models import Conversation, Role, Status, StoredMessage
from internal.data.sql import branches
from internal.data.sql.database import Database, Write
from internal.data.sql.dialect import contains
from internal.data.sql.history import attachments_of
from internal.data.sql.searches import Searches
from internal.data.sql.tables import conversations, messages, responses

MAX_SEARCH_WORDS = 10
"""Each is looked for in every message."""

_c = conversations.c
_IS_THERE = _c.deleted_at.is_(None)
_sibling = responses.alias("sibling")
_IS_LISTED = and_(
    responses.c.aside.is_(False),
    messages.c.kind.in_(("input", "output")),
    messages.c.role.in_((Role.USER, Role.ASSISTANT)),
    # A user may attach a file and say nothing.
    or_(messages.c.content != "", and_(messages.c.role == Role.USER, messages.c.details.is_not(None))),
    or_(
        messages.c.kind == "output",
        func.coalesce(responses.c.batch_position, 0) == 0,
        ~exists().where(
            _sibling.c.batch_id == responses.c.batch_id,
            _sibling.c.batch_position < responses.c.batch_position,
        ),
    ),
)
"""Of what stands in `messages`: not what stands aside, not instructions, not reasoning, not the answers that
never came, and of what several models were asked only what the first one was that is still there."""

_COUNT = (
    select(func.count())
    .select_from(messages.join(responses))
    .where(responses.c.conversation_id == _c.id, _IS_LISTED)
    .correlate(conversations)
    .scalar_subquery()
)
_CONVERSATION = select(
    _c.id,
    _c.user_id,
    _c.title,
    _c.has_title,
    _c.created_at,
    _c.updated_at,
    _COUNT.label("message_count"),
    _c.labels,
).where(_IS_THERE)

_INSERT = Write(0, insert(conversations))


class SqlConversations:
    """The port ConversationStore. One per process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._searches = Searches()

    async def create(self, conversation: Conversation) -> None:
        row = {
            "id": conversation.id,
            "user_id": conversation.user,
            "title": conversation.title,
            "has_title": conversation.has_title,
            "wants_title": False,
            "size": 0,
            "created_at": conversation.created_at,
            "updated_at": conversation.updated_at,
            "labels": _labels(conversation.metadata),
        }
        await self._database.write((_INSERT, [row]))

    async def get(self, conversation_id: str, user: str) -> Conversation:
        rows = await self._database.read(_CONVERSATION.where(_c.id == conversation_id, _c.user_id == user))
        if not rows:
            raise unknown_conversation(conversation_id, param=None)
        return _conversation(rows[0])

    async def page(self, user: str, limit: int, cursor: str | None, search: str | None) -> Page:
        statement = (
            _CONVERSATION.where(_c.user_id == user)
            .order_by(_c.updated_at.desc(), _c.id.desc())
            .limit(limit + 1)
        )
        if cursor is not None:
            statement = statement.where(tuple_(_c.updated_at, _c.id) < tuple_(*_read_cursor(cursor)))
        if words := (search or "").split():
            statement = self._searching(statement, words)
            async with self._searches.turn(user):
                rows = await self._database.read(statement)
        else:
            rows = await self._database.read(statement)
        more = len(rows) > limit
        return Page(
            [_conversation(row) for row in rows[:limit]], _write_cursor(rows[limit - 1]) if more else None
        )

    def _searching(self, statement: Select[Any], words: Sequence[str]) -> Select[Any]:
        if len(words) > MAX_SEARCH_WORDS:
            raise InvalidRequest(f"search for at most {MAX_SEARCH_WORDS} words", param="q")
        for word in words:
            said = (
                select(literal(1))
                .where(
                    responses.c.conversation_id == _c.id,
                    messages.c.response_id == responses.c.id,
                    _IS_LISTED,
                    self._contains(messages.c.content, word),
                )
                .correlate(conversations)
                # Else PostgreSQL looks through everybody's messages first, to look up the user's there.
                .offset(0)
            )
            statement = statement.where(or_(self._contains(_c.title, word), said.exists()))
        return statement

    def _contains(self, column: ColumnElement[str], word: str) -> ColumnElement[bool]:
        return contains(column, word, self._database.dialect)

    async def messages(self, conversation_id: str, user: str) -> Sequence[StoredMessage]:
        m, r = messages.c, responses.c
        rows = await self._database.read(
            select(
                m.id, m.response_id, m.role, m.content, m.details, m.created_at, r.model, r.status, r.batch_id
            )
            .select_from(messages.join(responses).join(conversations))
            .where(_c.id == conversation_id, _c.user_id == user, _IS_THERE, _IS_LISTED)
            .order_by(r.id, m.position)
        )
        if not rows:
            await self.get(conversation_id, user)
        return [
            StoredMessage(
                row.id,
                row.response_id,
                Role(row.role),
                row.content,
                row.created_at,
                row.model,
                Status(row.status),
                attachments_of(row.details),
                row.batch_id,
            )
            for row in rows
        ]

    async def rename(self, conversation_id: str, user: str, title: str) -> None:
        await self._update(conversation_id, user, {"title": title, "has_title": True})

    async def go_on_from(
        self, conversation_id: str, user: str, response_id: str, title: str | None = None
    ) -> None:
        def work(connection: Connection) -> None:
            branches.go_on_from(connection, conversation_id, user, response_id)
            if title is not None:
                named = update(conversations).where(_c.id == conversation_id)
                connection.execute(named.values(title=title, has_title=True))

        await self._database.transact(work)

    async def label(self, conversation_id: str, user: str, metadata: Mapping[str, str]) -> None:
        await self._update(conversation_id, user, {"labels": _labels(metadata)})

    async def delete(self, conversation_id: str, user: str) -> None:
        await self._update(conversation_id, user, {"deleted_at": time.time()})

    async def _update(self, conversation_id: str, user: str, values: dict[str, Any]) -> None:
        statement = update(conversations).where(_c.id == conversation_id, _c.user_id == user, _IS_THERE)
        if not await self._database.change(statement.values(values)):
            raise unknown_conversation(conversation_id, param=None)


def _conversation(row: Row[Any]) -> Conversation:
    return Conversation(
        row.id,
        row.user_id,
        row.title,
        row.has_title,
        row.created_at,
        row.updated_at,
        row.message_count,
        json.loads(row.labels) if row.labels else {},
    )


def _labels(metadata: Mapping[str, str]) -> str | None:
    return json.dumps(dict(metadata)) if metadata else None


def _write_cursor(last: Row[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps([last.updated_at, last.id]).encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[float, str]:
    """Where `page` goes on. A forged one leads to some other place among the same user's conversations."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        updated_at, conversation_id = json.loads(base64.b64decode(padded, b"-_", validate=True))
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise _no_cursor() from None
    if not isinstance(updated_at, float) or not math.isfinite(updated_at):
        raise _no_cursor()
    # Text that no id is made of a driver may not even be able to send.
    if not isinstance(conversation_id, str) or not re.fullmatch(ID_PATTERN, conversation_id):
        raise _no_cursor()
    return updated_at, conversation_id


def _no_cursor() -> InvalidRequest:
    return InvalidRequest("the cursor is none that a page of conversations came with", param="cursor")
