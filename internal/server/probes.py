"""What a process without users answers: that it lives, that it is ready, and its metrics."""

from collections.abc import Callable, Mapping

import orjson
from aiohttp import web

from internal.metrics.instruments import Instruments
from internal.server.answers import guarded
from internal.server.readiness import Readiness, Standing


def build(
    readiness: Readiness, instruments: Instruments, found: Callable[[], Mapping[str, Standing]]
) -> web.Application:
    """An application with `/livez`, `/readyz` and `/metrics`. `found` says how the models stand."""

    async def livez(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        body = orjson.dumps(readiness.report(found()))
        status = 200 if readiness.ready else 503
        return web.Response(body=body, status=status, content_type="application/json")

    async def metrics(request: web.Request) -> web.Response:
        content_type = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=instruments.scrape(), headers=content_type)

    app = web.Application()
    app.on_response_prepare.append(guarded)
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app
