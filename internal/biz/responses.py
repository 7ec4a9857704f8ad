"""The use cases of a response that was asked for earlier: see how it stands, follow, stop and delete it.

It stands in the log as long as the queue has that, and then in the storage.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from internal.biz.chat import Chat
from internal.biz.errors import NotFound, Unavailable, unknown_response
from internal.biz.events import (
    Event,
    ItemAdded,
    ItemDone,
    ReasoningDelta,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseQueued,
    Terminal,
    TextDelta,
    scores_of,
)
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.items import Item
from internal.biz.log import Cursor, Follower, ResponseLog
from internal.biz.models import Caller, ItemKind, OutputItem, Request, Response, Status
from internal.biz.ports import Queue
from internal.biz.subscription import Subscription

STOP_S = 3.0
"""How long a response may take to end that was stopped."""


class ResponseStore(Protocol):
    """Stored responses. Every call raises Unavailable while the storage cannot be reached, and NotFound when
    there is no such response, it is not `owner`'s (None: whoever knows the id may ask), or its conversation
    was deleted."""

    async def get(self, response_id: str, owner: str | None) -> Response:
        """With its output, once it has ended."""

    async def input(self, response_id: str, owner: str | None) -> Sequence[Item]:
        """What it was asked, the first piece first."""

    async def delete(self, response_id: str, owner: str | None) -> None:
        """Delete it with all that was asked and answered. What followed it follows what was before it."""


class Responses:
    """One per process. All raise NotFound for what is not there, or is not the caller's."""

    def __init__(self, chat: Chat, queue: Queue, store: ResponseStore) -> None:
        self._chat = chat
        self._queue = queue
        self._store = store

    async def get(self, caller: Caller, response_id: str) -> Response:
        """The response as it stands, with the output that there is so far."""
        try:
            cursor = await self._chat.follow(caller, response_id, -1, Subscription())
        except NotFound:
            return await self._store.get(response_id, self._chat.owner(caller))
        cursor.close()
        return snapshot(cursor.log)

    async def input(self, caller: Caller, response_id: str) -> Sequence[Item]:
        """What it was asked, the first piece first; of what is not stored nothing is known."""
        return await self._store.input(response_id, self._chat.owner(caller))

    async def follow(self, caller: Caller, response_id: str, after: int, follower: Follower) -> Cursor:
        """Follow its events behind number `after` (-1: from the start).

        When its log is forgotten, its events are as if it had been said in one go. Which of them are behind
        `after` is not known then: it is the last one only, which holds everything, and is to be told as the
        next one. Raises InvalidRequest when `after` is past the end.
        """
        try:
            return await self._chat.follow(caller, response_id, after, follower)
        except NotFound:
            response = await self._store.get(response_id, self._chat.owner(caller))
        log = ResponseLog(response_id)
        log.append(0, 0, _retold(response) if after < 0 else [_end(response)])
        return log.attach(-1, follower)

    async def cancel(self, caller: Caller, response_id: str) -> Response:
        """Stop it; harmless when it has ended. Returns how it stands then."""
        try:
            return await self._stopped(caller, response_id)
        except NotFound:
            return await self._store.get(response_id, self._chat.owner(caller))

    async def _stopped(self, caller: Caller, response_id: str) -> Response:
        await self._chat.cancel(caller, response_id)
        subscription = Subscription()
        cursor = await self._chat.follow(caller, response_id, -1, subscription)
        with contextlib.suppress(TimeoutError):
            async with contextlib.aclosing(subscription.read(cursor)) as reading, asyncio.timeout(STOP_S):
                async for _ in reading:
                    pass
        return snapshot(cursor.log)

    async def delete(self, caller: Caller, response_id: str) -> None:
        """Stop it, and delete it everywhere. Where it is a user's, it is not enough to know its id. Raises
        Conflict when it does not end soon."""
        if not self._chat.is_theirs(caller, (await self.get(caller, response_id)).user):
            raise unknown_response(response_id)
        try:
            await self._stopped(caller, response_id)
        except NotFound:
            await self._store.delete(response_id, self._chat.owner(caller))
            return
        await self._queue.forget(response_id)
        with contextlib.suppress(NotFound):  # it was not to be stored
            await self._store.delete(response_id, self._chat.owner(caller))


def snapshot(log: ResponseLog) -> Response:
    """The response as its log tells it."""
    match log.events[-1]:
        case ResponseCompleted(response) | ResponseIncomplete(response) | ResponseFailed(response):
            return response
    status, output = _so_far(log.events)
    return replace(log.asked, status=status, output=output)


def _so_far(events: Sequence[Event]) -> tuple[Status, tuple[OutputItem, ...]]:
    status, done = Status.QUEUED, list[OutputItem]()
    kind: ItemKind | None = None
    texts: list[str] = []
    for event in events:
        if isinstance(event, (TextDelta, ReasoningDelta)):  # nearly always
            texts.append(event)
        elif isinstance(event, ResponseCreated):
            status = Status.IN_PROGRESS
        elif isinstance(event, ItemAdded):
            kind, texts = event.kind, []
        elif isinstance(event, ItemDone):
            done.append(event.item)
            kind = None
    if kind is not None and kind is not ItemKind.FUNCTION_CALL:
        done.append(OutputItem(kind, "".join(texts), Status.IN_PROGRESS, scores=scores_of(texts)))
    return status, tuple(done)


def _retold(response: Response) -> Sequence[Event]:
    """The events of a response that has ended, as if it had been said in one go."""
    end = _end(response)
    request = Request(response.id, response.model, response.user, response.created_at, (), response.settings)
    queued = ResponseQueued(Response.of(request, Status.QUEUED))
    run = Transcript(Delivery(request, response.attempt, [queued], None))
    run.start()
    for item in response.output:
        run.add(item.call or (ReasoningDelta if item.kind is ItemKind.REASONING else TextDelta)(item.text))
    run.finish(Finished(FinishReason.STOP if isinstance(end, ResponseCompleted) else FinishReason.LENGTH))
    return [queued, *run.events[:-1], end]


def _end(response: Response) -> Terminal:
    match response.status:
        case Status.QUEUED | Status.IN_PROGRESS:
            # The queue has lost it; soon it will be found to have failed.
            raise Unavailable("the answer was lost; ask again", code="answer_lost")
        case Status.COMPLETED:
            return ResponseCompleted(response)
        case Status.FAILED:
            return ResponseFailed(response)
        case _:
            return ResponseIncomplete(response)
