"""/v1/batches and /v1/tasks: several models at once."""

import time
from collections.abc import Sequence

from internal.biz.batches import Batches
from internal.biz.chat import Ask
from internal.biz.errors import NotFound
from internal.biz.models import Caller
from internal.server.rest import Access, AnyRoute, Call, Route, WithHeaders
from internal.service.api.base import Body, Query
from internal.service.api.batches import BatchBegun, BatchCreate, BatchObject, Choice, TaskObject
from internal.service.rate_limit import budget_headers


async def begun(batches: Batches, caller: Caller, ask: Ask, models: Sequence[str]) -> WithHeaders:
    """The answer to who asks several models."""
    try:
        batch = await batches.begin(caller, ask, models)
    except NotFound as error:
        if error.code != "conversation_not_found":
            raise
        raise NotFound(error.message, code=error.code, param="conversation_id") from error
    return WithHeaders(BatchBegun.of(batch), budget_headers(batch.budget))


class BatchRoutes:
    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    @property
    def routes(self) -> list[AnyRoute]:
        return [
            Route(
                method="POST",
                path="/v1/batches",
                summary="Ask several models at once",
                description="Each answers for itself, and one that fails does not fail the others. The "
                "answers are one turn of the conversation. They go on when nobody waits for them.",
                tag="batches",
                access=Access.CALLER,
                body=BatchCreate,
                answer=BatchBegun,
                status=202,
                errors=(404, 409),
                handler=self.create,
            ),
            Route(
                method="GET",
                path="/v1/batches/{id}",
                summary="How far the answers are",
                tag="batches",
                access=Access.CALLER,
                answer=BatchObject,
                handler=self.get,
            ),
            Route(
                method="PATCH",
                path="/v1/batches/{id}",
                summary="Choose the answer that the conversation continues from",
                description="Without a choice it is the first that did not fail, in the models' order.",
                tag="batches",
                access=Access.CALLER,
                body=Choice,
                answer=BatchObject,
                errors=(409,),
                handler=self.choose,
            ),
            Route(
                method="POST",
                path="/v1/batches/{id}/cancel",
                summary="Stop the answers that still run",
                tag="batches",
                access=Access.CALLER,
                answer=BatchObject,
                handler=self.cancel,
            ),
            Route(
                method="GET",
                path="/v1/tasks/{id}",
                summary="How far one answer is",
                description="Of a batch, or any other response.",
                tag="batches",
                access=Access.CALLER,
                answer=TaskObject,
                handler=self.task,
            ),
        ]

    async def create(self, call: Call[BatchCreate, Query]) -> WithHeaders:
        return await begun(self._batches, call.caller, call.body.ask_all(), call.body.models)

    async def get(self, call: Call[Body, Query]) -> BatchObject:
        return BatchObject.of(await self._batches.get(call.caller, call.id), time.time())

    async def choose(self, call: Call[Choice, Query]) -> BatchObject:
        batch = await self._batches.choose(call.caller, call.id, call.body.chosen)
        return BatchObject.of(batch, time.time())

    async def cancel(self, call: Call[Body, Query]) -> BatchObject:
        return BatchObject.of(await self._batches.cancel(call.caller, call.id), time.time())

    async def task(self, call: Call[Body, Query]) -> TaskObject:
        return TaskObject.of(await self._batches.task(call.caller, call.id), time.time())
