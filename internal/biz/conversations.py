"""The use cases of stored conversations: list, read, rename, go on from another turn, delete. Whose they are
is checked in storage: what belongs to somebody else is not found."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from internal.biz.errors import InvalidRequest
from internal.biz.ids import new_id
from internal.biz.models import Conversation, StoredMessage
from internal.biz.names import visible_line

MAX_TITLE_CHARS = 50
MAX_SIZE = 4 << 20
"""What may be said in a conversation, in characters: the turn that goes beyond is the last one. All of it is
read when somebody looks at it."""
TURN_SIZE = 1000
"""What a turn counts beside its characters."""
MAX_PAGE = 100
"""Of conversations at a time."""


@dataclass(frozen=True, slots=True)
class Page:
    """Conversations, those with news first. `cursor` leads to the next page; None: this was the last."""

    conversations: Sequence[Conversation]
    cursor: str | None


class ConversationStore(Protocol):
    """Every call raises Unavailable while the storage cannot be reached.

    Those that take an id and a user raise NotFound when there is no such conversation, it was deleted, or
    is another user's.
    """

    async def create(self, conversation: Conversation) -> None:
        """Store a conversation that has no messages yet."""

    async def get(self, conversation_id: str, user: str) -> Conversation: ...

    async def page(self, user: str, limit: int, cursor: str | None, search: str | None) -> Page:
        """The user's conversations behind `cursor`, of which the title or a message contains `search`
        (every word of it, whatever the case). Raises InvalidRequest when the cursor is none of ours, or the
        search (the parameter `q`) has too many words; TooManyRequests when the user searches too often at the
        same time."""

    async def messages(self, conversation_id: str, user: str) -> Sequence[StoredMessage]:
        """All messages but those that stand aside, the oldest first. Answers that failed have none."""

    async def rename(self, conversation_id: str, user: str, title: str) -> None:
        """Name it, from now on for good."""

    async def go_on_from(
        self, conversation_id: str, user: str, response_id: str, title: str | None = None
    ) -> None:
        """The next turn continues this response; what is not on the way to it stands aside. With a title,
        name it as well, or do neither.

        Raises NotFound also when the response is not of this conversation, InvalidRequest when it failed, and
        Conflict while an answer runs.
        """

    async def label(self, conversation_id: str, user: str, metadata: Mapping[str, str]) -> None:
        """Replace its metadata."""

    async def delete(self, conversation_id: str, user: str) -> None:
        """Nobody finds it any more. What runs in it goes on."""


class Conversations:
    """One per process."""

    def __init__(self, store: ConversationStore) -> None:
        self._store = store

    async def create(
        self, user: str, title: str = "", metadata: Mapping[str, str] | None = None
    ) -> Conversation:
        """An empty conversation. Raises InvalidRequest for a title that is none, such as a blank one."""
        now = time.time()
        named = bool(title)
        conversation = Conversation(
            new_id("conv"), user, checked_title(title) if named else "", named, now, now, 0, metadata or {}
        )
        await self._store.create(conversation)
        return conversation

    async def get(self, conversation_id: str, user: str) -> Conversation:
        """Raises NotFound."""
        return await self._store.get(conversation_id, user)

    async def page(
        self, user: str, limit: int = 20, cursor: str | None = None, search: str | None = None
    ) -> Page:
        """At most `limit` conversations. Raises InvalidRequest."""
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit must be 1 to {MAX_PAGE}", param="limit")
        return await self._store.page(user, limit, cursor, search)

    async def messages(self, conversation_id: str, user: str) -> Sequence[StoredMessage]:
        """All messages, the oldest first. Raises NotFound."""
        return await self._store.messages(conversation_id, user)

    async def rename(self, conversation_id: str, user: str, title: str) -> Conversation:
        """Raises NotFound, and InvalidRequest for a title that is none."""
        await self._store.rename(conversation_id, user, checked_title(title))
        return await self._store.get(conversation_id, user)

    async def go_on_from(
        self, conversation_id: str, user: str, response_id: str, title: str | None = None
    ) -> Conversation:
        """The next turn continues this response. With a title, name it as well, or do neither. Raises
        NotFound, InvalidRequest for a title that is none or a response that failed, and Conflict while an
        answer runs."""
        title = None if title is None else checked_title(title)
        await self._store.go_on_from(conversation_id, user, response_id, title)
        return await self._store.get(conversation_id, user)

    async def label(self, conversation_id: str, user: str, metadata: Mapping[str, str]) -> Conversation:
        """Replace its metadata. Raises NotFound."""
        await self._store.label(conversation_id, user, metadata)
        return await self._store.get(conversation_id, user)

    async def delete(self, conversation_id: str, user: str) -> None:
        """Raises NotFound."""
        await self._store.delete(conversation_id, user)


def checked_title(title: str) -> str:
    """A person's title on one line. Raises InvalidRequest when it is empty or too long, or holds what cannot
    be seen."""
    line = " ".join(title.split())
    if not line or len(line) > MAX_TITLE_CHARS:
        raise InvalidRequest(f"a title has 1 to {MAX_TITLE_CHARS} characters", param="title")
    if visible_line(line) != line:
        raise InvalidRequest("a title has no control characters and no invisible ones", param="title")
    return line


def first_words(text: str) -> str:
    """What a conversation that begins with `text` is called until it has a title: its first words, at most
    MAX_TITLE_CHARS characters."""
    line = visible_line(text[: 8 * MAX_TITLE_CHARS])
    if len(line) <= MAX_TITLE_CHARS:
        return line
    cut = line[:MAX_TITLE_CHARS]  # the last character is for the …
    words = cut[: cut.rfind(" ")] if " " in cut else cut[:-1]
    return words[: MAX_TITLE_CHARS - 1].rstrip() + "…"
