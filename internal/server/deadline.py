"""How long a plain request may take, and how a handler is rid of that which waits for a model or a file."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from aiohttp import web

LOOK_S = 0.5
"""So often a request whose body comes is looked at."""
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
def while_it_comes(request: web.Request, silence_s: float, is_over: Callable[[], bool]) -> Iterator[None]:
    """Inside, the request may take as long as it needs, while its body comes: TimeoutError is raised when
    nothing has come for `silence_s` (0: for ever), and soon after `is_over`."""
    lift(request)
    deadline = request.get(_DEADLINE)
    if deadline is None:
        yield
        return
    loop = asyncio.get_running_loop()
    seen_bytes, came_at = 0, loop.time()
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal seen_bytes, came_at, timer
        if request.content.total_bytes != seen_bytes:
            seen_bytes, came_at = request.content.total_bytes, loop.time()
        is_silent = 0 < silence_s <= loop.time() - came_at
        if (is_silent or is_over()) and not request.content.is_eof():
            deadline.reschedule(loop.time())
        else:
            timer = loop.call_later(LOOK_S, look)

    timer = loop.call_later(LOOK_S, look)
    try:
        yield
    finally:
        timer.cancel()
