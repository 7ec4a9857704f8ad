"""The HTTP application: routes, and what every plain request has in common."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson
from aiohttp import web

from internal.biz.chat import Chat
from internal.biz.errors import InvalidRequest, NotFound, SluiceError, Unavailable
from internal.biz.session import Codec
from internal.metrics.instruments import Instruments
from internal.server.origin import is_allowed
from internal.server.readiness import Readiness
from internal.server.websocket import WebSocketServer
from internal.service.codec.responses import ResponsesCodec
from internal.service.codec.text import TextCodec
from internal.service.errors import error_body, http_status

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
        readiness: Readiness,
        instruments: Instruments,
        options: AppOptions,
    ) -> None:
        self._chat = chat
        self._websockets = websockets
        self._readiness = readiness
        self._instruments = instruments
        self._options = options
        self._started_at = int(time.time())
        # A codec has no state, so one serves every connection.
        self._responses: Codec = ResponsesCodec()
        self._text: dict[str | None, Codec] = {name: TextCodec(name) for name in (None, *chat.models)}

    def build(self) -> web.Application:
        app = web.Application(middlewares=[self._errors])
        app[SCRAPE] = self._scrape
        app.router.add_get("/ws", self.text_socket, allow_head=False)
        app.router.add_get("/v1/responses", self.responses_socket, allow_head=False)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/workers", self.workers)
        app.router.add_get("/livez", self.livez)
        app.router.add_get("/readyz", self.readyz)
        app.router.add_get("/metrics", self.metrics)
        return app

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Bound plain requests in time, and turn errors into the API's error body."""
        if is_upgrade(request):
            try:
                return await handler(request)
            except web.HTTPException as error:  # a handshake that is none
                return _http_error(request, error)
        try:
            async with asyncio.timeout(self._options.timeout_s or None):
                return await handler(request)
        except SluiceError as error:
            return _json({"error": error_body(error)}, http_status(error))
        except web.HTTPException as error:
            return _http_error(request, error)
        except TimeoutError:
            late = Unavailable("the request took too long", code="timeout")
            return _json({"error": error_body(late)}, 503)
        except Exception:
            log.exception("request failed", extra={"path": request.path})
            return _json({"error": error_body(SluiceError("internal error"))}, 500)

    async def text_socket(self, request: web.Request) -> web.StreamResponse:
        """`/ws`: bare text. `?model=NAME` chooses the model."""
        if not is_upgrade(request):
            return _upgrade_required("/ws")
        model, refusal = request.query.get("model"), self._refusal(request)
        try:
            self._chat.require_model(model)
        except NotFound as error:
            model, refusal = None, error
        return await self._websockets.serve(request, self._text[model], refusal)

    async def responses_socket(self, request: web.Request) -> web.StreamResponse:
        """`/v1/responses`: the Responses API over a WebSocket."""
        if not is_upgrade(request):
            return _upgrade_required("/v1/responses")
        return await self._websockets.serve(request, self._responses, self._refusal(request))

    def _refusal(self, request: web.Request) -> SluiceError | None:
        origin = request.headers.get("Origin")
        if is_allowed(origin, request.host, self._options.allowed_origins):
            return None
        return InvalidRequest("pages of this origin may not connect", code="origin_not_allowed")

    async def models(self, request: web.Request) -> web.Response:
        """`/v1/models`: the default one first."""
        models = [
            {"id": name, "object": "model", "created": self._started_at, "owned_by": "sluice"}
            for name in self._chat.models
        ]
        return _json({"object": "list", "data": models})

    async def livez(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(self, request: web.Request) -> web.Response:
        try:
            living = Counter(worker.model for worker in await self._chat.workers())
        except Unavailable:
            return _json({"status": "queue_unavailable", "models": {}}, 503)
        report = self._readiness.report(self._chat.models, living)
        return _json(report, 200 if self._readiness.ready else 503)

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
            living = Counter(worker.model for worker in await self._chat.workers())
            for name in self._chat.models:
                backlog = await self._chat.backlog(name)
                gauges.set(name, backlog.waiting, backlog.running, backlog.oldest_s, living[name])
        except Unavailable:
            return b""
        return gauges.scrape()

    async def workers(self, request: web.Request) -> web.Response:
        """`/v1/workers`: who generates, and how busy they are."""
        workers = [
            {
                "id": worker.name,
                "object": "worker",
                "host": worker.host,
                "model": worker.model,
                "slots": worker.slots,
                "busy": worker.busy,
                "last_heartbeat": round(worker.heartbeat_at, 3),
                "version": worker.version,
            }
            for worker in await self._chat.workers()
        ]
        return _json({"object": "list", "data": workers})


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    """What aiohttp refuses, in the API's words."""
    code = error.reason.lower().replace(" ", "_")
    refusal = InvalidRequest(f"{request.method} {request.path}: {error.reason}", code=code)
    response = _json({"error": error_body(refusal)}, error.status)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def is_upgrade(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").strip().lower() == "websocket"


def _upgrade_required(path: str) -> web.Response:
    """Source: RFC 9110 §15.5.22."""
    return web.Response(
        status=426,
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
        text=f"This is a WebSocket endpoint: connect to ws://HOST{path} (for example with wscat -c).\n",
    )


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
