"""Turns in the memory of one process. Bounded; what was not used for longest is forgotten first."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from internal.biz.conversations import MAX_SIZE, TURN_SIZE
from internal.biz.errors import (
    Conflict,
    conversation_full,
    conversation_locked,
    nothing_to_continue,
    unknown_conversation,
    unknown_response,
)
from internal.biz.items import Item, asked
from internal.biz.models import Message, Request, Response, Role, Status

_TURN_BYTES = 400
"""What a turn costs beside its text."""


@dataclass(slots=True)
class _Turn:
    request: Request
    previous_id: str | None
    size_bytes: int
    answer: Message | None = None
    attempt: int | None = None
    """Which attempt ended it; None while it runs."""
    response: Response | None = None
    """How it ended."""

    @property
    def messages(self) -> tuple[Message, ...]:
        said = self.request.messages
        return (*said, self.answer) if self.answer else said


@dataclass(slots=True)
class _Thread:
    """A conversation: the turn that the next one follows, and the one that was begun last."""

    user: str
    head_id: str | None = None
    latest_id: str | None = None
    size: int = 0


def _chars(response: Response | None) -> int:
    """What an answer takes, in characters."""
    output = response.output if response is not None else ()
    return sum(len(item.text) + (len(item.call.arguments) if item.call else 0) for item in output)


class MemoryHistory:
    """Implements History and ResponseStore. Keeps at most `max_turns` turns, and `max_bytes` of text
    (estimated)."""

    def __init__(self, max_turns: int = 100_000, max_bytes: int = 256 << 20) -> None:
        self._max_turns = max_turns
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._turns: OrderedDict[str, _Turn] = OrderedDict()
        self._threads: OrderedDict[str, _Thread] = OrderedDict()

    async def check(self, request: Request, owner: str | None) -> None:
        settings = request.settings
        if settings.previous_response_id is not None:
            self._require_ended(settings.previous_response_id, owner)
        if settings.conversation_id is not None:
            thread = self._threads.get(settings.conversation_id)
            if thread is None or thread.user != request.user:
                raise unknown_conversation(settings.conversation_id)
            latest = self._turns.get(thread.latest_id) if thread.latest_id is not None else None
            if latest is not None and latest.attempt is None:
                raise conversation_locked()
            if thread.size > MAX_SIZE:
                raise conversation_full()

    def _require_ended(self, response_id: str, owner: str | None) -> None:
        turn = self._turns.get(response_id)
        if turn is None or owner not in (None, turn.request.user):
            raise nothing_to_continue(response_id)
        if turn.attempt is None:
            raise Conflict(f"response {response_id!r} has not ended yet", param="previous_response_id")

    async def begin(self, request: Request, owner: str | None, *, begins: bool, wants_title: bool) -> None:
        if request.response_id in self._turns:
            return
        if not begins:
            await self.check(request, owner)
        previous_id, conversation_id = request.settings.previous_response_id, request.settings.conversation_id
        if conversation_id is not None:
            thread = self._threads.setdefault(conversation_id, _Thread(request.user))
            previous_id, thread.latest_id = thread.head_id, request.response_id
            self._threads.move_to_end(conversation_id)
            if len(self._threads) > self._max_turns:
                self._threads.popitem(last=False)
        size = _TURN_BYTES
        for message in request.messages:
            size += message.chars + sum(len(it.url or "") for it in message.attachments)
        self._turns[request.response_id] = _Turn(request, previous_id, size)
        self._grow(size)

    async def before(self, requests: Sequence[Request], max_chars: int) -> Sequence[tuple[Message, ...]]:
        return [self._before(self._previous_id(request), max_chars) for request in requests]

    def _previous_id(self, request: Request) -> str | None:
        turn = self._turns.get(request.response_id)
        if turn is not None:
            return turn.previous_id
        settings = request.settings
        thread = self._threads.get(settings.conversation_id) if settings.conversation_id else None
        return settings.previous_response_id if thread is None else thread.head_id

    def _before(self, response_id: str | None, max_chars: int) -> tuple[Message, ...]:
        ids: list[str] = []
        parts: list[tuple[Message, ...]] = []
        chars, following = 0, response_id
        while following is not None and (turn := self._turns.get(following)) is not None:
            ids.append(following)
            part = turn.messages
            if max_chars and chars > max_chars:
                if turn.previous_id is not None:
                    following = turn.previous_id
                    continue
                part = tuple(message for message in part if message.role is Role.SYSTEM)
            for message in part:
                chars += message.chars
            parts.append(part)
            following = turn.previous_id
        if self._is_crowded():
            # The newest last: without it nothing could continue from what is before it.
            for turn_id in reversed(ids):
                self._turns.move_to_end(turn_id)
        parts.reverse()
        return tuple([message for part in parts for message in part])

    def _is_crowded(self) -> bool:
        """Whether it begins to matter which turn was used last."""
        return 2 * len(self._turns) > self._max_turns or 2 * self._size_bytes > self._max_bytes

    async def finish(self, responses: Sequence[Response]) -> None:
        for response in responses:
            turn = self._turns.get(response.id)
            if turn is None or (turn.attempt is not None and turn.attempt >= response.attempt):
                continue
            turn.attempt = response.attempt
            # Nothing is kept of an answer that failed.
            kept = replace(response, output=()) if response.status is Status.FAILED else response
            grown = _chars(kept) - _chars(turn.response)
            turn.response, turn.answer = kept, kept.answer
            turn.size_bytes += grown
            thread = self._threads.get(response.settings.conversation_id or "")
            if thread is not None:
                thread.size += turn.size_bytes - _TURN_BYTES + TURN_SIZE
                # One that comes late, after others have gone on without it, is not what they continue.
                if response.status is not Status.FAILED and thread.head_id in (turn.previous_id, response.id):
                    thread.head_id = response.id
            self._grow(grown)

    async def unfinished(self, before: float, after_id: str, limit: int) -> Sequence[Response]:
        running = (turn.request for turn in self._turns.values() if turn.attempt is None)
        old = [one for one in running if one.created_at < before and one.response_id > after_id]
        old.sort(key=lambda request: request.response_id)
        return [Response.of(request, Status.IN_PROGRESS) for request in old[:limit]]

    # ── one by one ───────────────────────────────────────────────────────────────────────────────

    async def get(self, response_id: str, owner: str | None) -> Response:
        turn = self._turn(response_id, owner)
        return turn.response or Response.of(turn.request, Status.IN_PROGRESS)

    def _turn(self, response_id: str, owner: str | None) -> _Turn:
        turn = self._turns.get(response_id)
        if turn is None or owner not in (None, turn.request.user):
            raise unknown_response(response_id)
        return turn

    async def input(self, response_id: str, owner: str | None) -> Sequence[Item]:
        return asked(self._turn(response_id, owner).request)

    async def delete(self, response_id: str, owner: str | None) -> None:
        deleted = self._turn(response_id, owner)
        del self._turns[response_id]
        self._size_bytes -= deleted.size_bytes
        for turn in self._turns.values():
            if turn.previous_id == response_id:
                turn.previous_id = deleted.previous_id
        thread = self._threads.get(deleted.request.settings.conversation_id or "")
        if thread is not None and thread.head_id == response_id:
            thread.head_id = deleted.previous_id

    def _grow(self, size_bytes: int) -> None:
        self._size_bytes += size_bytes
        while len(self._turns) > self._max_turns or self._size_bytes > self._max_bytes:
            _, turn = self._turns.popitem(last=False)
            self._size_bytes -= turn.size_bytes
