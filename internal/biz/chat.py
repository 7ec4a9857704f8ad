"""The use cases: ask a model, follow an answer, stop it."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from internal.biz.errors import Conflict, InvalidRequest, NotFound, SluiceError, Unavailable
from internal.biz.log import Cursor, Follower
from internal.biz.models import (
    Backlog,
    Failure,
    Message,
    Request,
    Response,
    Role,
    Settings,
    Status,
    WorkerInfo,
)
from internal.biz.ports import History, Queue


@dataclass(frozen=True, slots=True)
class Ask:
    """One turn of a user: what is new, for which model (None: the default), and how to answer."""

    turn: tuple[Message, ...]
    model: str | None = None
    settings: Settings = Settings()


class Chat:
    """Between sessions and the queue. One per process."""

    def __init__(self, queue: Queue, history: History, models: Sequence[str]) -> None:
        """`models` are the names that may be asked for; the first is the default."""
        self._queue = queue
        self._history = history
        self.models = tuple(models)

    def require_model(self, name: str | None) -> str:
        """The model of this name, or the default. Raises NotFound."""
        if name is None:
            return self.models[0]
        if name not in self.models:
            known = ", ".join(self.models)
            raise NotFound(
                f"there is no model {name!r}; this server has: {known}",
                code="model_not_found",
                param="model",
            )
        return name

    async def submit(self, user: str, ask: Ask, response_id: str) -> None:
        """Store the turn and publish the request under a new id.

        Raises InvalidRequest, NotFound, Conflict or Unavailable; then nothing was published. When it is
        cancelled, the response may have been published.
        """
        model = self.require_model(ask.model)
        settings = ask.settings
        if not ask.turn:
            raise InvalidRequest("the input is empty", param="input")
        messages = ask.turn
        if settings.previous_response_id is not None:
            messages = await self._history.messages(settings.previous_response_id) + messages
        if settings.instructions is not None:
            messages = (Message(Role.SYSTEM, settings.instructions), *messages)
        request = Request(response_id, model, user, time.time(), messages, settings)
        if settings.store:
            await self._history.begin(request, ask.turn)
        try:
            await self._queue.publish(request)
        except SluiceError as error:
            failure = Failure(error.code, error.message)
            with contextlib.suppress(Unavailable):
                await self._history.finish([Response.of(request, Status.FAILED, failure=failure)])
            raise

    async def submit_again(self, earlier: Request, response_id: str) -> None:
        """Publish what `earlier` asked under a new id, and store it as a turn of its own.

        The dialogue before it may be forgotten by now: then all of it becomes this turn. Raises as `submit`.
        """
        settings, turn = earlier.settings, earlier.messages
        if settings.instructions is not None:
            turn = turn[1:]
        if settings.previous_response_id is not None:
            before: tuple[Message, ...] = ()
            with contextlib.suppress(NotFound, Conflict):
                before = await self._history.messages(settings.previous_response_id)
            if before and turn[: len(before)] == before:
                turn = turn[len(before) :]
            else:
                settings = replace(settings, previous_response_id=None)
        await self.submit(earlier.user, Ask(turn, earlier.model, settings), response_id)

    async def follow(
        self, response_id: str, after: int, follower: Follower, *, queue_updates: bool = False
    ) -> Cursor:
        """Follow a response behind event `after` (-1: from the start). Raises NotFound."""
        return await self._queue.follow(response_id, after, follower, queue_updates=queue_updates)

    async def cancel(self, response_id: str) -> None:
        """Stop a response; harmless when it has ended. Raises NotFound."""
        await self._queue.cancel(response_id)

    async def cancel_unfollowed(self, response_id: str) -> None:
        """Stop a response that still runs and that nobody follows any more."""
        if await self._queue.followers(response_id) == 0:
            try:
                await self._queue.cancel(response_id)
            except NotFound:
                return

    async def backlog(self, model: str) -> Backlog:
        """What a model has to do."""
        return await self._queue.backlog(model)

    async def workers(self) -> Sequence[WorkerInfo]:
        """Who generates."""
        return await self._queue.workers()
