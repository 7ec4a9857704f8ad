"""A conversation's turns, as a client is told of them."""

from typing import Any

from internal.biz.turns import Turn, TurnPage
from internal.service.codec.responses_items import stored_item
from internal.service.codec.responses_objects import response_object


def turn_list(page: TurnPage) -> dict[str, Any]:
    """As the API's `list` object; and `head_id`, the response that the next turn continues."""
    ids = [turn.id for turn in page.turns]
    return {
        "object": "list",
        "data": [_turn(turn) for turn in page.turns],
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": page.has_more,
        "head_id": page.head_id,
    }


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "id": turn.id,
        "object": "conversation.turn",
        "previous_response_id": turn.previous_id,
        "aside": turn.aside,
        "created_at": turn.created_at,
        "first_token_at": turn.first_token_at,
        "ended_at": turn.ended_at,
        "input": [stored_item(item) for item in turn.asked],
        "response": None if turn.response is None else response_object(turn.response),
    }
