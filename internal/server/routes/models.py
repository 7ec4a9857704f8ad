"""/v1/models: what may be asked, and for operators what is to be loaded."""

import contextlib
import logging
import time
from collections.abc import Mapping

from aiohttp import web

from internal.biz.chat import Chat
from internal.biz.errors import Unavailable
from internal.biz.model_orders import ModelOrders
from internal.biz.models import Condition, Order, condition_of
from internal.server import deadline
from internal.server.rest import Access, AnyRoute, Call, Route
from internal.server.sse import tell, watched
from internal.server.streams import Streams
from internal.service.api.base import Body, Query
from internal.service.api.models import Model, ModelList, ModelOrder
from internal.service.codec.model_orders import STREAM, ModelTeller

log = logging.getLogger(__name__)

_BOUND = "It may take minutes; the answer comes when it is done, or after 15 minutes with an error."


class ModelRoutes:
    def __init__(self, chat: Chat, orders: ModelOrders, streams: Streams) -> None:
        self._chat = chat
        self._orders = orders
        self._streams = streams
        self._started_at = int(time.time())

    @property
    def routes(self) -> list[AnyRoute]:
        return [
            Route(
                method="GET",
                path="/v1/models",
                summary="The models of this server",
                tag="openai",
                access=Access.CALLER,
                answer=ModelList,
                handler=self.all,
            ),
            Route(
                method="GET",
                path="/v1/models/{model}",
                summary="One model",
                tag="openai",
                access=Access.CALLER,
                answer=Model,
                handler=self.one,
            ),
            Route(
                method="POST",
                path="/v1/models/{model}/load",
                summary="Load a model into its workers",
                description=_BOUND,
                tag="server",
                access=Access.OPERATOR,
                body=ModelOrder,
                answer=Model,
                also={"text/event-stream": f"With `stream: true`. {STREAM}"},
                errors=(409,),
                handler=self.load,
            ),
            Route(
                method="POST",
                path="/v1/models/{model}/unload",
                summary="Unload a model: what is asked of it waits until it is loaded again",
                description=f"What runs may finish first, for a while. {_BOUND}",
                tag="server",
                access=Access.OPERATOR,
                body=ModelOrder,
                answer=Model,
                also={"text/event-stream": f"With `stream: true`. {STREAM}"},
                errors=(409,),
                handler=self.unload,
            ),
        ]

    async def all(self, call: Call[Body, Query]) -> ModelList:
        conditions = await self._conditions()
        return ModelList(
            object="list", data=[self._model(name, conditions.get(name)) for name in self._chat.models]
        )

    async def one(self, call: Call[Body, Query]) -> Model:
        name = self._chat.require_model(call.request.match_info["model"])
        return self._model(name, (await self._conditions()).get(name))

    async def _conditions(self) -> Mapping[str, Condition]:
        """How the models are; nothing while that cannot be asked."""
        try:
            workers = await self._chat.workers()
        except Unavailable:
            return {}
        return {
            name: condition_of([worker for worker in workers if worker.model == name])
            for name in self._chat.models
        }

    def _model(self, name: str, condition: Condition | None) -> Model:
        return Model.of(name, self._started_at, condition)

    async def load(self, call: Call[ModelOrder, Query]) -> Model | web.StreamResponse:
        return await self._carry_out(call, Order.LOAD)

    async def unload(self, call: Call[ModelOrder, Query]) -> Model | web.StreamResponse:
        return await self._carry_out(call, Order.UNLOAD)

    async def _carry_out(self, call: Call[ModelOrder, Query], order: Order) -> Model | web.StreamResponse:
        request, streams = call.request, self._streams
        name = self._chat.require_model(request.match_info["model"])
        with streams.running(call.caller.address):
            errand = await self._orders.give(name, order)
            log.info(
                "an operator's order: %s",
                order,
                extra={"model": name, "address": call.caller.address, "order": errand.id},
            )
            deadline.lift(request)
            try:
                if call.body.stream:
                    return await tell(request, streams, ModelTeller(name, order, errand.follow()))
                async with contextlib.aclosing(watched(request, streams, errand.follow())) as waiting:
                    async for _ in waiting:
                        pass
            except ConnectionError:
                return web.Response()  # which nobody gets; the order is carried out all the same
            return self._model(name, errand.condition)
