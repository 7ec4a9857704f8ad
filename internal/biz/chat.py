"""The use cases: ask a model, follow an answer, stop it."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from internal.biz.attachments import Attachments
from internal.biz.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    SluiceError,
    Unavailable,
    UnsupportedParameter,
    unknown_response,
)
from internal.biz.events import QueueUpdate
from internal.biz.guests import GUEST_PREFIX
from internal.biz.limits import Budget, Limiter
from internal.biz.log import Cursor, Follower
from internal.biz.models import (
    Backlog,
    Caller,
    Failure,
    Feature,
    Message,
    Request,
    Response,
    Seat,
    Settings,
    Status,
    WorkerInfo,
)
from internal.biz.own_upstreams import OwnUpstreams
from internal.biz.ports import History, Queue

MAX_BATCH = 8
"""Models that may be asked at once."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One turn of a user: what is new, for which model (None: the default), and how to answer. Nothing may be
    new where the model has something else to go by: instructions, or what was said before.

    `begins`: the conversation that the settings name does not exist yet, and begins with this turn.
    """

    turn: tuple[Message, ...]
    model: str | None = None
    settings: Settings = Settings()
    begins: bool = False


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a turn: what the caller has left, and which of its responses could not be published, and
    so have failed already."""

    budget: Budget | None
    refused: Mapping[str, SluiceError]


@dataclass(frozen=True, slots=True)
class ChatRules:
    """`models` may be asked for; the first is the default, those in `titling` find titles for conversations,
    `features` say what each can do that not all can, and `own` asks the upstream that each user has set for
    themselves (None: none does). With `owners_only` a response can be followed, continued and stopped only by
    who asked for it; otherwise it is enough to know its id, which cannot be guessed."""

    models: tuple[str, ...]
    titling: tuple[str, ...] = ()
    features: Mapping[str, frozenset[Feature]] = field(default_factory=dict)
    owners_only: bool = False
    own: str | None = None


class Callers(Protocol):
    """Knows who is let in; the accounts do."""

    async def still_valid(self, caller: Caller) -> bool:
        """Whether somebody who was identified earlier would be again. Raises Unavailable."""


class Titling(Protocol):
    """Finds titles for conversations."""

    def expect(self) -> None:
        """A conversation that wants a title has begun."""


class Chat:
    """Between sessions and the queue. One per process."""

    def __init__(
        self,
        queue: Queue,
        history: History,
        limiter: Limiter,
        settle: Callable[[Sequence[Response]], Awaitable[None]],
        rules: ChatRules,
        callers: Callers | None = None,
        titles: Titling | None = None,
        attachments: Attachments | None = None,
        upstreams: OwnUpstreams | None = None,
    ) -> None:
        """`settle` stores how responses ended. Without `callers` all are guests; without `attachments` there
        are no files to refer to; without `upstreams` it is for the worker to say that a user has set none."""
        self._queue = queue
        self._history = history
        self._limiter = limiter
        self._settle = settle
        self._rules = rules
        self._callers = callers
        self._titles = titles
        self._attachments = attachments or Attachments()
        self._upstreams = upstreams
        self.models = rules.models
        self.own_model = rules.own
        self.owners_only = rules.owners_only

    async def is_still_valid(self, caller: Caller) -> bool:
        """Whether a caller who came in some time ago would come in now. Raises Unavailable."""
        return caller.is_guest or self._callers is None or await self._callers.still_valid(caller)

    def owner(self, caller: Caller) -> str | None:
        """Whose a response has to be that the caller names; None: anybody's."""
        return caller.user if self._rules.owners_only else None

    def is_theirs(self, caller: Caller, owner: str) -> bool:
        """Whether what `owner` has is the caller's, too. What a guest has is, but with `owners_only`, theirs
        who know its id: a client without cookies is another guest each time."""
        return owner == caller.user or (not self.owners_only and owner.startswith(GUEST_PREFIX))

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

    def _require_features(self, model: str, ask: Ask) -> None:
        """Raises UnsupportedParameter for what the model's engine cannot do."""
        wanted = ask.settings.features
        if any(it.is_image for message in ask.turn for it in message.attachments):
            wanted |= {Feature.IMAGES}
        for feature in sorted(wanted - self._rules.features.get(model, frozenset())):
            raise UnsupportedParameter(f"the model {model!r} cannot do this: {feature}", param=feature)

    async def _require_upstream(self, caller: Caller, requests: Sequence[Request]) -> None:
        """Raises InvalidRequest where the caller would have to have set an upstream, and Unavailable."""
        if self._upstreams is not None and any(request.model == self.own_model for request in requests):
            await self._upstreams.of(caller.user)

    async def submit(self, caller: Caller, ask: Ask, response_id: str) -> Budget | None:
        """Store the turn and publish the request under a new id. Returns what the caller has left.

        Raises InvalidRequest, NotFound, Conflict, TooManyRequests or Unavailable; then nothing was published.
        When it is cancelled, the response may have been published.
        """
        model = self.require_model(ask.model)
        request = Request(response_id, model, caller.user, time.time(), ask.turn, ask.settings)
        submitted = await self._submit(caller, ask, [request])
        for error in submitted.refused.values():
            raise error
        return submitted.budget

    async def submit_batch(
        self, caller: Caller, ask: Ask, models: Sequence[str], batch_id: str, response_ids: Sequence[str]
    ) -> Submitted:
        """Ask several models (`ask` names none), each under a new id of its own, in their order. One that
        cannot be reached does not keep the others from answering.

        Raises as `submit`, when there is something wrong with any of it, or no model could be asked.
        """
        for model in models:
            self.require_model(model)
        if len(set(models)) < len(models):
            raise InvalidRequest("a model is named twice", code="invalid_value", param="model")
        if len(models) > MAX_BATCH:
            raise InvalidRequest(
                f"at most {MAX_BATCH} models are asked at once", code="too_many_models", param="model"
            )
        now = time.time()
        requests = [
            Request(one, model, caller.user, now, ask.turn, ask.settings, Seat(batch_id, position))
            for position, (model, one) in enumerate(zip(models, response_ids, strict=True))
        ]
        submitted = await self._submit(caller, ask, requests)
        if len(submitted.refused) == len(requests):
            raise submitted.refused[response_ids[0]]
        return submitted

    async def _submit(self, caller: Caller, ask: Ask, requests: Sequence[Request]) -> Submitted:
        """Those of one turn."""
        settings = ask.settings
        _require_place(ask)
        if not (ask.turn or settings.instructions or (requests[0].continues and not ask.begins)):
            raise InvalidRequest("the input is empty", param="input")
        for request in requests:
            self._require_features(request.model, ask)
        await self._require_upstream(caller, requests)
        owner = self.owner(caller)
        is_titled = any(request.model in self._rules.titling for request in requests)
        wants_title = settings.conversation_id is not None and is_titled
        budget = await self._admit(caller, requests)
        is_known = False
        try:
            if any(message.attachments for message in ask.turn):
                requests = await self._attached(caller, ask, requests)
            if settings.store:
                await self._begin(requests, owner, begins=ask.begins, wants_title=wants_title)
            elif requests[0].continues and not ask.begins:
                await self._history.check(requests[0], owner)
            is_known = True
            refused = await self._publish(requests)
        except SluiceError as error:
            if isinstance(error, Unavailable):
                await self._fail(requests, error)
            else:  # nothing was stored that would have to end
                await self._leave(requests)
            raise
        except BaseException as error:
            # What was published and then cancelled, somebody else ends.
            if not (is_known and isinstance(error, asyncio.CancelledError)):
                await self._leave(requests)
            raise
        if wants_title and settings.store and self._titles is not None and len(refused) < len(requests):
            self._titles.expect()
        return Submitted(budget, refused)

    async def _admit(self, caller: Caller, requests: Sequence[Request]) -> Budget | None:
        try:
            return await self._limiter.admit(caller, *(request.response_id for request in requests))
        except asyncio.CancelledError:  # it may have been admitted
            await self._leave(requests)
            raise

    async def _leave(self, requests: Sequence[Request]) -> None:
        """Give back the places of what is not published; nobody else would."""
        await self._limiter.settle([Response.of(request, Status.CANCELLED) for request in requests])

    async def _begin(
        self, requests: Sequence[Request], owner: str | None, *, begins: bool, wants_title: bool
    ) -> None:
        if requests[0].batch is None:
            await self._history.begin(requests[0], owner, begins=begins, wants_title=wants_title)
        else:
            await self._history.begin_batch(requests, owner, begins=begins, wants_title=wants_title)

    async def _publish(self, requests: Sequence[Request]) -> dict[str, SluiceError]:
        """Returns what could not be."""
        refused: dict[str, SluiceError] = {}
        for request in requests:
            try:
                await self._queue.publish(request)
            except SluiceError as error:
                await self._fail([request], error)
                refused[request.response_id] = error
        return refused

    async def _fail(self, requests: Sequence[Request], error: SluiceError) -> None:
        failure = Failure(error.code, error.message)
        with contextlib.suppress(Unavailable):
            await self._settle([Response.of(request, Status.FAILED, failure=failure) for request in requests])

    async def _attached(self, caller: Caller, ask: Ask, requests: Sequence[Request]) -> list[Request]:
        """The requests with their files as they are stored and sent. Raises as `submit`."""
        turn = await self._attachments.resolve(caller, ask.turn, store=ask.settings.store)
        for request in requests:
            self._require_features(request.model, replace(ask, turn=turn))
        return [replace(request, messages=turn) for request in requests]

    async def submit_again(self, earlier: Request, response_id: str) -> None:
        """Publish what `earlier` asked under a new id, and store it as a turn of its own.

        The dialogue before it may be forgotten by now: then it begins anew. Raises as `submit`.
        """
        caller = Caller(earlier.user)
        ask = Ask(earlier.messages, earlier.model, earlier.settings)
        try:
            await self.submit(caller, ask, response_id)
        except (NotFound, Conflict):
            if not earlier.continues:
                raise
            alone = replace(earlier.settings, previous_response_id=None, conversation_id=None, replaces=None)
            await self.submit(caller, replace(ask, settings=alone), response_id)

    async def follow(
        self,
        caller: Caller,
        response_id: str,
        after: int,
        follower: Follower,
        *,
        queue_updates: bool = False,
    ) -> Cursor:
        """Follow a response behind event `after` (-1: from the start). Raises NotFound."""
        cursor = await self._queue.follow(response_id, after, follower, queue_updates=queue_updates)
        if self.owner(caller) not in (None, cursor.log.asked.user):
            cursor.close()
            raise unknown_response(response_id)
        return cursor

    async def cancel(self, caller: Caller, response_id: str) -> None:
        """Stop a response; harmless when it has ended. Raises NotFound."""
        if self.owners_only:
            cursor = await self.follow(caller, response_id, -1, _Nobody())
            cursor.close()
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


def _require_place(ask: Ask) -> None:
    """Raises InvalidRequest for a turn that is to stand beside another one where nothing stands."""
    settings = ask.settings
    if settings.replaces is None:
        return
    if settings.conversation_id is None or ask.begins:
        raise InvalidRequest("what replaces a turn names its conversation, too", param="replaces")
    if not settings.store:
        raise InvalidRequest("what replaces a turn has to be stored", param="replaces")


class _Nobody:
    """A follower that is not interested."""

    def wake(self) -> None:
        return

    def queue_update(self, cursor: Cursor, update: QueueUpdate) -> None:
        return
