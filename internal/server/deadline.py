"""How long a plain request may take, and how a handler is rid of that which waits for a model or a file."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

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


@contextlib.contextmanager
def while_it_comes(request: web.Request, silence_s: float) -> Iterator[None]:
    """Inside, the request may take as long as it needs, while its body comes: TimeoutError is raised when
    nothing has come for `silence_s` (0: never), or for up to twice that."""
    lift(request)
    deadline = request.get(_DEADLINE)
    if deadline is None or not silence_s:
        yield
        return
    loop = asyncio.get_running_loop()
    seen_bytes = -1
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal seen_bytes, timer
        before, seen_bytes = seen_bytes, request.content.total_bytes
        if seen_bytes == before and not request.content.is_eof():
            deadline.reschedule(loop.time())
        else:
            timer = loop.call_later(silence_s, look)

    timer = loop.call_later(silence_s, look)
    try:
        yield
    finally:
        timer.cancel()
