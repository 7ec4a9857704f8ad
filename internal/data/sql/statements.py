"""The statements that write and read turns. A turn is a row of `responses` and its `messages`.

Parameters that are called as a column would be mistaken for it, so all begin with `b_`.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Double,
    Integer,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    literal,
    or_,
    select,
    update,
)

from internal.biz.conversations import MAX_SIZE, TURN_SIZE
from internal.biz.models import Role, Status
from internal.data.sql.database import Write
from internal.data.sql.dialect import insert_or_ignore
from internal.data.sql.tables import batches, conversations, messages, responses
from internal.data.sql.types import Line, Words

MAX_TURNS = 10_000
"""How far back a dialogue is looked at."""


def _id(name: str) -> Any:
    return bindparam(f"b_{name}", type_=Line())


def _time(name: str) -> Any:
    return bindparam(f"b_{name}", type_=Double())


def _number(name: str) -> Any:
    return bindparam(f"b_{name}", type_=Integer())


RESPONSE = (
    select(responses.c.user_id, responses.c.ended_at, conversations.c.deleted_at)
    .select_from(responses.outerjoin(conversations))
    .where(responses.c.id == bindparam("id"))
)
CONVERSATION = select(
    conversations.c.size,
    exists()
    .where(responses.c.conversation_id == conversations.c.id, responses.c.ended_at.is_(None))
    .label("busy"),
).where(
    conversations.c.id == bindparam("id"),
    conversations.c.user_id == bindparam("user"),
    conversations.c.deleted_at.is_(None),
)

IN_CONVERSATION = select(responses.c.id).where(
    responses.c.id == bindparam("id"), responses.c.conversation_id == bindparam("conversation_id")
)

_previous = responses.alias("previous")
_replaced = responses.alias("replaced")

INSERT_CONVERSATION = Write(
    0,
    insert_or_ignore(conversations).values(
        id=_id("id"),
        user_id=_id("user_id"),
        title=_id("title"),
        has_title=False,
        wants_title=bindparam("b_wants_title", type_=Boolean()),
        created_at=_time("now"),
        updated_at=_time("now"),
        size=0,
    ),
)
TOUCH_CONVERSATION = Write(
    1,
    update(conversations)
    .where(conversations.c.id == _id("id"), conversations.c.user_id == _id("user_id"))
    .values(
        updated_at=_time("now"),
        title=case((conversations.c.title == "", _id("title")), else_=conversations.c.title),
        wants_title=or_(
            conversations.c.wants_title,
            and_(bindparam("b_wants_title", type_=Boolean()), conversations.c.has_title.is_(False)),
        ),
    ),
)
_NEW = {
    "id": _id("id"),
    "user_id": _id("user_id"),
    "conversation_id": _id("conversation_id"),
    "previous_id": _id("previous_id"),
    "batch_id": _id("batch_id"),
    "batch_position": _number("batch_position"),
    "model": _id("model"),
    "status": literal(Status.IN_PROGRESS.value),
    "settings": bindparam("b_settings", type_=Words()),
    "input_chars": _number("chars"),
    "output_chars": literal(0),
    "created_at": _time("now"),
}
INSERT_RESPONSE = Write(2, insert_or_ignore(responses).values(_NEW))
# The next two store nothing when the turn may not continue what it names. Whether it was stored is asked for
# many turns at once (`STORED`); to look first would cost a call for each.
INSERT_FOLLOWING = Write(
    2,
    insert_or_ignore(responses).from_select(
        list(_NEW),
        select(*_NEW.values())
        .select_from(_previous.outerjoin(conversations, conversations.c.id == _previous.c.conversation_id))
        .where(
            _previous.c.id == _id("previous_id"),
            _previous.c.ended_at.is_not(None),
            or_(_id("owner").is_(None), _previous.c.user_id == _id("owner")),
            conversations.c.deleted_at.is_(None),
        ),
    ),
)
# The conversation was touched in the same transaction, so that nobody else begins a turn there meanwhile. The
# answers of a batch are one turn.
_MAY_GO_ON = and_(
    conversations.c.id == _id("conversation_id"),
    conversations.c.user_id == _id("user_id"),
    conversations.c.deleted_at.is_(None),
    conversations.c.size <= MAX_SIZE,
    ~exists()
    .where(
        _previous.c.conversation_id == conversations.c.id,
        _previous.c.ended_at.is_(None),
        or_(
            _id("batch_id").is_(None),
            _previous.c.batch_id.is_(None),
            _previous.c.batch_id != _id("batch_id"),
        ),
    )
    .correlate(conversations),
)
# A turn in a conversation follows what its last answer is at this moment.
INSERT_NEXT = Write(
    2,
    insert_or_ignore(responses).from_select(
        list(_NEW),
        select(*(_NEW | {"previous_id": conversations.c.head_id}).values()).where(_MAY_GO_ON),
    ),
)
# One that replaces another follows what that one did. What comes behind it is in branches.py.
INSERT_BESIDE = Write(
    2,
    insert_or_ignore(responses).from_select(
        list(_NEW),
        select(*(_NEW | {"previous_id": _replaced.c.previous_id}).values())
        .select_from(conversations.join(_replaced, _replaced.c.conversation_id == conversations.c.id))
        .where(_replaced.c.id == _id("replaces"), _MAY_GO_ON),
    ),
)
INSERT_BATCH = Write(
    3,
    insert_or_ignore(batches).from_select(
        ["id", "user_id", "conversation_id", "prompt", "created_at"],
        select(
            responses.c.batch_id,
            responses.c.user_id,
            responses.c.conversation_id,
            bindparam("b_prompt", type_=Words()),
            responses.c.created_at,
        ).where(responses.c.id == _id("id")),
    ),
)
STORED = select(responses.c.id).where(responses.c.id.in_(bindparam("ids", expanding=True)))

_MESSAGE = ["id", "response_id", "position", "kind", "role", "content", "details", "created_at"]
_SAID = (bindparam("b_content", type_=Words()), bindparam("b_details", type_=Words()))
INSERT_INPUT = Write(
    3,
    insert_or_ignore(messages).from_select(
        _MESSAGE,
        select(
            _id("message_id"),
            responses.c.id,
            _number("position"),
            literal("input"),
            _id("role"),
            *_SAID,
            _time("now"),
        ).where(responses.c.id == _id("id")),
    ),
)

# The fence: of all attempts at a response the latest counts, and what an earlier one says is not stored.
_COUNTS = and_(responses.c.id == _id("id"), responses.c.attempt == _number("attempt"))
_ENDED_EARLIER = and_(responses.c.id == _id("id"), responses.c.attempt < _number("attempt"))
SHRINK_CONVERSATION = Write(
    3,
    update(conversations)
    .where(conversations.c.id == select(responses.c.conversation_id).where(_ENDED_EARLIER).scalar_subquery())
    .values(
        size=conversations.c.size
        - select(responses.c.input_chars + responses.c.output_chars + TURN_SIZE)
        .where(_ENDED_EARLIER)
        .scalar_subquery()
    ),
)
END_RESPONSE = Write(
    4,
    update(responses)
    .where(
        responses.c.id == _id("id"),
        or_(responses.c.attempt.is_(None), responses.c.attempt < _number("attempt")),
    )
    .values(
        status=_id("status"),
        attempt=_number("attempt"),
        output_chars=_number("chars"),
        first_token_at=_time("first_token_at"),
        ended_at=_time("now"),
        input_tokens=_number("input_tokens"),
        cached_tokens=_number("cached_tokens"),
        output_tokens=_number("output_tokens"),
        reasoning_tokens=_number("reasoning_tokens"),
        error_code=_id("error_code"),
        error_message=bindparam("b_error_message", type_=Words()),
        incomplete_reason=_id("incomplete_reason"),
    ),
)
FORGET_OUTPUT = Write(
    5,
    delete(messages).where(
        messages.c.response_id == _id("id"), messages.c.kind != "input", exists().where(_COUNTS)
    ),
)
INSERT_OUTPUT = Write(
    6,
    insert_or_ignore(messages).from_select(
        _MESSAGE,
        select(
            _id("message_id"),
            responses.c.id,
            _number("position"),
            _id("kind"),
            literal(Role.ASSISTANT.value),
            *_SAID,
            _time("now"),
        ).where(_COUNTS),
    ),
)
_SIZE = (
    select(responses.c.input_chars + responses.c.output_chars + TURN_SIZE).where(_COUNTS).scalar_subquery()
)
_mine = responses.alias("mine")
# Of the answers of a batch the first one counts that did not fail, whichever ends first; or the chosen one.
_IS_BEFORE_HEAD = (
    exists()
    .where(
        _mine.c.id == _id("id"),
        _mine.c.attempt == _number("attempt"),
        _previous.c.id == conversations.c.head_id,
        _previous.c.batch_id == _mine.c.batch_id,
        _previous.c.batch_position > _mine.c.batch_position,
        ~exists().where(batches.c.id == _mine.c.batch_id, batches.c.chosen_id.is_not(None)),
    )
    .correlate(conversations)
)
GROW_CONVERSATION = Write(
    7,
    update(conversations)
    .where(
        conversations.c.id
        == select(responses.c.conversation_id)
        # It has ended in this transaction, not in one of before whose answer was lost.
        .where(_COUNTS, responses.c.ended_at == _time("now"))
        .scalar_subquery()
    )
    .values(
        size=conversations.c.size + _SIZE,
        # An answer that comes late, after others have gone on without it, is not what they continue.
        head_id=case(
            (
                and_(
                    bindparam("b_moves", type_=Boolean()),
                    or_(
                        conversations.c.head_id.is_(None),
                        conversations.c.head_id == _id("id"),
                        conversations.c.head_id
                        == select(responses.c.previous_id).where(_COUNTS).scalar_subquery(),
                        _IS_BEFORE_HEAD,
                    ),
                ),
                _id("id"),
            ),
            else_=conversations.c.head_id,
        ),
        updated_at=_time("now"),
    ),
)

NOTED = select(responses.c.id, responses.c.previous_id).where(
    responses.c.id.in_(bindparam("ids", expanding=True))
)
HEADS = select(conversations.c.id, conversations.c.head_id).where(
    conversations.c.id.in_(bindparam("ids", expanding=True))
)
UNFINISHED = (
    select(responses)
    .where(
        responses.c.ended_at.is_(None),
        responses.c.created_at < bindparam("before"),
        responses.c.id > bindparam("after_id"),
    )
    .order_by(responses.c.id)
    .limit(bindparam("limit"))
)


def _dialogues() -> Any:
    """The messages of the responses from `starts` back to their beginnings. `later` are the characters of the
    turns behind one. Of what lies beyond the limit only the first turn's system messages are wanted: they
    say how the model is to be."""
    chars = cast(responses.c.input_chars, BigInteger) + responses.c.output_chars
    chain = (
        select(
            responses.c.id.label("root"),
            responses.c.id,
            responses.c.previous_id,
            cast(literal(0), BigInteger).label("later"),
            chars.label("chars"),
            literal(0).label("depth"),
        )
        .where(responses.c.id.in_(bindparam("starts", expanding=True)))
        .cte("chain", recursive=True)
    )
    chain = chain.union_all(
        select(
            chain.c.root,
            responses.c.id,
            responses.c.previous_id,
            chain.c.later + chain.c.chars,
            chars,
            chain.c.depth + 1,
        )
        .join(chain, responses.c.id == chain.c.previous_id)
        .where(chain.c.depth < MAX_TURNS)
    )
    limit = bindparam("max_chars", type_=BigInteger())
    first = and_(chain.c.previous_id.is_(None), messages.c.role == Role.SYSTEM.value)
    return (
        select(chain.c.root, messages.c.role, messages.c.content, messages.c.details)
        .join(messages, messages.c.response_id == chain.c.id)
        .where(messages.c.kind != "reasoning", or_(chain.c.later <= limit, first))
        .order_by(chain.c.root, chain.c.depth.desc(), messages.c.position)
    )


DIALOGUES = _dialogues()
