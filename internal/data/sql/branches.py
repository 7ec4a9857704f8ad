"""Which turns of a conversation stand aside: all that are not on the way from where it goes on back to its
beginning. The answers of a batch are on it or aside together.

Knows the tree that `previous_id` makes of a conversation's responses, not what was said in them.
"""

from typing import Any

from sqlalchemy import and_, bindparam, case, exists, false, literal, select, true, update
from sqlalchemy.engine import Connection

from internal.biz.errors import InvalidRequest, conversation_locked, not_in_conversation, unknown_conversation
from internal.biz.models import Status
from internal.data.sql.database import Write
from internal.data.sql.statements import MAX_TURNS
from internal.data.sql.tables import batches, conversations, responses
from internal.data.sql.types import Line

_c, _r, _b = conversations.c, responses.c, batches.c
_id: Any = bindparam("b_id", type_=Line())
_conversation_id: Any = bindparam("b_conversation_id", type_=Line())
_turn = responses.alias("turn")


def _way() -> Any:
    """From the response `b_id` back to the beginning."""
    columns = (_turn.c.id, _turn.c.previous_id, _turn.c.batch_id)
    way = select(*columns, literal(0).label("depth")).where(_turn.c.id == _id).cte("way", recursive=True)
    return way.union_all(
        select(*columns, way.c.depth + 1)
        .join(way, _turn.c.id == way.c.previous_id)
        .where(way.c.depth < MAX_TURNS)
    )


_way_back = _way()
_IS_ASIDE = case(
    (_r.id.in_(select(_way_back.c.id)), false()),
    (_r.batch_id.in_(select(_way_back.c.batch_id).where(_way_back.c.batch_id.is_not(None))), false()),
    else_=true(),
)
_SET_ASIDE = update(responses).where(_r.aside != _IS_ASIDE).values(aside=_IS_ASIDE)


def _choose(first: int) -> Any:
    """Of a batch that is on the way somebody has chosen the answer there. Those nearer than `first` do not
    count."""
    counts = and_(_way_back.c.depth >= first, _way_back.c.batch_id.is_not(None))
    return (
        update(batches)
        .where(_b.id.in_(select(_way_back.c.batch_id).where(counts)))
        .values(chosen_id=select(_way_back.c.id).where(_way_back.c.batch_id == _b.id).scalar_subquery())
    )


_BEGUN = (
    select(_turn.c.conversation_id).where(_turn.c.id == _id, _turn.c.ended_at.is_(None)).scalar_subquery()
)
# Where the new turn was not stored, these do nothing. Its own answers follow later, as in any turn.
BESIDE = (
    Write(
        3,
        update(conversations)
        .where(_c.id == _BEGUN)
        .values(head_id=select(_turn.c.previous_id).where(_turn.c.id == _id).scalar_subquery()),
    ),
    Write(3, _SET_ASIDE.where(_r.conversation_id == _BEGUN)),
    Write(3, _choose(1)),
)
"""What is written behind a turn that replaces another one, `b_id`, or is the first of its batch."""

# So that nobody begins a turn there until this is committed; and what was begun before is seen.
_LOCK = (
    update(conversations)
    .where(
        _c.id == _conversation_id,
        _c.user_id == bindparam("b_user", type_=Line()),
        _c.deleted_at.is_(None),
    )
    .values(size=_c.size)
)
_IS_BUSY = select(exists().where(_r.conversation_id == _conversation_id, _r.ended_at.is_(None)))
_STATUS = select(_r.status).where(_r.id == _id, _r.conversation_id == _conversation_id)
_MOVE = update(conversations).where(_c.id == _conversation_id).values(head_id=_id)
_ASIDE_FROM_HEAD = _SET_ASIDE.where(_r.conversation_id == _conversation_id)
_CHOOSE_ON_WAY = _choose(0)


def go_on_from(connection: Connection, conversation_id: str, user: str, response_id: str) -> None:
    """Let the conversation go on from this response, in the caller's transaction.

    Raises NotFound, InvalidRequest for an answer that failed, and Conflict while one runs.
    """
    values = {"b_conversation_id": conversation_id, "b_user": user, "b_id": response_id}
    if not connection.execute(_LOCK, values).rowcount:
        raise unknown_conversation(conversation_id, param=None)
    if connection.execute(_IS_BUSY, values).scalar():
        raise conversation_locked()
    status = connection.execute(_STATUS, values).scalar()
    if status is None:
        raise not_in_conversation(response_id, "head")
    if status == Status.FAILED:
        raise InvalidRequest(
            "this answer failed; go on from one that did not", code="response_failed", param="head"
        )
    for statement in (_MOVE, _ASIDE_FROM_HEAD, _CHOOSE_ON_WAY):
        connection.execute(statement, values)
