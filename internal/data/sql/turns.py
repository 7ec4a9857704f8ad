"""A conversation's turns, page by page, as SQL. What is another user's is not found."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Select, bindparam, cast, func, select
from sqlalchemy.engine import Row

from internal.biz.dialogue import NOBODY
from internal.biz.errors import unknown_conversation
from internal.biz.turns import Turn, TurnPage
from internal.data.sql.database import Database
from internal.data.sql.responses import ITEM, read_item, read_response
from internal.data.sql.tables import conversations, messages, responses

MAX_PAGE_CHARS = 4 << 20
"""What a page holds, but for its first turn: what was said, and how it was asked. No turn is longer than a
message may be, and a model's answer to it."""

_c, _r, _m = conversations.c, responses.c, messages.c

_HEAD = select(_c.head_id).where(
    _c.id == bindparam("id"), _c.user_id == bindparam("user"), _c.deleted_at.is_(None)
)
_SAID_CHARS = (
    select(func.sum(cast(func.length(_m.content) + func.coalesce(func.length(_m.details), 0), BigInteger)))
    .where(_m.response_id == _r.id)
    .scalar_subquery()
)
_TURNS = select(responses).where(_r.id.in_(bindparam("ids", expanding=True)))
_ITEMS = (
    select(*ITEM, _r.status)
    .select_from(messages.join(responses))
    .where(_m.response_id.in_(bindparam("ids", expanding=True)))
    .order_by(_m.response_id, _m.position)
)


class SqlTurns:
    """Implements TurnStore. One per process."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, conversation_id: str, user: str, after: str | None, limit: int, *, newest_first: bool
    ) -> TurnPage:
        head = await self._database.read(_HEAD, {"id": conversation_id, "user": user})
        if not head:
            raise unknown_conversation(conversation_id, param=None)
        statement = _sizes(after, limit + 1, newest_first=newest_first)
        sizes = await self._database.read(statement, {"id": conversation_id})
        ids = {"ids": _fitting(sizes[:limit])}
        rows = await self._database.read(_TURNS, ids) if sizes else ()
        said = await self._database.read(_ITEMS, ids) if sizes else ()
        # Long ones would take the event loop's time.
        turns = await asyncio.to_thread(_turns, rows, said, newest_first=newest_first)
        return TurnPage(turns, head[0].head_id, has_more=len(ids["ids"]) < len(sizes))


def _sizes(after: str | None, limit: int, *, newest_first: bool) -> Select[Any]:
    """How long the next turns are, looked at before anything is read: of each there may be a megabyte. SQLite
    would look at all of them, were they not chosen first."""
    order = _r.id.desc() if newest_first else _r.id
    chosen = select(_r.id).where(_r.conversation_id == bindparam("id")).order_by(order).limit(limit)
    if after is not None:
        chosen = chosen.where(_r.id < after if newest_first else _r.id > after)
    chars = (func.length(_r.settings) + func.coalesce(_SAID_CHARS, 0)).label("chars")
    return select(_r.id, chars).where(_r.id.in_(select(chosen.subquery().c.id))).order_by(order)


def _fitting(sizes: Sequence[Row[Any]]) -> list[str]:
    """The ids of those that a page holds."""
    found: list[str] = []
    chars = 0
    for row in sizes:
        chars += row.chars
        if found and chars > MAX_PAGE_CHARS:
            break
        found.append(row.id)
    return found


def _turns(rows: Sequence[Row[Any]], said: Sequence[Row[Any]], *, newest_first: bool) -> list[Turn]:
    asked, answered = defaultdict[str, list[Row[Any]]](list), defaultdict[str, list[Row[Any]]](list)
    for item in said:
        (asked if item.kind == "input" else answered)[item.response_id].append(item)
    return [
        Turn(
            row.id,
            row.previous_id,
            row.aside,
            [read_item(item) for item in asked[row.id]],
            read_response(row, answered[row.id]) if row.model != NOBODY else None,
            row.created_at,
            row.first_token_at,
            row.ended_at,
        )
        for row in sorted(rows, key=lambda row: row.id, reverse=newest_first)
    ]
