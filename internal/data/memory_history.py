"""Turns in the memory of one process. Bounded; what was not used for longest is forgotten first."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from internal.biz.errors import Conflict, NotFound
from internal.biz.models import Message, Request, Response, Role, Status

_TURN_BYTES = 400
"""What a turn costs beside its text."""


@dataclass(slots=True)
class _Turn:
    previous_id: str | None
    messages: tuple[Message, ...]
    size_bytes: int
    answer: Message | None = None
    attempt: int | None = None
    """Which attempt ended it; None while it runs."""


class MemoryHistory:
    """Implements History. Keeps at most `max_turns` turns and `max_bytes` of text (estimated)."""

    def __init__(self, max_turns: int = 100_000, max_bytes: int = 256 << 20) -> None:
        self._max_turns = max_turns
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._turns: OrderedDict[str, _Turn] = OrderedDict()

    async def messages(self, response_id: str) -> tuple[Message, ...]:
        turn = self._turns.get(response_id)
        if turn is None:
            raise NotFound(
                f"there is no stored response {response_id!r} to continue from",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        if turn.attempt is None:
            raise Conflict(f"response {response_id!r} has not ended yet", param="previous_response_id")
        ids: list[str] = []
        parts: list[tuple[Message, ...]] = []
        following: str | None = response_id
        while following is not None and (turn := self._turns.get(following)) is not None:
            ids.append(following)
            parts.append((*turn.messages, turn.answer) if turn.answer else turn.messages)
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

    async def begin(self, request: Request, turn: tuple[Message, ...]) -> None:
        if request.response_id in self._turns:
            return
        size = _TURN_BYTES
        for message in turn:
            size += len(message.content)
        self._turns[request.response_id] = _Turn(request.settings.previous_response_id, turn, size)
        self._grow(size)

    async def finish(self, responses: Sequence[Response]) -> None:
        for response in responses:
            turn = self._turns.get(response.id)
            if turn is None or (turn.attempt is not None and turn.attempt >= response.attempt):
                continue
            turn.attempt = response.attempt
            before = len(turn.answer.content) if turn.answer else 0
            text = "" if response.status is Status.FAILED else response.text
            turn.answer = Message(Role.ASSISTANT, text) if text else None
            turn.size_bytes += len(text) - before
            self._grow(len(text) - before)

    def _grow(self, size_bytes: int) -> None:
        self._size_bytes += size_bytes
        while len(self._turns) > self._max_turns or self._size_bytes > self._max_bytes:
            _, turn = self._turns.popitem(last=False)
            self._size_bytes -= turn.size_bytes
