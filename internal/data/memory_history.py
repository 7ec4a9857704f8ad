"""Turns in the memory of one process. Bounded; what was not used for longest is forgotten first."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from internal.biz.batches import Batch, Task, ended
from internal.biz.conversations import MAX_SIZE, TURN_SIZE
from internal.biz.errors import (
    Conflict,
    conversation_full,
    conversation_locked,
    not_in_conversation,
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
    ended_at: float | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        said = self.request.messages
        return (*said, self.answer) if self.answer else said

    @property
    def task(self) -> Task:
        asked, response = self.request, self.response
        task = Task(asked.response_id, asked.user, asked.model, Status.IN_PROGRESS, asked.created_at)
        return task if response is None else ended(task, response, self.ended_at)


@dataclass(slots=True)
class _Thread:
    """A conversation: the turn that the next one follows, and that or those which were begun last."""

    user: str
    head_id: str | None = None
    latest_ids: Sequence[str] = ()
    size: int = 0


@dataclass(slots=True)
class _Batch:
    """It is forgotten with the first of its turns."""

    ids: Sequence[str]
    chosen_id: str | None = None


def _chars(response: Response | None) -> int:
    """What an answer takes, in characters."""
    output = response.output if response is not None else ()
    return sum(len(item.text) + (len(item.call.arguments) if item.call else 0) for item in output)


def _unscored(response: Response) -> Response:
    """Without what takes a hundred times as much as the text."""
    if response.settings.logprobs is None:
        return response
    return replace(response, output=tuple(replace(item, scores=()) for item in response.output))


class MemoryHistory:
    """Implements History, ResponseStore and BatchStore. Keeps at most `max_turns` turns, and `max_bytes` of
    text (estimated)."""

    def __init__(self, max_turns: int = 100_000, max_bytes: int = 256 << 20) -> None:
        self._max_turns = max_turns
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._turns: OrderedDict[str, _Turn] = OrderedDict()
        self._threads: OrderedDict[str, _Thread] = OrderedDict()
        self._batches: dict[str, _Batch] = {}

    async def check(self, request: Request, owner: str | None) -> None:
        settings = request.settings
        if settings.previous_response_id is not None:
            self._require_ended(settings.previous_response_id, owner)
        if settings.conversation_id is not None:
            thread = self._threads.get(settings.conversation_id)
            if thread is None or thread.user != request.user:
                raise unknown_conversation(settings.conversation_id)
            if self._any_runs(thread.latest_ids):
                raise conversation_locked()
            if thread.size > MAX_SIZE:
                raise conversation_full()
        if settings.replaces is not None:
            replaced = self._turns.get(settings.replaces)
            if replaced is None or replaced.request.settings.conversation_id != settings.conversation_id:
                raise not_in_conversation(settings.replaces, "replaces")

    def _any_runs(self, response_ids: Sequence[str]) -> bool:
        turns = (self._turns.get(response_id) for response_id in response_ids)
        return any(turn is not None and turn.attempt is None for turn in turns)

    def _require_ended(self, response_id: str, owner: str | None) -> None:
        turn = self._turns.get(response_id)
        if turn is None or owner not in (None, turn.request.user):
            raise nothing_to_continue(response_id)
        if turn.attempt is None:
            raise Conflict(f"response {response_id!r} has not ended yet", param="previous_response_id")

    async def begin(self, request: Request, owner: str | None, *, begins: bool, wants_title: bool) -> None:
        await self.begin_batch([request], owner, begins=begins, wants_title=wants_title)

    async def begin_batch(
        self, requests: Sequence[Request], owner: str | None, *, begins: bool, wants_title: bool
    ) -> None:
        # One stands for all of them: they name the same.
        request, ids = requests[0], [one.response_id for one in requests]
        if request.response_id in self._turns:
            return
        if not begins:
            await self.check(request, owner)
        previous_id, conversation_id = request.settings.previous_response_id, request.settings.conversation_id
        if conversation_id is not None:
            thread = self._threads.setdefault(conversation_id, _Thread(request.user))
            if (replaced := self._turns.get(request.settings.replaces or "")) is not None:
                thread.head_id = replaced.previous_id
            previous_id, thread.latest_ids = thread.head_id, ids
            self._threads.move_to_end(conversation_id)
            if len(self._threads) > self._max_turns:
                self._threads.popitem(last=False)
        if request.batch is not None:
            self._batches[request.batch.batch_id] = _Batch(ids)
        for one in requests:
            self._add(one, previous_id)

    def _add(self, request: Request, previous_id: str | None) -> None:
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
            is_first, turn.attempt, turn.ended_at = turn.attempt is None, response.attempt, time.time()
            # Nothing is kept of an answer that failed.
            kept = replace(response, output=()) if response.status is Status.FAILED else _unscored(response)
            grown = _chars(kept) - _chars(turn.response)
            turn.response, turn.answer = kept, kept.answer
            turn.size_bytes += grown
            thread = self._threads.get(response.settings.conversation_id or "")
            if thread is not None:
                thread.size += turn.size_bytes - _TURN_BYTES + TURN_SIZE if is_first else grown
                # One that comes late, after others have gone on without it, is not what they continue.
                if response.status is not Status.FAILED and (
                    thread.head_id in (turn.previous_id, response.id) or self._is_before(turn, thread.head_id)
                ):
                    thread.head_id = response.id
            self._grow(grown)

    def _is_before(self, turn: _Turn, head_id: str | None) -> bool:
        """Of the answers of a batch the first one counts that did not fail, whichever ends first; or the
        chosen one."""
        head, seat = self._turns.get(head_id or ""), turn.request.batch
        if head is None or seat is None or (theirs := head.request.batch) is None:
            return False
        batch = self._batches.get(seat.batch_id)
        is_open = batch is not None and batch.chosen_id is None
        return is_open and theirs.batch_id == seat.batch_id and theirs.position > seat.position

    async def batch(self, batch_id: str) -> Batch | None:
        batch = self._batches.get(batch_id)
        turns = [turn for one in batch.ids if (turn := self._turns.get(one)) is not None] if batch else []
        if batch is None or not turns:
            return None
        request = turns[0].request
        return Batch(
            batch_id,
            request.user,
            request.settings.conversation_id,
            request.prompt,
            request.created_at,
            tuple(turn.task for turn in turns),
            batch.chosen_id,
        )

    async def task(self, response_id: str) -> Task | None:
        turn = self._turns.get(response_id)
        return None if turn is None else turn.task

    async def choose(self, batch_id: str, response_id: str) -> None:
        batch, turn = self._batches.get(batch_id), self._turns.get(response_id)
        if batch is None or turn is None or response_id not in batch.ids:
            return
        if turn.task.status is Status.FAILED or self._any_runs(batch.ids):
            return
        thread = self._threads.get(turn.request.settings.conversation_id or "")
        if thread is not None:
            if thread.head_id in batch.ids and not self._any_runs(thread.latest_ids):
                thread.head_id = response_id
            if not self._has_followed(response_id, thread):
                return
        batch.chosen_id = response_id

    def _has_followed(self, response_id: str, thread: _Thread) -> bool:
        """Whether a conversation continues from a response, or has done so."""
        following = thread.head_id
        while following not in (None, response_id):
            turn = self._turns.get(following or "")
            following = turn.previous_id if turn else None
        return following is not None

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
        if thread is not None:
            if deleted.attempt is not None:
                thread.size -= deleted.size_bytes - _TURN_BYTES + TURN_SIZE
            if thread.head_id == response_id:
                thread.head_id = self._next_best(deleted) or deleted.previous_id
        if (seat := deleted.request.batch) is not None and (batch := self._batches.get(seat.batch_id)):
            batch.ids = [one for one in batch.ids if one != response_id]
            if batch.chosen_id == response_id:
                batch.chosen_id = None
            if not batch.ids:
                del self._batches[seat.batch_id]

    def _next_best(self, deleted: _Turn) -> str | None:
        """The answer of the same batch from which its conversation goes on instead."""
        seat = deleted.request.batch
        batch = self._batches.get(seat.batch_id) if seat is not None else None
        for one in batch.ids if batch is not None else ():
            turn = self._turns.get(one)
            if turn is not None and turn.task.status not in (Status.IN_PROGRESS, Status.FAILED):
                return one
        return None

    def _grow(self, size_bytes: int) -> None:
        self._size_bytes += size_bytes
        while len(self._turns) > self._max_turns or self._size_bytes > self._max_bytes:
            _, turn = self._turns.popitem(last=False)
            self._size_bytes -= turn.size_bytes
            if turn.request.batch is not None:
                self._batches.pop(turn.request.batch.batch_id, None)
