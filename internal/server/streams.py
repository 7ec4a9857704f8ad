"""Plain HTTP requests that wait for a model, or carry a file: how they notice that their client has left or
does not read, and how they end with the server."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Protocol

from aiohttp import web

from internal.biz.errors import Unavailable
from internal.biz.events import Event, ResponseCompleted, ResponseFailed, ResponseIncomplete
from internal.biz.models import Response
from internal.biz.subscription import Reading
from internal.biz.turnstile import Turnstile

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""So often a request that waits looks whether its client is still there: nothing tells it."""
STOP_AGAIN_S = 1.0
STOP_TRIES = 60
"""How often, and how many times, an abandoned response is stopped while the queue cannot be reached."""


class ClientLeft(ConnectionError):
    """There is nobody to answer."""


class Stopping(Protocol):
    """Stops responses; Chat does."""

    async def cancel_unfollowed(self, response_id: str) -> None:
        """Stop a response that nobody follows. Raises Unavailable."""


class Streams:
    """All requests of this process that wait for a model. Owns the tasks that stop abandoned responses."""

    def __init__(
        self,
        chat: Stopping,
        turnstile: Turnstile,
        *,
        cancel_on_disconnect: bool,
        write_timeout_s: float,
        grace_s: float = 0.0,
    ) -> None:
        """`write_timeout_s`: how long a write may make no progress (0: for ever). `grace_s`: how long the
        client may take to come back to what can be resumed."""
        self._chat = chat
        self._turnstile = turnstile
        self._cancel_on_disconnect = cancel_on_disconnect
        self._write_timeout_s = write_timeout_s
        self._grace_s = grace_s
        self._running = 0
        self._idle = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._left: dict[str, object] = {}
        """Who was the last to leave a response that somebody may come back to."""
        self.draining = False
        self.closing = False

    def __len__(self) -> int:
        return self._running

    @contextlib.contextmanager
    def running(self, address: str) -> Iterator[None]:
        """Around a request from `address` that takes its time: it counts as a connection. Raises
        TooManyRequests, and Unavailable also when the server is about to end."""
        self.require_not_draining()
        self._turnstile.enter(address)
        self._running += 1
        try:
            yield
        finally:
            self._turnstile.leave(address)
            self._running -= 1
            if not self._running:
                self._idle.set()

    def require_not_draining(self) -> None:
        """Raises Unavailable as soon as the server is about to end."""
        if self.draining:
            raise _restarting()

    def require_open(self) -> None:
        """Raises Unavailable when the server ends."""
        if self.closing:
            raise _restarting()

    async def news(self, request: web.Request, reading: Reading) -> list[Event] | None:
        """What comes next: nothing, for a while; None: that was all.

        Raises ClientLeft, and Unavailable when the server ends.
        """
        self.require_open()
        if has_left(request):
            raise ClientLeft
        try:
            async with asyncio.timeout(LOOK_S):
                return await anext(reading, None)
        except TimeoutError:
            return []

    async def end(self, request: web.Request, reading: Reading) -> Response:
        """How the response ended, once it has. Raises as `news`."""
        while (events := await self.news(request, reading)) is not None:
            match events[-1] if events else None:
                case ResponseFailed(response) | ResponseCompleted(response) | ResponseIncomplete(response):
                    return response
        raise Unavailable("the answer was lost; ask again", code="answer_lost")

    async def write(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        """Returns when the client has taken most of what it was sent. Raises ConnectionError when it has
        left, or was dropped because it takes nothing."""
        with _Deadline(request.transport, self._write_timeout_s):
            await response.write(data)

    def abandon(self, response_id: str, *, resumable: bool = False) -> None:
        """A response has lost the request that waited for it: stop it, unless somebody else follows it. If it
        is `resumable`, there is time to come back first."""
        if self._cancel_on_disconnect:
            grace_s = self._grace_s if resumable else 0.0
            task = asyncio.create_task(self._stop_abandoned(response_id, grace_s))
            self._tasks.add(task)
            task.add_done_callback(self._reap)

    async def _stop_abandoned(self, response_id: str, grace_s: float) -> None:
        self._left[response_id] = me = object()
        await asyncio.sleep(grace_s)
        if self._left.get(response_id) is not me:
            return  # somebody else has left since, and may come back for as long
        del self._left[response_id]
        for _ in range(STOP_TRIES):
            with contextlib.suppress(Unavailable):
                await self._chat.cancel_unfollowed(response_id)
                return
            await asyncio.sleep(STOP_AGAIN_S)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("could not stop an abandoned response", exc_info=error)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new and let what runs finish; what has not is told that the server restarts."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wait_idle()
        await self.close()

    async def close(self) -> None:
        """End every request, and the tasks."""
        self.draining = self.closing = True
        with contextlib.suppress(TimeoutError):
            # Each looks up once in LOOK_S, and then has a word to say.
            async with asyncio.timeout(LOOK_S + (self._write_timeout_s or LOOK_S)):
                await self._wait_idle()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _wait_idle(self) -> None:
        while self._running:
            self._idle.clear()
            await self._idle.wait()


def _restarting() -> Unavailable:
    return Unavailable("the server is restarting; ask again in a moment", code="restarting")


def has_left(request: web.Request) -> bool:
    """Whether the connection is gone."""
    transport = request.transport
    return transport is None or transport.is_closing()


class _Deadline:
    """Aborts a transport whose client takes nothing for `timeout_s` (0: never), or for up to twice that."""

    def __init__(self, transport: asyncio.Transport | None, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._buffered_bytes = sys.maxsize
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._transport is not None and self._timeout_s:
            self._arm()

    def __exit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._look)

    def _look(self) -> None:
        assert self._transport is not None
        before, self._buffered_bytes = self._buffered_bytes, self._transport.get_write_buffer_size()
        if self._buffered_bytes < before:
            self._arm()
        else:
            self._transport.abort()
