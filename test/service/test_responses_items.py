"""Stored items, held against the types of the `openai` package."""

import json

import pytest
from openai.types.conversations import ConversationItem, ConversationItemList
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from internal.biz.errors import InvalidRequest, NotFound
from internal.biz.items import OUTPUT, Item, Place, pieces
from internal.biz.models import Attachment, ItemKind, Message, OutputItem, Role, Status, ToolCall
from internal.service.codec.responses_items import behind, item_list, place_of, stored_item
from internal.service.codec.responses_objects import item_id

CALL = ToolCall("call_1", "weather", '{"city": "Graz"}')
RESPONSE = "resp_01a2001961aeb0a171f13b400ef66a5d"


def asked(*said: Message) -> list[Item]:
    return [Item(Place(RESPONSE, position), message) for position, message in enumerate(said)]


def answered(*said: OutputItem) -> list[Item]:
    return [Item(Place(RESPONSE, OUTPUT + index), item) for index, item in enumerate(said)]


IMAGE = Attachment("a.png", "image/png", "file_1", url="data:image/png;base64,AA==")
ITEMS = [
    *asked(
        Message(Role.USER, "hello 🦆"),
        Message(Role.SYSTEM, "be brief"),
        Message(Role.USER, "look", attachments=(IMAGE, Attachment("a.txt", "text/plain", "file_2", "x"))),
        Message(Role.USER, "", attachments=(IMAGE, Attachment("b.txt", "text/plain", text="ä"))),
        Message(Role.ASSISTANT, "hi"),
        Message(Role.ASSISTANT, "", (CALL,)),
        Message(Role.TOOL, "sunny", call_id="call_1"),
    ),
    *answered(
        OutputItem(ItemKind.REASONING, "hm"),
        OutputItem(ItemKind.MESSAGE, "so be it", Status.INCOMPLETE),
        OutputItem(ItemKind.FUNCTION_CALL, "", call=CALL),
    ),
]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: stored_item(item)["id"])
def test_every_item_is_one_of_the_openai_package(item: Item) -> None:
    fields = json.dumps(stored_item(item))
    TypeAdapter(ConversationItem).validate_json(fields, strict=True)
    TypeAdapter(ResponseItem).validate_json(fields, strict=True)


def test_a_list_is_one_of_the_openai_package() -> None:
    found = item_list(ITEMS, has_more=True)
    parsed = ConversationItemList.model_validate_json(json.dumps(found), strict=True)
    assert (parsed.first_id, parsed.last_id) == (stored_item(ITEMS[0])["id"], stored_item(ITEMS[-1])["id"])
    assert item_list([])["first_id"] is None


def test_an_id_leads_back_to_its_item() -> None:
    ids = [stored_item(item)["id"] for item in ITEMS]
    assert [place_of(one) for one in ids] == [item.place for item in ITEMS]
    assert len(set(ids)) == len(ids)


def test_an_item_is_called_as_when_it_was_generated() -> None:
    for index, item in enumerate(answered(*(OutputItem(kind, "x", call=CALL) for kind in ItemKind))):
        assert isinstance(item.said, OutputItem)
        assert stored_item(item)["id"] == item_id(RESPONSE, item.said.kind, index)


@pytest.mark.parametrize(
    "strange",
    [
        "",
        "msg_",
        "msg_1",
        "msg_1_",
        "msg_1_i",
        "resp_1_0",
        "msg_x_0",
        "msg_1_٣",
        "msg_1_0000000",
        "msg_1_0\n",
    ],
)
def test_what_is_no_id_of_ours_is_not_found(strange: str) -> None:
    with pytest.raises(NotFound):
        place_of(strange)
    with pytest.raises(InvalidRequest) as refused:
        behind(strange)
    assert refused.value.param == "after"


def test_calls_are_pieces_of_their_own() -> None:
    other = ToolCall("call_2", "time", "{}")
    both = Message(Role.ASSISTANT, "", (CALL, other))
    assert pieces([both]) == [Message(Role.ASSISTANT, "", (CALL,)), Message(Role.ASSISTANT, "", (other,))]
    assert pieces([Message(Role.ASSISTANT, "so", (CALL,))]) == [
        Message(Role.ASSISTANT, "so"),
        Message(Role.ASSISTANT, "", (CALL,)),
    ]
