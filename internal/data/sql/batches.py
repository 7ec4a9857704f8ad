"""Batches and their tasks, in the database."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, exists, or_, select, update
from sqlalchemy.engine import Row

from internal.biz.batches import Batch, Task
from internal.biz.dialogue import NOBODY
from internal.biz.models import Failure, Status
from internal.data.sql.database import Database, Write
from internal.data.sql.tables import batches, conversations, messages, responses
from internal.data.sql.types import Line


class SqlBatches:
    """Implements BatchStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def batch(self, batch_id: str) -> Batch | None:
        found = await self._database.read(_BATCH, {"id": batch_id})
        if not found:
            return None
        tasks = await self._tasks(await self._database.read(_OF_BATCH, {"id": batch_id}))
        if not tasks:  # all of them were deleted
            return None
        row = found[0]
        return Batch(
            row.id, row.user_id, row.conversation_id, row.prompt, row.created_at, tasks, row.chosen_id
        )

    async def task(self, response_id: str) -> Task | None:
        tasks = await self._tasks(await self._database.read(_TASK, {"id": response_id}))
        return tasks[0] if tasks else None

    async def _tasks(self, rows: Sequence[Row[Any]]) -> tuple[Task, ...]:
        texts = {row.id: "" for row in rows}
        if any(row.output_chars for row in rows):
            for said in await self._database.read(_TEXTS, {"ids": list(texts)}):
                texts[said.response_id] += said.content
        return tuple(_task(row, texts[row.id]) for row in rows)

    async def choose(self, batch_id: str, response_id: str) -> None:
        row = {"b_batch_id": batch_id, "b_id": response_id}
        await self._database.write((_LOCK, [row]), (_MOVE, [row]), (_MARK, [row]))


def _task(row: Row[Any], text: str) -> Task:
    failed = row.status == Status.FAILED
    return Task(
        row.id,
        row.user_id,
        row.model,
        Status(row.status),
        row.created_at,
        text,
        Failure(row.error_code or "", row.error_message or "") if failed else None,
        row.incomplete_reason,
        row.ended_at,
    )


_BATCH = (
    select(batches)
    .outerjoin(conversations)
    .where(batches.c.id == bindparam("id"), conversations.c.deleted_at.is_(None))
)
_RESPONSE = (
    select(responses)
    .outerjoin(conversations, conversations.c.id == responses.c.conversation_id)
    .where(conversations.c.deleted_at.is_(None))
)
_TASK = _RESPONSE.where(responses.c.id == bindparam("id"), responses.c.model != NOBODY)
_OF_BATCH = _RESPONSE.where(responses.c.batch_id == bindparam("id")).order_by(responses.c.batch_position)
_TEXTS = (
    select(messages.c.response_id, messages.c.content)
    .where(messages.c.response_id.in_(bindparam("ids", expanding=True)), messages.c.kind == "output")
    .order_by(messages.c.response_id, messages.c.position)
)


def _id(name: str) -> Any:
    return bindparam(f"b_{name}", type_=Line())


_later = responses.alias("later")
_OF_MINE = select(batches.c.conversation_id).where(batches.c.id == _id("batch_id")).scalar_subquery()
# So that nobody begins a turn there until this is committed; and what was begun before is seen.
_LOCK = Write(
    1, update(conversations).where(conversations.c.id == _OF_MINE).values(size=conversations.c.size)
)
_MAY_BE_CHOSEN = exists().where(
    responses.c.id == _id("id"),
    responses.c.batch_id == _id("batch_id"),
    responses.c.ended_at.is_not(None),
    responses.c.status != Status.FAILED.value,
)
_MOVE = Write(
    8,
    update(conversations)
    .where(
        conversations.c.id == _OF_MINE,
        _MAY_BE_CHOSEN,
        ~exists().where(_later.c.conversation_id == conversations.c.id, _later.c.ended_at.is_(None)),
        exists().where(_later.c.id == conversations.c.head_id, _later.c.batch_id == _id("batch_id")),
    )
    .values(head_id=_id("id")),
)
_MARK = Write(
    9,
    update(batches)
    .where(
        batches.c.id == _id("batch_id"),
        _MAY_BE_CHOSEN,
        ~exists().where(_later.c.batch_id == batches.c.id, _later.c.ended_at.is_(None)),
        or_(
            batches.c.conversation_id.is_(None),
            exists().where(
                conversations.c.id == batches.c.conversation_id, conversations.c.head_id == _id("id")
            ),
            # It has gone on from this very answer.
            exists().where(_later.c.previous_id == _id("id"), _later.c.aside.is_(False)),
        ),
    )
    .values(chosen_id=_id("id")),
)
