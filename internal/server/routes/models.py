"""/v1/models: what may be asked."""

import time

from internal.biz.chat import Chat
from internal.server.rest import Access, AnyRoute, Call, Route
from internal.service.api.base import Body, Query
from internal.service.api.models import Model, ModelList


class ModelRoutes:
    def __init__(self, chat: Chat) -> None:
        self._chat = chat
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
        ]

    async def all(self, call: Call[Body, Query]) -> ModelList:
        return ModelList(object="list", data=[self._model(name) for name in self._chat.models])

    async def one(self, call: Call[Body, Query]) -> Model:
        return self._model(self._chat.require_model(call.request.match_info["model"]))

    def _model(self, name: str) -> Model:
        return Model(id=name, object="model", created=self._started_at, owned_by="sluice")
