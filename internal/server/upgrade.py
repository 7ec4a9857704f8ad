"""Which routes become WebSockets, and whether a request asks for it."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import web

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])


def upgradable(handler: Handler) -> Handler:
    """Marks what handles an upgrade. Elsewhere the header means nothing (RFC 9110 §7.8), so that nobody frees
    a plain request from its time limit with it."""
    handler.upgradable = True  # type: ignore[attr-defined]
    return handler


def is_upgrade(request: web.Request) -> bool:
    """Whether this is to become a WebSocket. Source: RFC 6455 §4.1."""
    return (
        request.method == "GET"
        and request.headers.get("Upgrade", "").strip().lower() == "websocket"
        and getattr(request.match_info.handler, "upgradable", False) is True
    )
