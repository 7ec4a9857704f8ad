"""/api/health, and the declarations of what says how the server is and is not answered here."""

from aiohttp import web

from internal.biz.chat import Chat
from internal.biz.version import VERSION
from internal.server.answers import NOT_STORED, json_answer
from internal.server.readiness import Readiness, overview
from internal.server.rest import Access, AnyRoute, Call, Operation, Route
from internal.service.api.base import Body, Query
from internal.service.api.status import Health, Ready, WorkerList

BESIDE: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path="/v1/workers",
        summary="Who generates, and how busy they are",
        tag="server",
        access=Access.CALLER,
        answer=WorkerList,
    ),
    Operation(
        method="GET",
        path="/livez",
        summary="Whether the process lives",
        tag="server",
        also={"text/plain": "`ok`"},
    ),
    Operation(
        method="GET",
        path="/readyz",
        summary="Whether the process can do its work",
        tag="server",
        answer=Ready,
        unready=Ready,
    ),
    Operation(
        method="GET",
        path="/metrics",
        summary="Counters and gauges",
        tag="server",
        also={"text/plain": "For Prometheus."},
    ),
)


class StatusRoutes:
    def __init__(self, chat: Chat, readiness: Readiness) -> None:
        self._chat = chat
        self._readiness = readiness

    @property
    def routes(self) -> list[AnyRoute]:
        return [
            Route(
                method="GET",
                path="/api/health",
                summary="How the server is",
                tag="server",
                answer=Health,
                unready=Health,
                handler=self.health,
            )
        ]

    async def health(self, call: Call[Body, Query]) -> web.Response:
        report, is_ready = await overview(self._readiness, self._chat)
        response = json_answer({**report, "version": VERSION}, 200 if is_ready else 503)
        response.headers.update(NOT_STORED)
        return response
