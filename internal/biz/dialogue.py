"""The use cases of a conversation's items: read, add and delete what was said, piece by piece."""

import time
from collections.abc import Sequence
from typing import Protocol

from internal.biz.attachments import Attachments
from internal.biz.errors import InvalidRequest, NotFound
from internal.biz.ids import new_id
from internal.biz.items import Item, Place, asked
from internal.biz.models import Caller, Message, Request, Response, Settings, Status
from internal.biz.ports import History

NOBODY = ""
"""The model that is asked in a turn without an answer."""


class ItemStore(Protocol):
    """Every call raises Unavailable while the storage cannot be reached, and NotFound when there is no such
    conversation or item, it was deleted, or is another user's."""

    async def page(
        self, conversation_id: str, user: str, after: Place | None, limit: int, *, newest_first: bool
    ) -> Sequence[Item]:
        """At most `limit` items, those behind `after` in this order. What stands aside is left out, and found
        only one by one."""

    async def get(self, conversation_id: str, user: str, place: Place) -> Item: ...

    async def delete(self, conversation_id: str, user: str, place: Place) -> None:
        """No later turn sees it. Raises Conflict while its own turn is being answered."""


class Dialogue:
    """One per process."""

    def __init__(self, store: ItemStore, history: History, attachments: Attachments) -> None:
        self._store = store
        self._history = history
        self._attachments = attachments

    async def page(
        self, conversation_id: str, user: str, after: Place | None, limit: int, *, newest_first: bool
    ) -> Sequence[Item]:
        """At most `limit` items behind `after`. Raises NotFound for the conversation."""
        return await self._store.page(conversation_id, user, after, limit, newest_first=newest_first)

    async def get(self, conversation_id: str, user: str, place: Place) -> Item:
        """Raises NotFound."""
        return await self._store.get(conversation_id, user, place)

    async def add(self, caller: Caller, conversation_id: str, messages: Sequence[Message]) -> Sequence[Item]:
        """Say something without asking for an answer: a turn that has ended as soon as it is stored.

        Raises NotFound, also for what is attached, InvalidRequest, and Conflict while an answer in the
        conversation still runs.
        """
        if not messages:
            raise InvalidRequest("there is no message among the items", param="items")
        turn = await self._attachments.resolve(caller, tuple(messages), store=True)
        settings = Settings(conversation_id=conversation_id)
        request = Request(new_id("resp"), NOBODY, caller.user, time.time(), turn, settings)
        # Should we die in between, it is found to have failed, as any turn.
        await self._history.begin(request, caller.user, begins=False, wants_title=False)
        await self._history.finish([Response.of(request, Status.COMPLETED, attempt=1)])
        return asked(request)

    async def delete(self, conversation_id: str, user: str, place: Place) -> None:
        """Raises NotFound, and Conflict while its turn is being answered."""
        await self._store.delete(conversation_id, user, place)


def unknown_item() -> NotFound:
    """There is no such item, or not in this conversation."""
    return NotFound("there is no such item in this conversation", code="item_not_found", param="item_id")
