"""The use case of a conversation's turns: all of them, also those that its dialogue left aside."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from internal.biz.items import Item
from internal.biz.models import Response


@dataclass(frozen=True, slots=True)
class Turn:
    """What was asked, and the answer, None where no model was asked. Several models' answers to one question
    are a turn each. `previous_id` is the response that it follows. `aside`: it is not on the way from where
    the conversation goes on back to its beginning. Times are Unix seconds."""

    id: str
    previous_id: str | None
    aside: bool
    asked: Sequence[Item]
    response: Response | None
    created_at: float
    first_token_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class TurnPage:
    """`head_id`: the response that the next turn continues, None: it is the first. `has_more`: there are
    turns behind these."""

    turns: Sequence[Turn]
    head_id: str | None
    has_more: bool


class TurnStore(Protocol):
    """Raises Unavailable while the storage cannot be reached."""

    async def page(
        self, conversation_id: str, user: str, after: str | None, limit: int, *, newest_first: bool
    ) -> TurnPage:
        """At most `limit` turns, those behind the response `after` in this order, and fewer where they are
        long, but one at least. Raises NotFound when there is no such conversation, it was deleted, or is
        another user's."""


class Turns:
    """One per process."""

    def __init__(self, store: TurnStore) -> None:
        self._store = store

    async def page(
        self, conversation_id: str, user: str, after: str | None, limit: int, *, newest_first: bool
    ) -> TurnPage:
        """At most `limit` turns behind `after`. Raises NotFound."""
        return await self._store.page(conversation_id, user, after, limit, newest_first=newest_first)
