"""Items of the Responses API that are stored: what they are called, and what they look like.

Source: https://platform.openai.com/docs/api-reference/conversations/list-items
"""

import re
from collections.abc import Sequence
from typing import Any

from internal.biz.attachments import data_url
from internal.biz.dialogue import unknown_item
from internal.biz.errors import InvalidRequest, NotFound
from internal.biz.items import OUTPUT, Item, Place
from internal.biz.models import Attachment, Message, OutputItem, Role
from internal.service.codec.responses_objects import item_object

_ID = re.compile(r"(?:msg|rs|fc|fco)_([0-9a-f]{1,40})_(i?)([0-9]{1,6})")
"""Of a response's id, and where in it the item stands: what was asked has an `i`."""


def place_of(item_id: str) -> Place:
    """Where the item of this id stands, should there be one. Raises NotFound for what is no id of ours."""
    found = _ID.fullmatch(item_id)
    if found is None:
        raise unknown_item()
    key, is_input, number = found.groups()
    return Place(f"resp_{key}", int(number) + (0 if is_input else OUTPUT))


def behind(item_id: str | None) -> Place | None:
    """Where the item stands behind which a page begins. Raises InvalidRequest."""
    if item_id is None:
        return None
    try:
        return place_of(item_id)
    except NotFound as error:
        message = "after: this is not the id of an item"
        raise InvalidRequest(message, code="invalid_value", param="after") from error


def stored_item(item: Item) -> dict[str, Any]:
    """An item, with the same id that it had when it was generated. Beyond the API: which turn it is of."""
    return {**_fields(item), "response_id": item.place.response_id}


def _fields(item: Item) -> dict[str, Any]:
    place, said = item.place, item.said
    if isinstance(said, OutputItem):
        return item_object(place.response_id, place.position - OUTPUT, said)
    key = f"{place.response_id.removeprefix('resp_')}_i{place.position}"
    if said.role is Role.TOOL:
        fields = {"id": f"fco_{key}", "type": "function_call_output", "call_id": said.call_id}
        return {**fields, "output": said.content, "status": "completed"}
    if said.calls:
        (call,) = said.calls
        fields = {"id": f"fc_{key}", "type": "function_call", "call_id": call.id}
        return {**fields, "name": call.name, "arguments": call.arguments, "status": "completed"}
    fields = {"id": f"msg_{key}", "type": "message", "role": said.role.value, "status": "completed"}
    return {**fields, "content": _content(said)}


def _content(message: Message) -> list[dict[str, Any]]:
    if message.role is Role.ASSISTANT:
        return [{"type": "output_text", "text": message.content, "annotations": [], "logprobs": []}]
    text: list[dict[str, Any]] = [{"type": "input_text", "text": message.content}]
    return [*(text if message.content else []), *map(_attached, message.attachments)]


def _attached(attachment: Attachment) -> dict[str, Any]:
    file_id, text = attachment.file_id, attachment.text
    if text is None:
        image = {"type": "input_image", "detail": "auto", "file_id": file_id}
        return {**image, "image_url": attachment.url}
    file: dict[str, Any] = {"type": "input_file", "file_id": file_id, "filename": attachment.name}
    # As it was sent: with the bytes, when it is nowhere else.
    return file if file_id else {**file, "file_data": data_url(attachment.media_type, text.encode())}


def item_list(items: Sequence[Item], *, has_more: bool = False) -> dict[str, Any]:
    """The API's `list` object."""
    data = [stored_item(item) for item in items]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
