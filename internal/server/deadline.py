"""How long a plain request may take, and how a handler that has to wait for a model is rid of that."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

_DEADLINE: web.RequestKey[asyncio.Timeout] = web.RequestKey("deadline")


@contextlib.asynccontextmanager
async def bounded(request: web.Request, timeout_s: float) -> AsyncIterator[None]:
    """Raises TimeoutError when it took longer than `timeout_s` (0: no limit), unless it was lifted."""
    async with asyncio.timeout(timeout_s or None) as deadline:
        request[_DEADLINE] = deadline
        yield


def lift(request: web.Request) -> None:
    """From now on the request may take as long as it needs."""
    deadline = request.get(_DEADLINE)
    if deadline is not None:
        deadline.reschedule(None)
