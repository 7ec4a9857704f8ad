"""Answers that are sent as they are made: server-sent events.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol, TypeVar

from aiohttp import web

from internal.biz.errors import SluiceError
from internal.biz.events import Event
from internal.biz.subscription import Reading
from internal.server.answers import NOT_STORED
from internal.server.streams import ClientLeft, Streams, has_left

log = logging.getLogger(__name__)

KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_S = 15.0
"""A stream is never silent for longer: proxies drop what is."""
T = TypeVar("T")
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    **NOT_STORED,
    "X-Accel-Buffering": "no",
}


class Encoder(Protocol):
    """One dialect of a stream."""

    def encode(self, events: Sequence[Event]) -> bytes:
        """What the next events of the response are; nothing, perhaps."""

    def encode_error(self, error: SluiceError) -> bytes:
        """The end of a stream that cannot go on."""


async def send(
    request: web.Request,
    streams: Streams,
    reading: Reading,
    encoder: Encoder,
    headers: Mapping[str, str],
    early: Sequence[Event] = (),
) -> web.StreamResponse:
    """Send what is read, to its end, behind what was read `early`. Raises ConnectionError when the client has
    left."""
    response = web.StreamResponse(headers={**_HEADERS, **headers})
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    try:
        if early and (data := encoder.encode(early)):
            await streams.write(request, response, data)
        await _copy(request, response, streams, reading, encoder)
    except SluiceError as error:
        await streams.write(request, response, encoder.encode_error(error))
    except ConnectionError:
        raise
    except Exception:
        log.exception("stream failed", extra={"path": request.path})
        await streams.write(request, response, encoder.encode_error(SluiceError("internal error")))
    return response


class Teller(Protocol):
    """One dialect of a stream that is no response."""

    def next(self) -> "AsyncGenerator[bytes, None]":
        """What is new, once a second at least: nothing, perhaps."""

    def encode_error(self, error: SluiceError) -> bytes:
        """The end of a stream that cannot go on."""


async def tell(request: web.Request, streams: Streams, teller: Teller) -> web.StreamResponse:
    """Send what is told, to its end. Raises ConnectionError when the client has left."""
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    clock = asyncio.get_running_loop().time
    written_at = clock()
    try:
        async with contextlib.aclosing(watched(request, streams, teller.next())) as news:
            async for data in news:
                if data or clock() - written_at >= KEEP_ALIVE_S:
                    await streams.write(request, response, data or KEEP_ALIVE)
                    written_at = clock()
    except SluiceError as error:
        await streams.write(request, response, teller.encode_error(error))
    except ConnectionError:
        raise
    except Exception:
        log.exception("stream failed", extra={"path": request.path})
        await streams.write(request, response, teller.encode_error(SluiceError("internal error")))
    return response


async def watched(
    request: web.Request, streams: Streams, news: AsyncGenerator[T, None]
) -> AsyncGenerator[T, None]:
    """The same, while there is somebody to hear it. Raises ClientLeft, and Unavailable when the server is
    about to end."""
    async with contextlib.aclosing(news):
        async for item in news:
            streams.require_not_draining()
            if has_left(request):
                raise ClientLeft
            yield item


async def _copy(
    request: web.Request,
    response: web.StreamResponse,
    streams: Streams,
    reading: Reading,
    encoder: Encoder,
) -> None:
    clock = asyncio.get_running_loop().time
    written_at = clock()
    while (events := await streams.news(request, reading)) is not None:
        data = encoder.encode(events) if events else b""
        if not data and clock() - written_at >= KEEP_ALIVE_S:
            data = KEEP_ALIVE
        if data:
            await streams.write(request, response, data)
            written_at = clock()
