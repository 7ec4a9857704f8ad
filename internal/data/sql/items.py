"""What was said in a conversation, piece by piece, as SQL. What is another user's is not found."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BindParameter,
    Select,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.engine import Connection, Row

from internal.biz.dialogue import unknown_item
from internal.biz.errors import conversation_locked, unknown_conversation
from internal.biz.items import OUTPUT, Item, Place
from internal.biz.models import Status
from internal.data.sql.database import Database, Values
from internal.data.sql.responses import ITEM, read_item
from internal.data.sql.tables import conversations, messages, responses

_c, _r, _m = conversations.c, responses.c, messages.c

_THERE = select(_c.id).where(
    _c.id == bindparam("id"), _c.user_id == bindparam("user"), _c.deleted_at.is_(None)
)
_sibling = responses.alias("sibling")
# What failed is no part of the dialogue: it is not what the next turn continues from. What several models
# were asked is stored with each of their answers, and said once, with the first that did not fail.
_ITEMS = (
    select(*ITEM, _r.status, _r.ended_at, _r.batch_id)
    .select_from(messages.join(responses))
    .where(
        _r.conversation_id == bindparam("id"),
        _r.status != Status.FAILED.value,
        or_(
            _m.kind != "input",
            func.coalesce(_r.batch_position, 0) == 0,
            ~exists().where(
                _sibling.c.batch_id == _r.batch_id,
                _sibling.c.batch_position < _r.batch_position,
                _sibling.c.status != Status.FAILED.value,
            ),
        ),
    )
)
_ONE = _ITEMS.where(_m.response_id == bindparam("response_id"), _m.position == bindparam("position"))

_BATCH = select(_r.id, _r.ended_at).where(_r.batch_id == bindparam("batch_id"))

_response_id: BindParameter[Any] = bindparam("b_response_id")
_position: BindParameter[Any] = bindparam("b_position")
_DELETE = delete(messages).where(_m.response_id == _response_id, _m.position == _position)
_SHRINK_RESPONSE = (
    update(responses)
    .where(_r.id == _response_id)
    .values(
        input_chars=_r.input_chars - bindparam("b_input_chars"),
        output_chars=_r.output_chars - bindparam("b_output_chars"),
    )
)
_SHRINK_CONVERSATION = (
    update(conversations)
    .where(_c.id == bindparam("b_conversation_id"))
    .values(size=_c.size - bindparam("b_input_chars") - bindparam("b_output_chars"))
)


class SqlItems:
    """Implements ItemStore. One per process."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, conversation_id: str, user: str, after: Place | None, limit: int, *, newest_first: bool
    ) -> Sequence[Item]:
        await self._require(conversation_id, user)
        listed = _ITEMS.where(_r.aside.is_(False))
        statement = _ordered(listed, after, newest_first=newest_first).limit(limit)
        return [read_item(row) for row in await self._database.read(statement, {"id": conversation_id})]

    async def _require(self, conversation_id: str, user: str) -> None:
        if not await self._database.read(_THERE, {"id": conversation_id, "user": user}):
            raise unknown_conversation(conversation_id, param=None)

    async def get(self, conversation_id: str, user: str, place: Place) -> Item:
        return read_item(await self._row(conversation_id, user, place))

    async def _row(self, conversation_id: str, user: str, place: Place) -> Row[Any]:
        await self._require(conversation_id, user)
        values = {"id": conversation_id, "response_id": place.response_id, "position": place.position}
        rows = await self._database.read(_ONE, values)
        if not rows:
            raise unknown_item()
        return rows[0]

    async def delete(self, conversation_id: str, user: str, place: Place) -> None:
        row, is_output = await self._row(conversation_id, user, place), place.position >= OUTPUT
        turn: Sequence[Row[Any]] = ()
        if row.batch_id is not None and not is_output:
            turn = await self._database.read(_BATCH, {"batch_id": row.batch_id})
        if any(one.ended_at is None for one in (row, *turn)):
            raise conversation_locked()
        chars = read_item(row).chars
        values = [
            {
                "b_response_id": response_id,
                "b_position": place.position,
                "b_conversation_id": conversation_id,
                "b_input_chars": 0 if is_output else chars,
                "b_output_chars": chars if is_output else 0,
            }
            for response_id in sorted({place.response_id, *(one.id for one in turn)})
        ]
        await self._database.transact(lambda connection: _delete(connection, values))


def _delete(connection: Connection, pieces: Sequence[Values]) -> None:
    for piece in pieces:
        if connection.execute(_DELETE, piece).rowcount:  # else somebody has deleted it meanwhile
            connection.execute(_SHRINK_RESPONSE, piece)
            connection.execute(_SHRINK_CONVERSATION, piece)


def _ordered(statement: Select[Any], after: Place | None, *, newest_first: bool) -> Select[Any]:
    where = tuple_(_m.response_id, _m.position)
    if newest_first:
        statement = statement.order_by(_m.response_id.desc(), _m.position.desc())
    else:
        statement = statement.order_by(_m.response_id, _m.position)
    if after is None:
        return statement
    place = tuple_(after.response_id, after.position)
    return statement.where(where < place if newest_first else where > place)
