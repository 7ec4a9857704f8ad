"""The HTTP application: routes, and what every plain request has in common."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiohttp import web

from internal.biz.chat import Chat
from internal.biz.errors import InvalidRequest, NotFound, SluiceError, Unavailable
from internal.biz.models import Caller, WorkerInfo
from internal.biz.session import Codec
from internal.metrics.instruments import Instruments
from internal.server.answers import error_answer, guarded, json_answer, refused_by_aiohttp
from internal.server.deadline import bounded
from internal.server.identity import Identity, chosen_subprotocol, is_beta
from internal.server.origin import is_allowed
from internal.server.readiness import Readiness, overview
from internal.server.rest import RouteGroup
from internal.server.upgrade import is_upgrade, upgradable
from internal.server.websocket import Visit, WebSocketServer
from internal.service.codec.realtime import RealtimeCodec
from internal.service.codec.responses import ResponsesCodec
from internal.service.codec.text import TextCodec

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SCRAPE: web.AppKey[Callable[[], Awaitable[bytes]]] = web.AppKey("SCRAPE")
"""What `/metrics` answers with. This process's own, where nobody sets another."""


@dataclass(frozen=True, slots=True)
class AppOptions:
    """`allowed_origins` empty: same host only. `timeout_s` bounds a plain request (0: no limit)."""

    allowed_origins: list[str]
    timeout_s: float


class App:
    """Handlers of all routes."""

    def __init__(
        self,
        chat: Chat,
        websockets: WebSocketServer,
        identity: Identity,
        readiness: Readiness,
        instruments: Instruments,
        options: AppOptions,
        groups: Sequence[RouteGroup] = (),
    ) -> None:
        """`groups`: what else is answered here."""
        self._chat = chat
        self._websockets = websockets
        self._identity = identity
        self._readiness = readiness
        self._instruments = instruments
        self._options = options
        self._groups = groups
        # These codecs have no state, so one serves every connection.
        self._responses: Codec = ResponsesCodec()
        self._text: dict[str | None, Codec] = {name: TextCodec(name) for name in (None, *chat.models)}

    def build(self) -> web.Application:
        app = web.Application(middlewares=[self._errors])
        app[SCRAPE] = self._scrape
        self._identity.register(app)
        app.on_response_prepare.append(guarded)
        app.router.add_get("/ws", self.text_socket, allow_head=False)
        app.router.add_get("/v1/responses", self.responses_socket, allow_head=False)
        app.router.add_get("/v1/realtime", self.realtime_socket, allow_head=False)
        app.router.add_get("/v1/workers", self.workers)
        app.router.add_get("/livez", self.livez)
        app.router.add_get("/readyz", self.readyz)
        app.router.add_get("/metrics", self.metrics)
        for group in self._groups:
            group.register(app)
        return app

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Bound plain requests in time, and turn errors into the API's error body."""
        try:
            if is_upgrade(request):
                return await handler(request)
            async with bounded(request, self._options.timeout_s):
                return await handler(request)
        except SluiceError as error:
            return error_answer(error)
        except web.HTTPException as error:
            return refused_by_aiohttp(request, error)
        except TimeoutError:
            return error_answer(Unavailable("the request took too long", code="timeout"))
        except Exception:
            log.exception("request failed", extra={"path": request.path})
            return error_answer(SluiceError("internal error"))

    @upgradable
    async def text_socket(self, request: web.Request) -> web.StreamResponse:
        """`/ws`: bare text. `?model=NAME` chooses the model, `?conversation=ID` what is continued."""
        if not is_upgrade(request):
            return _upgrade_required("/ws")
        model, refusal = self._chosen_model(request)
        visit = await self._visit(request, _chosen_conversation(request), refusal)
        return await self._websockets.serve(request, self._text[model], visit)

    @upgradable
    async def responses_socket(self, request: web.Request) -> web.StreamResponse:
        """`/v1/responses`: the Responses API over a WebSocket."""
        if not is_upgrade(request):
            return _upgrade_required("/v1/responses")
        return await self._websockets.serve(request, self._responses, await self._visit(request))

    @upgradable
    async def realtime_socket(self, request: web.Request) -> web.StreamResponse:
        """`/v1/realtime`: the Realtime API, text only. The address says what it does on `/ws`."""
        if not is_upgrade(request):
            return _upgrade_required("/v1/realtime")
        model, refusal = self._chosen_model(request)
        if is_beta(request):
            refusal = InvalidRequest("the beta of the Realtime API is not spoken here; use client.realtime")
        conversation_id = _chosen_conversation(request)
        codec = RealtimeCodec(self._chat.require_model(model), conversation_id)
        visit = await self._visit(request, conversation_id, refusal)
        return await self._websockets.serve(request, codec, visit)

    def _chosen_model(self, request: web.Request) -> tuple[str | None, SluiceError | None]:
        """The model that the address names, or what is wrong with it."""
        model = request.query.get("model") if request.query_string else None
        try:
            self._chat.require_model(model)
        except NotFound as error:
            return None, error
        return model, None

    async def _visit(
        self, request: web.Request, conversation_id: str | None = None, refusal: SluiceError | None = None
    ) -> Visit:
        """Who comes. With `refusal`, or when they may not come in, they are told so after the upgrade."""
        caller = Caller("", self._identity.address_of(request))
        try:
            self._require_origin(request)
            if refusal is None:
                caller = await self._identity.identify(request)
        except SluiceError as error:
            refusal = error
        return Visit(caller, refusal, conversation_id, chosen_subprotocol(request))

    def _require_origin(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        if not is_allowed(origin, request.host, self._options.allowed_origins):
            raise InvalidRequest("pages of this origin may not connect", code="origin_not_allowed")

    async def _require_user(self, request: web.Request) -> None:
        if self._identity.required:
            await self._identity.identify_user(request)

    async def livez(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(self, request: web.Request) -> web.Response:
        report, is_ready = await overview(self._readiness, self._chat)
        return json_answer(report, 200 if is_ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        content_type = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        body = await request.app[SCRAPE]() + await self._scrape_queue()
        return web.Response(body=body, headers=content_type)

    async def _scrape(self) -> bytes:
        return self._instruments.scrape()

    async def _scrape_queue(self) -> bytes:
        """How the queue stands; nothing while it cannot be reached."""
        gauges = self._instruments.queue
        try:
            living = Counter(it.model for it in await self._chat.workers() if it.takes_requests)
            for name in self._chat.models:
                backlog = await self._chat.backlog(name)
                gauges.set(name, backlog.waiting, backlog.running, backlog.oldest_s, living[name])
        except Unavailable:
            return b""
        return gauges.scrape()

    async def workers(self, request: web.Request) -> web.Response:
        """`/v1/workers`: who generates, and how busy they are. For users only, where one has to be one."""
        await self._require_user(request)
        workers = [_worker(worker) for worker in await self._chat.workers()]
        return json_answer({"object": "list", "data": workers})


def _worker(worker: WorkerInfo) -> dict[str, object]:
    condition = worker.condition  # but not why it failed, which may name paths: that is for operators
    return {
        "id": worker.name,
        "object": "worker",
        "host": worker.host,
        "model": worker.model,
        "state": condition.state,
        "progress": round(condition.progress, 2),
        "slots": worker.slots,
        "busy": worker.busy,
        "last_heartbeat": round(worker.heartbeat_at, 3),
        "version": worker.version,
    }


def _chosen_conversation(request: web.Request) -> str | None:
    """The conversation that the address names. A query that is looked at lives as long as the socket."""
    return request.query.get("conversation") or None if request.query_string else None


def _upgrade_required(path: str) -> web.Response:
    """Source: RFC 9110 §15.5.22."""
    return web.Response(
        status=426,
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
        text=f"This is a WebSocket endpoint: connect to ws://HOST{path} (for example with wscat -c).\n",
    )
