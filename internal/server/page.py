"""The web page: static files, from memory. Knows none of what they do.

Whatever they load comes from here. Their addresses carry a hash of all of them, so that a browser keeps them
for good, and a new version of the program never meets with a module of the one before.
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).parent / "static"
PATHS = ("/", "/c/{id}")
"""Where the page is shown. Which conversation the address names is the page's to know."""

_HEADERS = {
    # What models say is shown as HTML: should a way be found to smuggle something in, it does not run, and
    # reaches no other host. Source: https://www.w3.org/TR/CSP3/
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types sluice",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Whatever this machine calls them, browsers run modules of one type only.
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_PRELOAD = '<link rel="modulepreload" href="/static/{version}/%s">'
"""Else a browser hears of each module from one that imports it, one after another."""
_MIN_GZIP_BYTES = 512


@dataclass(frozen=True, slots=True)
class _File:
    """As it is sent. `zipped` is None where that would not be smaller."""

    media_type: str
    plain: bytes
    zipped: bytes | None

    @classmethod
    def of(cls, name: str, plain: bytes) -> "_File":
        zipped = gzip.compress(plain, mtime=0) if len(plain) >= _MIN_GZIP_BYTES else plain
        return cls(_TYPES[Path(name).suffix], plain, zipped if len(zipped) < len(plain) else None)


class Page:
    """Implements RouteGroup. Reads the files when it is made.

    `max_message_bytes` is told to the page: a WebSocket that is sent more may break without a word of why.
    """

    def __init__(self, max_message_bytes: int, folder: Path = FOLDER) -> None:
        found = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.version = _hash(found)
        modules = "\n".join(_PRELOAD % name for name in found if name.endswith(".js"))
        page = found.pop("index.html").decode().replace("{modules}", modules)
        page = page.replace("{max_message_bytes}", str(max_message_bytes))
        self._page = _File.of("index.html", page.replace("{version}", self.version).encode())
        self._tag = f'"{self.version}-{max_message_bytes}"'
        self._files = {name: _File.of(name, content) for name, content in found.items()}

    def register(self, app: web.Application) -> None:
        for path in PATHS:
            app.router.add_get(path, self.page)
        for name in self._files:
            app.router.add_get(f"/static/{self.version}/{name}", self.file)

    async def page(self, request: web.Request) -> web.Response:
        """Asked for again each time, as it names the version of the rest."""
        headers = {**_HEADERS, "Cache-Control": "no-cache", "ETag": self._tag}
        if self._tag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        return _sent(request, self._page, headers)

    async def file(self, request: web.Request) -> web.Response:
        """One of those that are registered: what is asked for is never made a path."""
        name = request.path.removeprefix(f"/static/{self.version}/")
        headers = {**_HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}
        return _sent(request, self._files[name], headers)


def _hash(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _sent(request: web.Request, file: _File, headers: Mapping[str, str]) -> web.Response:
    """Source: RFC 9110 §12.5.3."""
    headers = {**headers, "Vary": "Accept-Encoding"}
    body = file.plain
    if file.zipped is not None and "gzip" in request.headers.get("Accept-Encoding", ""):
        body, headers["Content-Encoding"] = file.zipped, "gzip"
    return web.Response(body=body, content_type=file.media_type, charset="utf-8", headers=headers)
