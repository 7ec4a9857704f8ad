"""The conversation of one Realtime session: its items in their order, and how far they are stored.

What is stored is a conversation like any other, turn by turn, and a turn cannot be taken back. When the
client deletes or inserts something before its end, the next turn begins another stored conversation, with
everything that is still there. Where the session continues a conversation it cannot, as it does not know what
was said there before.
"""

from collections.abc import Sequence

from internal.biz.errors import InvalidRequest, NotFound, SluiceError
from internal.biz.ids import new_id
from internal.biz.models import Message
from internal.service.codec.realtime_items import Item, turn

MAX_ITEMS = 4096
MAX_CHARS = 1 << 20
"""Of what stands in a conversation. Only what a model says may go beyond."""
ROOT = "root"
"""Where an item is inserted before all others."""


class Dialogue:
    """The stored conversation holds the first `_stored` items, or will when the turn at hand is stored;
    before that it held `_before`."""

    __slots__ = ("_before", "_begun", "_chars", "_conversation_id", "_is_own", "_items", "_stale", "_stored")

    def __init__(self, conversation_id: str | None = None) -> None:
        """`conversation_id`: what is continued; None: a conversation of its own."""
        self._items: list[Item] = []
        self._chars = 0
        self._stored = self._before = 0
        self._stale = False
        """Whether what is stored is no longer what stands here."""
        self._conversation_id = conversation_id
        self._is_own = conversation_id is None
        self._begun = not self._is_own
        """Whether the conversation is stored."""

    @property
    def items(self) -> Sequence[Item]:
        return self._items

    def find(self, item_id: str, code: str, param: str = "item_id") -> Item:
        """Raises NotFound with this code."""
        place = self._index(item_id)
        if place is None:
            raise _no_item(item_id, code, param)
        return self._items[place]

    def _index(self, item_id: str) -> int | None:
        return next((i for i, item in enumerate(self._items) if item.id == item_id), None)

    def holds(self, item_id: str) -> bool:
        return self._index(item_id) is not None

    # ── what the client does ─────────────────────────────────────────────────────────────────────

    def create(self, item: Item, behind: str | None) -> str | None:
        """Add an item of the client's behind the one of this id (ROOT: before all, None: at the end). Returns
        the id of the one that it stands behind now. Raises InvalidRequest and NotFound."""
        if len(self._items) >= MAX_ITEMS or self._chars + item.chars > MAX_CHARS:
            raise _full()
        if self.holds(item.id):
            message = f"there is an item {item.id!r} in this conversation already"
            raise InvalidRequest(message, code="invalid_value", param="item.id")
        place = self._place(behind)
        if place < self._stored:
            self._require_own("previous_item_id")
            self._stored += 1
            self._stale = True
        self._chars += item.chars
        return self._put(place, item)

    def _place(self, behind: str | None) -> int:
        if behind is None:
            return len(self._items)
        if behind == ROOT:
            return 0
        place = self._index(behind)
        if place is None:
            raise _no_item(behind, "invalid_value", "previous_item_id")
        return place + 1

    def has_call(self, call_id: str) -> bool:
        """Whether a function call of this id stands here."""
        return any(call.id == call_id for it in self._items if it.message for call in it.message.calls)

    def delete(self, item_id: str) -> None:
        """Raises NotFound, and InvalidRequest for what is stored in a conversation that is continued."""
        place = self._index(item_id)
        if place is None:
            raise _no_item(item_id, "item_delete_invalid_item_id", "item_id")
        if place < self._stored:
            self._require_own("item_id")
            self._stale = True
        self._remove(place)

    def _require_own(self, param: str) -> None:
        if not self._is_own:
            message = "what was said in a conversation that is continued stays; connect without conversation"
            raise InvalidRequest(message, code="conversation_continued", param=param)

    def _remove(self, place: int) -> None:
        self._chars -= self._items.pop(place).chars
        if place < self._stored:
            self._stored -= 1
            self._before = min(self._before, self._stored)

    # ── turns ────────────────────────────────────────────────────────────────────────────────────

    def next_turn(self) -> tuple[tuple[Message, ...], str, bool]:
        """What is new, the id of the conversation that it continues, and whether it begins with it. Raises
        InvalidRequest when the conversation is full."""
        if self._chars > MAX_CHARS:
            raise _full()
        if self._stale:
            self._conversation_id, self._stored, self._stale, self._begun = None, 0, False, False
        if self._conversation_id is None:
            self._conversation_id = new_id("conv")
        self._before, self._stored = self._stored, len(self._items)
        return turn(self._items[self._before :]), self._conversation_id, not self._begun

    def accepted(self) -> None:
        """The turn at hand is stored."""
        self._begun = True

    def refused(self, error: SluiceError) -> None:
        """The turn at hand is not stored."""
        self._stored = self._before
        # It was deleted, is full, or idled for so long that it was forgotten.
        self._stale = self._stale or (self._is_own and error.param == "conversation")

    def failed(self) -> None:
        """The turn at hand had no answer: it is not part of what is continued."""
        self._stored = self._before

    def add_output(self, item: Item, *, is_stored: bool) -> str | None:
        """Add what the model begins to say. Returns the id of the item that it stands behind."""
        place = self._stored if is_stored else len(self._items)
        behind = self._put(place, item)
        if is_stored:
            self._stored += 1
        return behind

    def finish_output(self, item: Item) -> str | None:
        """What the model began to say is said. Returns the id of the item that it stands behind."""
        place = self._index(item.id)
        assert place is not None
        self._items[place] = item
        self._chars += item.chars
        return self._items[place - 1].id if place else None

    def drop_output(self, item_id: str) -> None:
        """What the model began to say is lost, here and where it would be stored."""
        place = self._index(item_id)
        assert place is not None
        self._remove(place)

    def _put(self, place: int, item: Item) -> str | None:
        self._items.insert(place, item)
        return self._items[place - 1].id if place else None


def _full() -> InvalidRequest:
    return InvalidRequest(
        f"this conversation is full, it holds {MAX_ITEMS} items or {MAX_CHARS} characters; delete some items",
        code="conversation_full",
    )


def _no_item(item_id: str, code: str, param: str) -> NotFound:
    return NotFound(f"there is no item {item_id!r} in this conversation", code=code, param=param)
