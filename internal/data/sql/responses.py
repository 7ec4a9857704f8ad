"""Stored responses, one at a time, as SQL. Knows tables, not who may ask."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BindParameter, bindparam, delete, func, or_, select, update
from sqlalchemy.engine import Connection, Row

from internal.biz.conversations import TURN_SIZE
from internal.biz.dialogue import NOBODY
from internal.biz.errors import unknown_response
from internal.biz.items import Item, Place
from internal.biz.models import Failure, ItemKind, OutputItem, Response, Seat, Status, Usage
from internal.data.sql.database import Database
from internal.data.sql.history import read_message, read_settings
from internal.data.sql.tables import batches, conversations, messages, responses

_r, _m = responses.c, messages.c

_RESPONSE = (
    select(responses)
    .select_from(responses.outerjoin(conversations))
    .where(_r.id == bindparam("id"), _r.model != NOBODY, conversations.c.deleted_at.is_(None))
)
ITEM = (_m.response_id, _m.position, _m.kind, _m.role, _m.content, _m.details)
"""What `read_item` needs, beside the status of the response."""
_ITEMS = (
    select(*ITEM, _r.status)
    .select_from(messages.join(responses))
    .where(_m.response_id == bindparam("id"))
    .order_by(_m.position)
)
_INPUT = _ITEMS.where(_m.kind == "input")
_OUTPUT = _ITEMS.where(_m.kind != "input")

_id: BindParameter[Any] = bindparam("b_id")
_previous_id: BindParameter[Any] = bindparam("b_previous_id")
# What is deleted links those before and behind it: of neighbours, only one at a time may go. SQLite has one
# writer anyway.
_ONE_AT_A_TIME = select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("user"), 0)))
_LOCK = select(_r.id).where(or_(_r.id == _id, _r.previous_id == _id)).with_for_update(key_share=True)
_LOCKED = select(
    _r.conversation_id, _r.previous_id, _r.batch_id, _r.ended_at, _r.input_chars, _r.output_chars
).where(_r.id == _id)
_RELINK = update(responses).where(_r.previous_id == _id).values(previous_id=_previous_id)
_SHRINK = (
    update(conversations)
    .where(conversations.c.id == bindparam("b_conversation_id"))
    .values(size=conversations.c.size - bindparam("b_size"))
)
_NEXT_BEST = (
    select(_r.id)
    .where(
        _r.batch_id == bindparam("b_batch_id"),
        _r.id != _id,
        _r.ended_at.is_not(None),
        _r.status != Status.FAILED.value,
    )
    .order_by(_r.batch_position)
    .limit(1)
)
_STEP_BACK = (
    update(conversations).where(conversations.c.head_id == _id).values(head_id=bindparam("b_head_id"))
)
_UNCHOOSE = update(batches).where(batches.c.chosen_id == _id).values(chosen_id=None)
_DELETE = delete(responses).where(_r.id == _id)  # its messages go with it


class SqlResponses:
    """Implements ResponseStore. One per process."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, response_id: str, owner: str | None) -> Response:
        row = await self._row(response_id, owner)
        return read_response(row, await self._database.read(_OUTPUT, {"id": response_id}))

    async def _row(self, response_id: str, owner: str | None) -> Row[Any]:
        rows = await self._database.read(_RESPONSE, {"id": response_id})
        if not rows or owner not in (None, rows[0].user_id):
            raise unknown_response(response_id)
        return rows[0]

    async def input(self, response_id: str, owner: str | None) -> Sequence[Item]:
        await self._row(response_id, owner)
        return [read_item(row) for row in await self._database.read(_INPUT, {"id": response_id})]

    async def delete(self, response_id: str, owner: str | None) -> None:
        user = (await self._row(response_id, owner)).user_id
        await self._database.transact(lambda connection: _delete(connection, response_id, user))


def _delete(connection: Connection, response_id: str, user: str) -> None:
    me = {"b_id": response_id}
    if connection.dialect.name == "postgresql":
        connection.execute(_ONE_AT_A_TIME, {"user": user})
    connection.execute(_LOCK, me)
    row = connection.execute(_LOCKED, me).first()
    if row is None:
        return
    if row.conversation_id is not None:
        size = row.input_chars + row.output_chars + TURN_SIZE if row.ended_at is not None else 0
        # From here on nobody begins a turn there: what was begun before is seen, and linked as well.
        connection.execute(_SHRINK, {"b_conversation_id": row.conversation_id, "b_size": size})
        # It goes on from the next answer of the batch, where there is one.
        next_best = connection.execute(_NEXT_BEST, {**me, "b_batch_id": row.batch_id}).scalar()
        connection.execute(_STEP_BACK, {**me, "b_head_id": next_best or row.previous_id})
    connection.execute(_RELINK, {**me, "b_previous_id": row.previous_id})
    connection.execute(_UNCHOOSE, me)
    connection.execute(_DELETE, me)


def read_response(row: Row[Any], output: Sequence[Row[Any]]) -> Response:
    """A row of `responses`, and what `read_item` reads of its output."""
    has_ended = row.ended_at is not None
    items = (read_item(it).said for it in output)
    return Response(
        row.id,
        row.model,
        row.user_id,
        row.created_at,
        read_settings(row),
        Status(row.status),
        tuple(item for item in items if isinstance(item, OutputItem)),
        usage=Usage(row.input_tokens, row.cached_tokens, row.output_tokens, row.reasoning_tokens)
        if has_ended
        else None,
        failure=Failure(row.error_code, row.error_message or "") if row.error_code else None,
        incomplete_reason=row.incomplete_reason,
        completed_at=row.ended_at if row.status == Status.COMPLETED else None,
        attempt=row.attempt or 0,
        first_token_at=row.first_token_at,
        batch=Seat(row.batch_id, row.batch_position) if row.batch_id is not None else None,
    )


_KINDS = {"output": ItemKind.MESSAGE, "reasoning": ItemKind.REASONING, "call": ItemKind.FUNCTION_CALL}


def read_item(row: Row[Any]) -> Item:
    """A row of ITEM, and the `status` of the response."""
    place, message = Place(row.response_id, row.position), read_message(row)
    if row.kind == "input":
        return Item(place, message)
    kind = _KINDS[row.kind]
    # Which of them was cut off is not stored: it is the message, as reasoning and calls come before it.
    is_whole = row.status == Status.COMPLETED or kind is not ItemKind.MESSAGE
    status = Status.COMPLETED if is_whole else Status.INCOMPLETE
    return Item(place, OutputItem(kind, row.content, status, message.calls[0] if message.calls else None))
