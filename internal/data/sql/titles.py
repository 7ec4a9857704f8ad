"""Which conversations want a title, in the database."""

from collections.abc import Sequence

from sqlalchemy import bindparam, select, update

from internal.biz.titles import Untitled
from internal.data.sql.database import Database, Write
from internal.data.sql.tables import conversations, messages, responses


class SqlTitles:
    """Implements TitleStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take_untitled(self, limit: int) -> Sequence[Untitled]:
        found = await self._database.read(_WANTING, {"limit": limit})
        if not found:
            return ()
        ids = {"ids": [row.id for row in found]}
        mine = await self._database.transact(lambda connection: set(connection.scalars(_TAKE, ids)))
        mine_found = [row for row in found if row.id in mine]
        said: dict[str, dict[str, str]] = {row.head_id: {} for row in mine_found}
        for row in await self._database.read(_EXCHANGES, {"ids": list(said)}) if said else ():
            said[row.response_id].setdefault(row.role, row.content)
        return [
            Untitled(row.id, row.model, exchange.get("user", ""), exchange.get("assistant", ""))
            for row in mine_found
            if (exchange := said[row.head_id])
        ]

    async def suggest_title(self, conversation_id: str, title: str) -> None:
        await self._database.write((_SUGGEST, [{"b_id": conversation_id, "b_title": title}]))


_WANTING = (
    select(conversations.c.id, conversations.c.head_id, responses.c.model)
    .join(responses, responses.c.id == conversations.c.head_id)
    .where(
        conversations.c.wants_title,
        conversations.c.head_id.is_not(None),
        conversations.c.deleted_at.is_(None),
    )
    .order_by(conversations.c.updated_at)
    .limit(bindparam("limit"))
)
_TAKE = (
    update(conversations)
    .where(conversations.c.id.in_(bindparam("ids", expanding=True)), conversations.c.wants_title)
    .values(wants_title=False)
    .returning(conversations.c.id)
)
_EXCHANGES = (
    select(messages.c.response_id, messages.c.role, messages.c.content)
    .where(
        messages.c.response_id.in_(bindparam("ids", expanding=True)),
        messages.c.kind != "reasoning",
        messages.c.content != "",
    )
    .order_by(messages.c.response_id, messages.c.position)
)
_SUGGEST = Write(
    10,
    update(conversations)
    .where(
        conversations.c.id == bindparam("b_id"),
        conversations.c.has_title.is_(False),
        conversations.c.deleted_at.is_(None),
    )
    .values(title=bindparam("b_title"), has_title=True),
)
