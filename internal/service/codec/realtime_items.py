"""The items of a Realtime conversation: what clients create, and what a model has said.

Source: https://platform.openai.com/docs/api-reference/realtime-client-events/conversation/item/create
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, field_validator

from internal.biz.ids import new_id
from internal.biz.items import joined
from internal.biz.models import ItemKind, Message, OutputItem, Role, Status, ToolCall
from internal.service.api.base import Body
from internal.service.codec.parts import MAX_PARTS
from internal.service.codec.responses_objects import item_id
from internal.service.codec.responses_request import ToolName

PART_CHARS = 64
"""What a part counts for beside its text: it takes room, and be it empty."""
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=64)]


@dataclass(frozen=True, slots=True)
class Item:
    """`fields` are the API's object, `message` is what a model reads of it; None while it is still being
    said."""

    id: str
    fields: dict[str, Any]
    message: Message | None

    @property
    def chars(self) -> int:
        """What it counts for the size of its conversation."""
        parts = len(self.fields.get("content", ())) - 1
        return PART_CHARS * max(0, parts) + (self.message.chars if self.message else 0)


# ── from the client ──────────────────────────────────────────────────────────────────────────────


class _Part(Body):
    type: Literal["input_text", "output_text", "text"]
    text: str

    @field_validator("type", mode="before")
    @classmethod
    def _text_only(cls, value: object) -> object:
        if isinstance(value, str) and value.endswith(("audio", "image")):
            raise ValueError(f"{value} is not supported: this server understands text only")
        return value


class _Created(Body):
    id: ItemId | None = None
    # These change nothing.
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class _MessageItem(_Created):
    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[_Part], Field(max_length=MAX_PARTS, fail_fast=True)]

    def item(self, name: str) -> Item:
        kind = "output_text" if self.role == "assistant" else "input_text"
        content = [{"type": kind, "text": part.text} for part in self.content]
        text = "".join(part.text for part in self.content)
        fields = {"type": "message", "role": self.role, "content": content}
        return _completed(name, fields, Message(Role(self.role), text))


class _CallItem(_Created):
    type: Literal["function_call"]
    call_id: ItemId | None = None
    name: ToolName
    arguments: str

    def item(self, name: str) -> Item:
        call = ToolCall(self.call_id or new_id("call"), self.name, self.arguments)
        return _completed(name, _call(call, call.arguments), Message(Role.ASSISTANT, "", (call,)))


class CallOutputItem(_Created):
    """The answer to a call."""

    type: Literal["function_call_output"]
    call_id: ItemId
    output: str

    def item(self, name: str) -> Item:
        fields = {"type": self.type, "call_id": self.call_id, "output": self.output}
        return _completed(name, fields, Message(Role.TOOL, self.output, call_id=self.call_id))


class ItemReference(Body):
    """An item that stands in the conversation already."""

    type: Literal["item_reference"]
    id: ItemId


_TAGS = frozenset(("function_call", "function_call_output", "item_reference"))


def _tag(item: object) -> str:
    kind = item.get("type") if isinstance(item, dict) else None
    return kind if isinstance(kind, str) and kind in _TAGS else "message"


CreatedItem = Annotated[
    Annotated[_MessageItem, Tag("message")]
    | Annotated[_CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")],
    Discriminator(_tag),
]
"""What a client adds to the conversation."""
InputItem = Annotated[
    Annotated[_MessageItem, Tag("message")]
    | Annotated[_CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_tag),
]
"""What a client asks with."""


def is_item_branch(part: int | str, is_last: bool) -> bool:
    """pydantic names the branch of a union in the path; a client never wrote that."""
    return part == "message" or part in _TAGS


def _completed(name: str, fields: dict[str, Any], message: Message) -> Item:
    return Item(name, _object(name, "completed", fields), message)


# ── from the model ───────────────────────────────────────────────────────────────────────────────


def added_item(response_id: str, index: int, kind: ItemKind, call: ToolCall | None) -> Item:
    """An output item that begins. `index` is that of the response's log."""
    name = item_id(response_id, kind, index)
    return Item(name, _object(name, "in_progress", _said(call, "", [])), None)


def said_item(response_id: str, index: int, item: OutputItem) -> Item:
    """An output item that was said."""
    name, call = item_id(response_id, item.kind, index), item.call
    content = [{"type": "output_text", "text": item.text}]
    fields = _said(call, call.arguments if call is not None else "", content)
    status = Status.COMPLETED if item.status is Status.COMPLETED else Status.INCOMPLETE
    calls = (call,) if call is not None else ()
    return Item(name, _object(name, status.value, fields), Message(Role.ASSISTANT, item.text, calls))


def _said(call: ToolCall | None, arguments: str, content: list[dict[str, str]]) -> dict[str, Any]:
    if call is not None:
        return _call(call, arguments)
    return {"type": "message", "role": "assistant", "content": content}


def _call(call: ToolCall, arguments: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": arguments}


def _object(name: str, status: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "realtime.item", "status": status, **fields}


def turn(items: Iterable[Item]) -> tuple[Message, ...]:
    """The items as messages. Calls that stand behind one another, or behind what was said, are one."""
    return joined(item.message for item in items if item.message is not None)
