"""What a client of the Realtime API says.

Source: https://platform.openai.com/docs/api-reference/realtime-client-events
"""

from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, StringConstraints, ValidationError

from internal.biz.errors import InvalidRequest, UnsupportedParameter
from internal.service.api.base import Body
from internal.service.codec.realtime_items import CreatedItem, InputItem, ItemId, is_item_branch
from internal.service.codec.realtime_settings import placed
from internal.service.codec.responses_request import MAX_ITEMS, invalid
from internal.service.validation import load_object

MAX_EVENT_ID_CHARS = 512


class _Event(Body):
    type: str
    event_id: Annotated[str, StringConstraints(max_length=MAX_EVENT_ID_CHARS)] | None = None


class SessionUpdate(_Event):
    session: dict[str, Any]


class ItemCreate(_Event):
    """`previous_item_id`: what it is to stand behind."""

    item: CreatedItem
    previous_item_id: ItemId | None = None


class ItemDelete(_Event):
    item_id: ItemId


class ItemRetrieve(_Event):
    item_id: ItemId


class ResponseCreate(_Event):
    response: dict[str, Any] | None = None


class ResponseCancel(_Event):
    response_id: ItemId | None = None


class ResponseResume(_Event):
    """Beyond the API: follow a response that was asked for elsewhere, from its beginning."""

    response_id: ItemId


ClientEvent = (
    SessionUpdate | ItemCreate | ItemDelete | ItemRetrieve | ResponseCreate | ResponseCancel | ResponseResume
)

_EVENTS: dict[str, type[ClientEvent]] = {
    "session.update": SessionUpdate,
    "conversation.item.create": ItemCreate,
    "conversation.item.delete": ItemDelete,
    "conversation.item.retrieve": ItemRetrieve,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
    "response.resume": ResponseResume,
}
_OF_SOUND = ("input_audio_buffer.", "output_audio_buffer.", "conversation.item.truncate")


def parse(data: bytes) -> ClientEvent:
    """Raises InvalidRequest."""
    event = load_object(data)
    name = event.get("type")
    if isinstance(name, str) and name.startswith(_OF_SOUND):
        message = f"{name[:100]}: audio is not supported here, this server understands text only"
        raise UnsupportedParameter(message, param="type")
    model = _EVENTS.get(name) if isinstance(name, str) else None
    if model is None:
        known = ", ".join(_EVENTS)
        message = f"unknown event type {name!r:.100}; this server knows {known}"
        raise InvalidRequest(message, code="unknown_event", param="type")
    try:
        return model.model_validate(event)
    except ValidationError as error:
        raise invalid(error, is_item_branch) from error


def read_event_id(data: bytes) -> str | None:
    """What a client calls an event that is wrong, if that can be told."""
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    event_id = event.get("event_id") if isinstance(event, dict) else None
    return event_id if isinstance(event_id, str) and len(event_id) <= MAX_EVENT_ID_CHARS else None


class _Input(Body):
    input: Annotated[list[InputItem], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    conversation: Literal["auto", "none"] | None = None


def read_input(response: dict[str, Any]) -> tuple[list[InputItem] | None, bool]:
    """What one response is asked with, if not with the conversation, and whether its answer joins that.
    Raises InvalidRequest."""
    try:
        asked = _Input.model_validate({k: v for k, v in response.items() if k in _Input.model_fields})
    except ValidationError as error:
        raise placed(invalid(error, is_item_branch), "response") from error
    return asked.input, asked.conversation != "none"
