"""The use cases of batches: one turn for several models, each of which answers for itself.

An answer is an ordinary response, with its own log, queue and end; here it is called a task. What a
conversation goes on from is the first answer that did not fail, until somebody chooses another.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from internal.biz.chat import Ask, Chat
from internal.biz.errors import Conflict, InvalidRequest, NotFound, Unavailable, unknown_batch
from internal.biz.events import (
    ResponseCompleted,
    ResponseFailed,
    ResponseIncomplete,
    ResponseQueued,
    TextDelta,
)
from internal.biz.ids import new_id, new_ids
from internal.biz.limits import Budget
from internal.biz.models import Caller, Failure, Response, Status
from internal.biz.subscription import Subscription


@dataclass(frozen=True, slots=True)
class Task:
    """A response as one answer of a batch, or by itself. Times are Unix seconds; `ended_at` is None while it
    runs. `text` is what it has said up to now, without reasoning."""

    id: str
    user: str
    model: str
    status: Status
    created_at: float
    text: str = ""
    failure: Failure | None = None
    incomplete_reason: str | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """`tasks` are in the order in which the models were named. `chosen_id`: the one that somebody chose."""

    id: str
    user: str
    conversation_id: str | None
    prompt: str
    created_at: float
    tasks: tuple[Task, ...]
    chosen_id: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the last of its tasks has ended, well or not."""
        return all(task.ended_at is not None for task in self.tasks)


@dataclass(frozen=True, slots=True)
class Begun:
    """A batch whose models have been asked. `budget`: what the caller has left."""

    batch_id: str
    conversation_id: str | None
    task_ids: Sequence[str]
    budget: Budget | None


class BatchStore(Protocol):
    """Every call raises Unavailable while the storage cannot be reached. What has ended is here; of what runs
    the text is in its log."""

    async def batch(self, batch_id: str) -> Batch | None:
        """None when there is none, or its conversation was deleted."""

    async def task(self, response_id: str) -> Task | None:
        """The same of any response that is stored."""

    async def choose(self, batch_id: str, response_id: str) -> None:
        """Mark an answer, and let the conversation continue from it.

        Does nothing unless it is an answer of the batch that did not fail, all of the batch have ended, and
        the conversation has not gone on from another one.
        """


class Batches:
    """One per process."""

    def __init__(self, chat: Chat, store: BatchStore) -> None:
        self._chat = chat
        self._store = store

    async def begin(self, caller: Caller, ask: Ask, models: Sequence[str]) -> Begun:
        """Ask several models (none: the default one), in a new conversation unless the turn continues
        something. Raises as `Chat.submit_batch`."""
        models, settings = models or (self._chat.require_model(None),), ask.settings
        if settings.conversation_id is None and settings.previous_response_id is None:
            ask = replace(ask, settings=replace(settings, conversation_id=new_id("conv")), begins=True)
        batch_id, task_ids = new_id("batch"), new_ids("resp", len(models))
        submitted = await self._chat.submit_batch(caller, ask, models, batch_id, task_ids)
        return Begun(batch_id, ask.settings.conversation_id, task_ids, submitted.budget)

    async def get(self, caller: Caller, batch_id: str) -> Batch:
        """The batch as it stands. Raises NotFound."""
        batch = await self._find(caller, batch_id)
        return replace(batch, tasks=tuple([await self._standing(caller, task) for task in batch.tasks]))

    async def task(self, caller: Caller, task_id: str) -> Task:
        """A response as it stands, of a batch or not. Raises NotFound."""
        task = await self._store.task(task_id)
        if task is None or not self._chat.is_theirs(caller, task.user):
            raise NotFound(f"there is no task {task_id!r}", code="task_not_found")
        return await self._standing(caller, task)

    async def cancel(self, caller: Caller, batch_id: str) -> Batch:
        """Stop all tasks that still run. Raises NotFound."""
        for task in (await self._find(caller, batch_id)).tasks:
            if task.ended_at is None:
                await self._stop(caller, task)
        return await self.get(caller, batch_id)

    async def _stop(self, caller: Caller, task: Task) -> None:
        try:
            await self._chat.cancel(replace(caller, user=task.user), task.id)
        except NotFound:  # it was never published, or is forgotten already
            return

    async def choose(self, caller: Caller, batch_id: str, task_id: str) -> Batch:
        """Mark the answer that the conversation continues from. Choosing it again is harmless.

        Raises NotFound, also for what is no task of the batch; InvalidRequest for an answer that failed;
        Conflict while a task of the batch still runs, and when the conversation has gone on from another one.
        """
        batch = await self._find(caller, batch_id)
        if batch.user != caller.user:
            raise unknown_batch(batch_id)
        if task_id not in (task.id for task in batch.tasks):
            raise NotFound(f"the batch has no task {task_id!r}", code="task_not_found", param="chosen")
        if batch.chosen_id != task_id:
            await self._store.choose(batch_id, task_id)
            batch = await self._find(caller, batch_id)
        if batch.chosen_id != task_id:
            raise _not_choosable(batch, task_id)
        return await self.get(caller, batch_id)

    async def _find(self, caller: Caller, batch_id: str) -> Batch:
        batch = await self._store.batch(batch_id)
        if batch is None or not self._chat.is_theirs(caller, batch.user):
            raise unknown_batch(batch_id)
        return batch

    async def _standing(self, caller: Caller, task: Task) -> Task:
        """A task that runs, with what its log says of it."""
        if task.ended_at is not None:
            return task
        try:
            cursor = await self._chat.follow(replace(caller, user=task.user), task.id, -1, Subscription())
        except (NotFound, Unavailable):
            return task  # it is about to be published, or to be found lost
        events = cursor.log.events
        cursor.close()
        match events[-1]:
            case ResponseCompleted(response) | ResponseIncomplete(response) | ResponseFailed(response):
                return ended(task, response)
            case ResponseQueued():
                return replace(task, status=Status.QUEUED)
        return replace(task, text="".join([event for event in events if isinstance(event, TextDelta)]))


def ended(task: Task, response: Response, ended_at: float | None = None) -> Task:
    """How a task ended, and when, if that is known. Of an answer that failed nothing is kept."""
    return replace(
        task,
        status=response.status,
        text="" if response.status is Status.FAILED else response.text,
        failure=response.failure,
        incomplete_reason=response.incomplete_reason,
        ended_at=ended_at or response.completed_at or time.time(),
    )


def _not_choosable(batch: Batch, task_id: str) -> InvalidRequest | Conflict:
    task = next(task for task in batch.tasks if task.id == task_id)
    if task.status is Status.FAILED:
        return InvalidRequest(
            "this answer failed; choose one that did not", code="task_failed", param="chosen"
        )
    if not batch.is_complete:
        return Conflict("not all answers of this batch have ended yet", code="conversation_locked")
    return Conflict(
        "the conversation has gone on from another answer already; choose before the next turn",
        code="conversation_moved_on",
    )
