"""One connection of the load test: open, ask, take the answer, ask again, hold, close.

Translates what can go wrong on a socket into causes to count. Knows no other connection.
"""

import asyncio
import os
import time
from contextlib import suppress
from typing import Literal

import aiohttp
from aiohttp import ClientWebSocketResponse, WSMsgType

from cmd.loadtest.dialects import AFTER_THE_END, Answer, Broken, Dialect, Failure, Refused
from cmd.loadtest.options import Options
from cmd.loadtest.stats import Tally

MAX_FRAME_BYTES = 32 * 1024 * 1024
"""The last event of a response carries all of its text."""
MAX_CLOSE_WAIT_S = 5.0
NO_ANSWER = "timeout: no answer"
STOPPED_SHORT = "timeout: the answer stopped short"
LOST = "connection lost without a close code"
_GOODBYE = b"goodbye"

_Socket = ClientWebSocketResponse[Literal[False]]


class Connection:
    """Counts into `tally`. Who cancels one of its methods has to `drop` it."""

    __slots__ = ("_deadline", "_dialect", "_holding_ended", "_options", "_socket", "_tally")

    def __init__(self, options: Options, dialect: Dialect, tally: Tally) -> None:
        self._options = options
        self._dialect = dialect
        self._tally = tally
        self._socket: _Socket | None = None
        self._deadline: asyncio.Timeout | None = None
        self._holding_ended = False

    async def open(self, session: aiohttp.ClientSession) -> bool:
        """Whether it opened; if not, the failure is counted."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._options.timeout_s):
                self._socket = await session.ws_connect(
                    self._options.url,
                    timeout=aiohttp.ClientWSTimeout(ws_close=min(self._options.timeout_s, MAX_CLOSE_WAIT_S)),
                    autoping=False,  # a pong marks the end of what the server had to send
                    max_msg_size=MAX_FRAME_BYTES,
                    decode_text=False,
                )
        # A server under test may break in ways nobody listed; each is a count, not the end of the test.
        except Exception as exc:
            self._tally.failure(f"not opened: {_cause(exc)}")
            return False
        self._tally.connection_opened(time.perf_counter() - started)
        return True

    async def converse(self) -> bool:
        """Ask every round. Returns whether the connection is still of use."""
        for _ in range(self._options.rounds):
            try:
                await self._ask()
            except Refused as refusal:
                self._failed(refusal.cause)
            except Exception as exc:
                self._failed(_cause(exc))
                return False
            else:
                self._tally.answered += 1
        return True

    async def hold(self) -> None:
        """Stay connected until `release`; nothing but pings may arrive meanwhile."""
        try:
            async with asyncio.timeout(None) as self._deadline:
                if await self._frame() is not None:
                    raise Broken(AFTER_THE_END)
        except Exception as exc:
            self._tally.failure(f"after the last answer: {_cause(exc)}")
        finally:
            self._holding_ended = True

    async def release(self) -> None:
        """End `hold`, once the server has sent all it had: its answer to a ping comes after that."""
        if self._socket is None or self._deadline is None or self._holding_ended:
            return
        self._deadline.reschedule(asyncio.get_running_loop().time() + self._options.timeout_s)
        # When the connection just broke, `hold` is about to see it.
        with suppress(ConnectionError):
            await self._socket.ping(_GOODBYE)

    async def close(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            self._tally.open_now -= 1
            await socket.close()

    async def drop(self) -> None:
        """Close without waiting for the server to agree."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await self.close()

    async def _ask(self) -> None:
        assert self._socket is not None
        loop, last_chunk_at = asyncio.get_running_loop(), None
        answer = self._dialect.answer()
        try:
            async with asyncio.timeout(self._options.timeout_s) as silence:
                asked_at = self._tally.message_sent()
                await self._socket.send_str(self._dialect.question)
                while not answer.done:
                    frame = await self._frame()
                    silence.reschedule(loop.time() + self._options.timeout_s)
                    if frame is not None:
                        last_chunk_at = self._take(answer, frame, asked_at, last_chunk_at)
        except TimeoutError as exc:
            raise Broken(NO_ANSWER if last_chunk_at is None else STOPPED_SHORT) from exc

    def _take(
        self, answer: Answer, frame: bytes, asked_at: float, last_chunk_at: float | None
    ) -> float | None:
        """Check and time one frame; returns when the answer's latest chunk came."""
        tally, now = self._tally, time.perf_counter()
        tally.frames += 1
        tally.last_frame_at = now
        if not answer.take(frame):
            return last_chunk_at
        if last_chunk_at is None:
            tally.first_chunk.record(now - asked_at)
        else:
            tally.between_chunks.record(now - last_chunk_at)
        return now

    async def _frame(self) -> bytes | None:
        """The next text frame; None at the goodbye. Raises Broken when the connection ends first."""
        assert self._socket is not None
        while True:
            message = await self._socket.receive()
            match message.type:
                case WSMsgType.TEXT:
                    return bytes(message.data)
                case WSMsgType.PING:
                    await self._socket.pong(message.data)
                case WSMsgType.PONG:
                    if message.data == _GOODBYE:
                        return None
                case WSMsgType.CLOSE:
                    raise Broken(_closed(message.data, message.extra))
                case WSMsgType.BINARY:
                    raise Broken("binary frame")
                case WSMsgType.ERROR:
                    raise Broken(f"broken frame: {getattr(message.data, 'code', message.data)}")
                case _:
                    raise Broken(LOST)

    def _failed(self, cause: str) -> None:
        self._tally.failed += 1
        self._tally.failure(cause)


def _closed(code: int | None, reason: str | None) -> str:
    return f"closed with {code or 'no code'}" + (f": {reason}" if reason else "")


def _cause(exc: Exception) -> str:
    match exc:
        case Failure():
            return exc.cause
        case TimeoutError():
            return "timeout"
        case aiohttp.WSServerHandshakeError():
            return f"HTTP {exc.status} instead of a WebSocket"
        case aiohttp.ClientConnectorDNSError():
            return "host not found"
        case aiohttp.ClientConnectorCertificateError():
            return f"TLS: {exc.certificate_error}"
        case aiohttp.ClientSSLError():
            return "TLS handshake failed"
        case aiohttp.ServerDisconnectedError():
            return LOST
        case OSError(errno=int(number)) if number:
            return os.strerror(number).lower()
        case ConnectionError():
            return "connection reset"
        case _:
            return f"{type(exc).__name__}: {exc}"
