"""What was said, in the database."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.engine import Row

from internal.biz.conversations import MAX_SIZE, first_words
from internal.biz.errors import (
    Conflict,
    conversation_full,
    conversation_locked,
    not_in_conversation,
    nothing_to_continue,
    unknown_conversation,
)
from internal.biz.items import OUTPUT, joined, pieces
from internal.biz.models import (
    Attachment,
    ItemKind,
    Message,
    Request,
    Response,
    Role,
    Settings,
    Status,
    ToolCall,
    Usage,
)
from internal.data import older
from internal.data.sql import branches, statements
from internal.data.sql.database import Database, Part, Values

AT_ONCE = 200
"""How many ends are written together: with an asynchronous driver that takes the event loop's time."""
MAX_CHARS = 8 << 20
"""How much of a dialogue is looked at, whatever a model could take in."""


@dataclass(frozen=True, slots=True)
class _Details:
    """What a message has beside its text."""

    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    attachments: tuple[Attachment, ...] = ()


class SqlHistory:
    """Implements History."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def check(self, request: Request, owner: str | None) -> None:
        settings = request.settings
        if settings.previous_response_id is not None:
            await self._require_ended(settings.previous_response_id, owner)
        if settings.conversation_id is not None:
            await self._require_free(settings.conversation_id, request.user)
        if settings.replaces is not None:
            values = {"id": settings.replaces, "conversation_id": settings.conversation_id}
            if not await self._database.read(statements.IN_CONVERSATION, values):
                raise not_in_conversation(settings.replaces, "replaces")

    async def _require_ended(self, response_id: str, owner: str | None) -> None:
        rows = await self._database.read(statements.RESPONSE, {"id": response_id})
        if not rows or rows[0].deleted_at is not None or owner not in (None, rows[0].user_id):
            raise nothing_to_continue(response_id)
        if rows[0].ended_at is None:
            raise Conflict(f"response {response_id!r} has not ended yet", param="previous_response_id")

    async def _require_free(self, conversation_id: str, user: str) -> None:
        rows = await self._database.read(statements.CONVERSATION, {"id": conversation_id, "user": user})
        if not rows:
            raise unknown_conversation(conversation_id)
        if rows[0].busy:
            raise conversation_locked()
        if rows[0].size > MAX_SIZE:
            raise conversation_full()

    async def begin(self, request: Request, owner: str | None, *, begins: bool, wants_title: bool) -> None:
        await self.begin_batch([request], owner, begins=begins, wants_title=wants_title)

    async def begin_batch(
        self, requests: Sequence[Request], owner: str | None, *, begins: bool, wants_title: bool
    ) -> None:
        # One stands for all of them: they name the same, so all are stored or none is.
        request = requests[0]
        settings, parts = request.settings, list[Part]()
        insert = statements.INSERT_RESPONSE
        if settings.conversation_id is not None:
            thread = _thread(request, wants_title=wants_title)
            parts.append(
                (statements.INSERT_CONVERSATION if begins else statements.TOUCH_CONVERSATION, (thread,))
            )
            if begins:
                insert = statements.INSERT_RESPONSE
            else:
                insert = statements.INSERT_NEXT if settings.replaces is None else statements.INSERT_BESIDE
        elif settings.previous_response_id is not None:
            insert = statements.INSERT_FOLLOWING
        parts.append((insert, [{**_response(one), "b_owner": owner} for one in requests]))
        parts.append((statements.INSERT_INPUT, [row for one in requests for row in _input(one)]))
        if insert is statements.INSERT_BESIDE:
            parts += [(write, [{"b_id": request.response_id}]) for write in branches.BESIDE]
        if request.batch is not None:
            batch = {"b_id": request.response_id, "b_prompt": request.prompt}
            parts.append((statements.INSERT_BATCH, (batch,)))
        for _ in range(2):
            if await self._database.write(*parts, confirm=(statements.STORED, request.response_id)):
                return
            await self.check(request, owner)  # which says why; or else it is allowed by now
        raise conversation_locked()

    async def before(self, requests: Sequence[Request], max_chars: int) -> Sequence[tuple[Message, ...]]:
        starts = await self._starts(requests)
        said: dict[str, list[Message]] = {start: [] for start in starts if start is not None}
        if said:
            values = {"starts": list(said), "max_chars": max_chars or MAX_CHARS}
            for row in await self._database.read(statements.DIALOGUES, values):
                said[row.root].append(read_message(row))
        return [joined(said[start]) if start is not None else () for start in starts]

    async def _starts(self, requests: Sequence[Request]) -> list[str | None]:
        """The response that each of these follows. Which one it is in a conversation was noted when the turn
        was stored."""
        in_conversations = [one for one in requests if one.settings.conversation_id is not None]
        noted: dict[str, str | None] = {}
        heads: dict[str, str | None] = {}
        if in_conversations:
            ids = [one.response_id for one in in_conversations]
            noted = {
                row.id: row.previous_id for row in await self._database.read(statements.NOTED, {"ids": ids})
            }
            if len(noted) < len(ids):
                ids = [one.settings.conversation_id or "" for one in in_conversations]
                heads = {
                    row.id: row.head_id for row in await self._database.read(statements.HEADS, {"ids": ids})
                }
        return [
            one.settings.previous_response_id
            if one.settings.conversation_id is None
            else noted.get(one.response_id, heads.get(one.settings.conversation_id))
            for one in requests
        ]

    async def finish(self, ended: Sequence[Response]) -> None:
        stored = [response for response in ended if response.settings.store]
        for start in range(0, len(stored), AT_ONCE):
            await self._finish(stored[start : start + AT_ONCE])

    async def _finish(self, stored: Sequence[Response]) -> None:
        now = time.time()
        ends = [_end(response, now) for response in stored]
        again = [_fence(response) for response in stored if response.attempt > 1]
        await self._database.write(
            (statements.SHRINK_CONVERSATION, again),
            (statements.END_RESPONSE, ends),
            (statements.FORGET_OUTPUT, again),
            (statements.INSERT_OUTPUT, [row for response in stored for row in _output(response, now)]),
            (
                statements.GROW_CONVERSATION,
                [
                    {**_fence(one), "b_now": now, "b_moves": one.status is not Status.FAILED}
                    for one in stored
                    if one.settings.conversation_id is not None
                ],
            ),
        )

    async def unfinished(self, before: float, after_id: str, limit: int) -> Sequence[Response]:
        values = {"before": before, "after_id": after_id, "limit": limit}
        rows = await self._database.read(statements.UNFINISHED, values)
        return [
            Response(
                row.id,
                row.model,
                row.user_id,
                row.created_at,
                read_settings(row),
                Status.IN_PROGRESS,
            )
            for row in rows
        ]


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────

_SETTINGS = TypeAdapter(Settings)
_DETAILS = TypeAdapter(_Details)


def read_settings(row: Row[Any]) -> Settings:
    """What was stored, perhaps by another version of this program."""
    try:
        return _SETTINGS.validate_json(older.settings(row.settings.encode()))
    except ValidationError:
        return Settings(conversation_id=row.conversation_id, previous_response_id=row.previous_id)


def _details(calls: Sequence[ToolCall], call_id: str | None, attachments: Sequence[Attachment]) -> str | None:
    if not (calls or call_id or attachments):  # nearly always
        return None
    return orjson.dumps(_Details(tuple(calls), call_id, tuple(attachments))).decode()


def attachments_of(details: str | None) -> tuple[Attachment, ...]:
    """What a stored message has beside its text."""
    return _DETAILS.validate_json(details).attachments if details else ()


def read_message(row: Row[Any]) -> Message:
    """A row of `messages`, whatever its kind."""
    details = _DETAILS.validate_json(row.details) if row.details else _Details()
    return Message(Role(row.role), row.content, details.calls, details.call_id, details.attachments)


def _thread(request: Request, *, wants_title: bool) -> Values:
    return {
        "b_id": request.settings.conversation_id,
        "b_user_id": request.user,
        "b_title": first_words(request.prompt),
        "b_wants_title": wants_title,
        "b_now": request.created_at,
    }


def _response(request: Request) -> Values:
    return {
        "b_id": request.response_id,
        "b_user_id": request.user,
        "b_conversation_id": request.settings.conversation_id,
        "b_previous_id": request.settings.previous_response_id,
        "b_replaces": request.settings.replaces,
        "b_batch_id": request.batch and request.batch.batch_id,
        "b_batch_position": request.batch and request.batch.position,
        "b_model": request.model,
        "b_settings": orjson.dumps(request.settings).decode(),
        "b_chars": sum(message.chars for message in request.messages),
        "b_now": request.created_at,
    }


def _input(request: Request) -> list[Values]:
    return [
        {
            "b_id": request.response_id,
            "b_message_id": f"{request.response_id}_{position}",
            "b_position": position,
            "b_role": message.role.value,
            "b_content": message.content,
            "b_details": _details(message.calls, message.call_id, message.attachments),
            "b_now": request.created_at,
        }
        for position, message in enumerate(pieces(request.messages))
    ]


def _fence(response: Response) -> dict[str, Any]:
    return {"b_id": response.id, "b_attempt": response.attempt}


def _end(response: Response, now: float) -> Values:
    usage, failure = response.usage or Usage(), response.failure
    return {
        **_fence(response),
        "b_status": response.status.value,
        "b_chars": response.answer.chars if response.answer else 0,
        "b_first_token_at": response.first_token_at,
        "b_now": now,
        "b_input_tokens": usage.input_tokens,
        "b_cached_tokens": usage.cached_tokens,
        "b_output_tokens": usage.output_tokens,
        "b_reasoning_tokens": usage.reasoning_tokens,
        "b_error_code": failure and failure.code[:64],
        "b_error_message": failure and failure.message,
        "b_incomplete_reason": response.incomplete_reason,
    }


_KINDS = {ItemKind.MESSAGE: "output", ItemKind.REASONING: "reasoning", ItemKind.FUNCTION_CALL: "call"}


def _output(response: Response, now: float) -> list[Values]:
    """What is kept of an answer: nothing of one that failed."""
    items = () if response.status is Status.FAILED else response.output
    return [
        {
            **_fence(response),
            "b_message_id": f"{response.id}_a{index}",
            "b_position": OUTPUT + index,
            "b_kind": _KINDS[item.kind],
            "b_content": item.text,
            "b_details": _details((item.call,), None, ()) if item.call is not None else None,
            "b_now": now,
        }
        for index, item in enumerate(items)
        if item.text or item.call is not None
    ]
