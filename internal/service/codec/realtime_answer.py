"""One response as a client of the Realtime API is told of it, event by event.

Source: https://platform.openai.com/docs/api-reference/realtime-server-events/response
"""

from collections.abc import Iterator
from typing import Any

import orjson

from internal.biz.events import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ResponseCompleted,
    ResponseFailed,
    ResponseIncomplete,
    ResponseQueued,
    TextDone,
)
from internal.biz.models import ItemKind, Response, Status
from internal.service.codec.realtime_dialogue import Dialogue
from internal.service.codec.realtime_items import Item, added_item, said_item
from internal.service.codec.realtime_objects import response_object

Fields = dict[str, Any]


class Answer:
    """Follows a response from its beginning. Reasoning is left out, as the API has none: what is not told
    does not count in `output_index` either."""

    __slots__ = (
        "_at",
        "_item_id",
        "_response_id",
        "_silent",
        "delta_head",
        "event_id",
        "is_over",
        "is_stored",
        "joins",
    )

    def __init__(
        self, response_id: str, event_id: str | None, *, joins: bool = False, is_stored: bool = False
    ) -> None:
        """`event_id`: what asked for it. `joins`: what it says enters the dialogue, `is_stored`: as the
        answer to a turn that is stored."""
        self.event_id = event_id
        self.joins = joins
        self.is_stored = is_stored
        self.is_over = False
        self.delta_head = b""
        """What all text deltas of an output item have in common, open at the end. A whole object for each
        token takes four times as long."""
        self._response_id = response_id
        self._item_id: str | None = None
        """The output item that is being said, and where it stands."""
        self._at: Fields = {}
        self._silent = 0
        """How many output items were not told."""

    def tell(self, event: Event, dialogue: Dialogue) -> Iterator[Fields]:
        """What `event`, anything but a text delta, is in this dialect."""
        match event:
            case ResponseQueued(response):
                if self.is_stored:
                    dialogue.accepted()
                yield {"type": "response.created", "response": response_object(response)}
            case ItemAdded(ItemKind.REASONING):
                self._silent += 1
            case ItemAdded(kind, index, call):
                item = added_item(self._response_id, index, kind, call)
                yield from self._begin(item, index - self._silent, dialogue)
            case PartAdded(ItemKind.MESSAGE):
                yield self._of_part("response.content_part.added", part={"type": "text", "text": ""})
            case TextDone(ItemKind.MESSAGE, text):
                yield self._of_part("response.output_text.done", text=text)
            case PartDone(ItemKind.MESSAGE, text):
                yield self._of_part("response.content_part.done", part={"type": "text", "text": text})
            case ArgumentsDelta(call):
                fields = {"call_id": call.id, "delta": call.arguments}
                yield self._of_item("response.function_call_arguments.delta", **fields)
            case ArgumentsDone(call):
                fields = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
                yield self._of_item("response.function_call_arguments.done", **fields)
            case ItemDone(item, index) if item.kind is not ItemKind.REASONING:
                yield from self._finish(said_item(self._response_id, index, item), dialogue)
            case ResponseCompleted(response) | ResponseIncomplete(response) | ResponseFailed(response):
                yield from self._end(response, dialogue)

    def _of_item(self, kind: str, **fields: Any) -> Fields:
        return {"type": kind, **self._at, "item_id": self._item_id, **fields}

    def _of_part(self, kind: str, **fields: Any) -> Fields:
        return self._of_item(kind, content_index=0, **fields)

    def _begin(self, item: Item, output_index: int, dialogue: Dialogue) -> Iterator[Fields]:
        self._item_id = item.id
        self._at = {"response_id": self._response_id, "output_index": output_index}
        self.delta_head = orjson.dumps(self._of_part("response.output_text.delta"))[:-1]
        yield {"type": "response.output_item.added", **self._at, "item": item.fields}
        if self.joins:
            behind = dialogue.add_output(item, is_stored=self.is_stored)
            yield {"type": "conversation.item.added", "previous_item_id": behind, "item": item.fields}

    def _finish(self, item: Item, dialogue: Dialogue) -> Iterator[Fields]:
        self._item_id = None
        if self.joins and dialogue.holds(item.id):  # else it was deleted meanwhile
            behind = dialogue.finish_output(item)
            yield {"type": "conversation.item.done", "previous_item_id": behind, "item": item.fields}
        yield {"type": "response.output_item.done", **self._at, "item": item.fields}

    def _end(self, response: Response, dialogue: Dialogue) -> Iterator[Fields]:
        self.is_over = True
        if self._item_id is not None and self.joins and dialogue.holds(self._item_id):
            # Who said it died in the middle of it, and nobody went on.
            dialogue.drop_output(self._item_id)
            yield {"type": "conversation.item.deleted", "item_id": self._item_id}
        if response.status is Status.FAILED and self.is_stored:
            dialogue.failed()
        yield {"type": "response.done", "response": response_object(response)}
