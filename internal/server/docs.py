"""/docs: a page that shows /openapi.json. All that it needs comes from here, so that it works offline.

Swagger UI's files are those of the package swagger-ui-py, whose code is never imported.
"""

from importlib.util import find_spec
from pathlib import Path

from aiohttp import web

from internal.biz.errors import NotFound

_PAGE = b"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sluice API</title>
<link rel="icon" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="api"><noscript>This page needs JavaScript; the description is at /openapi.json.</noscript></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
# Without validatorUrl the page would ask another server whether the description is valid.
_START = b"""\
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
"""
_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
_CACHED = "public, max-age=86400"
_HEADERS = {
    # Swagger UI's icons are data: images, and it sets style attributes.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class Docs:
    """Implements RouteGroup."""

    def __init__(self) -> None:
        spec = find_spec("swagger_ui")
        places = spec.submodule_search_locations if spec is not None else None
        self._folder = Path(places[0]) / "static" if places else None

    def register(self, app: web.Application) -> None:
        app.router.add_get("/docs", self.page)
        app.router.add_get("/docs/start.js", self.start)
        for name in _ASSETS:
            app.router.add_get(f"/docs/{name}", self.asset)

    async def page(self, request: web.Request) -> web.Response:
        headers = {**_HEADERS, "Cache-Control": "no-cache"}
        return web.Response(body=_PAGE, content_type="text/html", charset="utf-8", headers=headers)

    async def start(self, request: web.Request) -> web.Response:
        headers = {**_HEADERS, "Cache-Control": _CACHED}
        return web.Response(body=_START, content_type="text/javascript", charset="utf-8", headers=headers)

    async def asset(self, request: web.Request) -> web.StreamResponse:
        """One of those that are registered: what is asked for is never made a path."""
        if self._folder is None:
            raise NotFound("the package swagger-ui-py is not installed; the description is at /openapi.json")
        name = request.path.rpartition("/")[2]
        return web.FileResponse(self._folder / name, headers={**_HEADERS, "Cache-Control": _CACHED})
