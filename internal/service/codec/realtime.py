"""The Realtime API over a WebSocket, text only: `client.realtime.connect()` of the `openai` package.

Unlike the other dialects this one keeps the dialogue on the server, so that each session has a codec of its
own. Sluice adds `response.resume`. Source: https://platform.openai.com/docs/api-reference/realtime
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from internal.biz.chat import Ask
from internal.biz.commands import Cancel, Command, Create, Reply, Resume
from internal.biz.errors import InvalidRequest, SluiceError
from internal.biz.events import Event, QueueUpdate, TextDelta
from internal.biz.ids import new_id
from internal.biz.log import Cursor
from internal.biz.models import Message
from internal.service.codec.realtime_answer import Answer
from internal.service.codec.realtime_dialogue import MAX_CHARS, Dialogue
from internal.service.codec.realtime_events import (
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    ResponseCancel,
    ResponseCreate,
    ResponseResume,
    SessionUpdate,
    parse,
    read_event_id,
    read_input,
)
from internal.service.codec.realtime_items import CallOutputItem, InputItem, ItemReference, turn
from internal.service.codec.realtime_settings import RealtimeSettings
from internal.service.errors import error_body

_CLIENTS = "event "
"""How a lane is named that is no response of ours, but an event of the client."""


class RealtimeCodec:
    """Implements Codec, for one session. Bound: a Dialogue's, and the responses that the session follows."""

    __slots__ = (
        "_active",
        "_answers",
        "_dialogue",
        "_event_prefix",
        "_numbers",
        "_session_id",
        "_settings",
    )

    continues = False

    def __init__(self, model: str, conversation_id: str | None = None) -> None:
        """`conversation_id`: what the session continues."""
        self._settings = RealtimeSettings(model)
        self._dialogue = Dialogue(conversation_id)
        self._active: str | None = None
        """The response that the conversation waits for."""
        self._answers: dict[str, Answer] = {}
        """By the ids of the responses that run."""
        self._session_id = ""
        self._event_prefix = new_id("event").encode() + b"_"
        self._numbers = itertools.count(1)

    def greeting(self, session_id: str) -> list[bytes]:
        self._session_id = session_id
        return [self._event("session.created", session=self._settings.fields(session_id))]

    def _event(self, type: str, **fields: Any) -> bytes:
        event_id = self._event_prefix + b"%d" % next(self._numbers)
        return orjson.dumps({"type": type, "event_id": event_id.decode(), **fields})

    # ── what the client says ─────────────────────────────────────────────────────────────────────

    def decode(self, data: bytes) -> Command:
        match parse(data):
            case ResponseCreate() as event:
                return self._create(event)
            case ResponseCancel(response_id=response_id):
                return Cancel(self._running(response_id))
            case ResponseResume(response_id=response_id, event_id=event_id):
                return self._resume(response_id, event_id)
            case SessionUpdate(session=session):
                self._settings.update(session)
                return self._reply("session.updated", session=self._settings.fields(self._session_id))
            case ItemCreate() as event:
                return self._add(event)
            case ItemDelete(item_id=item_id):
                self._dialogue.delete(item_id)
                return self._reply("conversation.item.deleted", item_id=item_id)
            case ItemRetrieve(item_id=item_id):
                item = self._dialogue.find(item_id, "item_retrieve_invalid_item_id")
                return self._reply("conversation.item.retrieved", item=item.fields)

    def _reply(self, type: str, **fields: Any) -> Reply:
        return Reply([self._event(type, **fields)])

    def _running(self, response_id: str | None) -> str:
        response_id = response_id or self._active
        if response_id is None or response_id not in self._answers:
            message = "there is no such response to cancel" if response_id else "no response is running"
            raise InvalidRequest(message, code="response_cancel_not_active", param="response_id")
        return response_id

    def _resume(self, response_id: str, event_id: str | None) -> Resume:
        if response_id in self._answers:
            raise InvalidRequest(f"this session follows {response_id} already", param="response_id")
        self._answers[response_id] = Answer(response_id, event_id)
        return Resume(response_id, lane=response_id)

    def _add(self, event: ItemCreate) -> Reply:
        asked = event.item
        if isinstance(asked, CallOutputItem) and not self._dialogue.has_call(asked.call_id):
            message = f"there is no call {asked.call_id!r} in this conversation"
            raise InvalidRequest(message, code="invalid_tool_call_id", param="item.call_id")
        item = asked.item(asked.id or new_id("item"))
        place = {"previous_item_id": self._dialogue.create(item, event.previous_item_id), "item": item.fields}
        added = self._event("conversation.item.added", **place)
        return Reply([added, self._event("conversation.item.done", **place)])

    def _create(self, event: ResponseCreate) -> Create:
        fields = event.response or {}
        settings = self._settings.of_response(fields)
        items, joins = read_input(fields)
        if joins and self._active is not None:
            raise InvalidRequest(
                f"the conversation has an active response already, {self._active}: wait for its end",
                code="conversation_already_has_active_response",
            )
        begins, continues = False, joins and items is None
        if continues:
            asked, conversation_id, begins = self._dialogue.next_turn()
            settings = replace(settings, conversation_id=conversation_id)
        else:
            asked = turn(self._dialogue.items) if items is None else self._asked(items)
        response_id = new_id("resp")
        self._answers[response_id] = Answer(response_id, event.event_id, joins=joins, is_stored=continues)
        if joins:
            self._active = response_id
        ask = Ask(asked, self._settings.model, replace(settings, store=joins), begins)
        return Create(ask, response_id, response_id=response_id)

    def _asked(self, items: Sequence[InputItem]) -> tuple[Message, ...]:
        asked = turn(
            self._dialogue.find(item.id, "invalid_value", "response.input")
            if isinstance(item, ItemReference)
            else item.item(item.id or "")
            for item in items
        )
        # A few bytes may refer to a long item, and many times.
        if sum(message.chars for message in asked) > MAX_CHARS:
            raise InvalidRequest(
                f"response.input: with what it refers to it has more than {MAX_CHARS} characters",
                code="invalid_value",
                param="response.input",
            )
        return asked

    # ── what the client is told ──────────────────────────────────────────────────────────────────

    def encode(self, cursor: Cursor, number: int, events: Sequence[Event]) -> list[bytes]:
        answer = self._answers[cursor.response_id]
        payloads = []
        for event in events:
            if isinstance(event, TextDelta):  # it has no scores in this dialect
                parts = (answer.delta_head, orjson.dumps(event), self._event_prefix, next(self._numbers))
                payloads.append(b'%b,"delta":%b,"event_id":"%b%d"}' % parts)
                continue
            payloads += [self._event(**fields) for fields in answer.tell(event, self._dialogue)]
            if answer.is_over:
                self._forget(cursor.response_id)
        return payloads

    def _forget(self, response_id: str) -> None:
        del self._answers[response_id]
        if self._active == response_id:
            self._active = None

    def encode_update(self, cursor: Cursor, update: QueueUpdate) -> None:
        return None

    def encode_error(self, error: SluiceError, lane: str | None) -> bytes:
        event_id = None
        if lane is not None and (answer := self._answers.get(lane)) is not None:
            event_id = answer.event_id
            if answer.is_stored:
                self._dialogue.refused(error)
            self._forget(lane)
        elif lane is not None:
            event_id = lane.removeprefix(_CLIENTS)
        return self._event("error", error={**error_body(error), "event_id": event_id})

    def lane(self, data: bytes) -> str | None:
        event_id = read_event_id(data)
        return None if event_id is None else _CLIENTS + event_id
