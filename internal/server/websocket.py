"""One WebSocket: aiohttp's handshake, parser and close; our own writes.

A session's ready frames leave in one `transport.write`, past aiohttp's writer, which would write each
alone. That needs `compress=False`, and nothing may be written after the close frame.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import WebSocketError, WSMessage, WSMsgType, web
from aiohttp.abc import AbstractStreamWriter

from internal.biz.close import CloseCode
from internal.biz.errors import InvalidRequest, SluiceError
from internal.biz.models import Caller
from internal.biz.session import Codec, Session
from internal.biz.session_manager import SessionManager
from internal.metrics.instruments import Traffic
from internal.service.errors import close_code

log = logging.getLogger(__name__)

MAX_REASON_BYTES = 123
"""RFC 6455 §5.5: a control frame has at most 125 bytes, two of which are the close code."""
FRAMES_PER_TURN = 64
"""After so many client frames in a row the event loop gets its turn."""
MAX_CONTROL_FRAMES_PER_S = 1000
"""More pings and pongs than this are a flood."""
CLOSE_TIMEOUT_S = 5.0
"""How long the peer of a closing connection may take before it is dropped."""


_SHORT_HEADS = [bytes((0x81, size)) for size in range(126)]


def frame(payload: bytes) -> bytes:
    """A final, unmasked text frame. Source: RFC 6455 §5.2."""
    size = len(payload)
    if size < 126:
        return _SHORT_HEADS[size] + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


class WebSocketConnection:
    """Implements Connection over a prepared aiohttp response."""

    __slots__ = (
        "_buffer_bytes",
        "_closing",
        "_deadline",
        "_drain",
        "_protocol",
        "_traffic",
        "_transport",
        "code",
        "remote",
    )

    def __init__(
        self,
        request: web.Request,
        stream: AbstractStreamWriter,
        traffic: Traffic,
        buffer_bytes: int,
        address: str,
    ) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client left during the handshake")
        transport.set_write_buffer_limits(high=buffer_bytes)
        self.remote = address
        self.code = 1006
        self._transport = transport
        self._protocol = request.protocol
        self._drain = stream.drain
        self._traffic = traffic
        self._buffer_bytes = buffer_bytes
        self._closing = False
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def buffered_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def frame(self, payloads: Sequence[bytes]) -> bytes:
        if self._closing:
            return b""
        frames = frame(payloads[0]) if len(payloads) == 1 else b"".join(map(frame, payloads))
        traffic = self._traffic
        traffic.frames_out += len(payloads)
        traffic.bytes_out += len(frames)
        return frames

    def write(self, frames: bytes) -> bool:
        transport = self._transport
        if transport.is_closing():
            return False
        transport.write(frames)
        # The same as protocol.writing_paused, without touching another object.
        return transport.get_write_buffer_size() > self._buffer_bytes

    def ping(self) -> None:
        self._control(WSMsgType.PING, b"")

    def pong(self, payload: bytes) -> None:
        """Answer a ping, unless the peer does not read: then it gets the answer to a later one."""
        if not self._protocol.writing_paused:
            self._control(WSMsgType.PONG, payload)

    def _control(self, opcode: WSMsgType, payload: bytes) -> None:
        if not self._closing and not self._transport.is_closing():
            self._transport.write(bytes((0x80 | opcode, len(payload))) + payload)

    async def drain(self) -> None:
        try:
            await self._drain()
        except asyncio.CancelledError:
            # aiohttp would have whoever waits next wait for the same future, which is cancelled for good.
            self._protocol._drain_waiter = None
            raise

    def close(self, code: int, reason: str) -> None:
        """Send the close frame. The reader then waits for the peer's, CLOSE_TIMEOUT_S at most."""
        if self._closing:
            return
        text = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        self._control(WSMsgType.CLOSE, code.to_bytes(2, "big") + text.encode())
        self.code = code
        self._closing = True
        self._deadline = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self.abort)

    def abort(self) -> None:
        self._closing = True
        self._transport.abort()

    @property
    def closing(self) -> bool:
        """True once a close frame was sent: what the peer still says is not heard."""
        return self._closing

    def finish(self) -> None:
        """The reader has ended: nothing is written from here on. What is buffered still leaves, if the peer
        takes it within CLOSE_TIMEOUT_S."""
        self._closing = True
        if self._deadline is not None and not self.buffered_bytes:
            self._deadline.cancel()
        elif self._deadline is None and self.buffered_bytes:
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)
        if not self._transport.is_closing():
            # So that aiohttp, which closes what a handler leaves open, does not send a second close frame.
            self._transport.close()


class _Socket(web.WebSocketResponse):
    """aiohttp's WebSocket, but what it says on its own never follows our close frame (RFC 6455 §5.5.1)."""

    connection: WebSocketConnection | None = None

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        if self.connection is not None and self.connection.closing:
            return False
        return await super().close(code=code, message=message, drain=drain)


@dataclass(frozen=True, slots=True)
class Visit:
    """Who opens a WebSocket, to continue which conversation. With `refusal` they are told why not, and the
    connection is closed: browsers do not show a reason when the upgrade itself is refused."""

    caller: Caller
    refusal: SluiceError | None = None
    conversation_id: str | None = None
    subprotocol: str | None = None


class WebSocketServer:
    """Turns upgraded requests into sessions and reads their frames."""

    def __init__(
        self, sessions: SessionManager, traffic: Traffic, max_message_bytes: int, buffer_bytes: int
    ) -> None:
        self._sessions = sessions
        self._traffic = traffic
        self._max_message_bytes = max_message_bytes
        self._buffer_bytes = buffer_bytes

    async def serve(self, request: web.Request, codec: Codec, visit: Visit) -> web.StreamResponse:
        """Upgrade, then read until the connection ends."""
        ws = _Socket(
            autoping=False,
            autoclose=False,
            compress=False,
            max_msg_size=self._max_message_bytes + 1,  # aiohttp refuses what reaches it
            decode_text=False,
        )
        if visit.subprotocol:
            # aiohttp's own choice, `protocols`, is made from the first line of several.
            ws.headers["Sec-WebSocket-Protocol"] = visit.subprotocol
        try:
            stream = await ws.prepare(request)
            connection = WebSocketConnection(
                request, stream, self._traffic, self._buffer_bytes, visit.caller.address
            )
        except ConnectionResetError:  # the client left during the handshake
            return web.Response()
        ws.connection = connection
        ws.headers.clear()  # they were sent, and would live as long as the socket
        try:
            if visit.refusal is not None:
                raise visit.refusal
            session = self._sessions.open(visit.caller, connection, codec, visit.conversation_id)
        except SluiceError as error:
            connection.close(close_code(error), error.message)
            await _read(ws, connection, None)
            connection.finish()
            return ws
        try:
            await _read(ws, connection, session)
        except Exception:
            log.exception("session failed", extra={"session": session.session_id})
            connection.close(CloseCode.INTERNAL_ERROR, "internal error")
        finally:
            connection.finish()
            await self._sessions.close(session, connection.code)
        return ws


async def _read(ws: web.WebSocketResponse, connection: WebSocketConnection, session: Session | None) -> None:
    """Read frames until the connection ends; those after our close frame are thrown away."""
    loop = asyncio.get_running_loop()
    turn = controls = 0
    window_s = 0.0
    while True:
        message = await ws.receive()
        kind = message.type
        turn += 1
        if turn >= FRAMES_PER_TURN:
            turn = 0
            await asyncio.sleep(0)
        if kind is WSMsgType.TEXT or kind is WSMsgType.BINARY:
            if session is not None and not connection.closing:
                await _receive(connection, session, message.data, kind is WSMsgType.TEXT)
        elif kind is WSMsgType.PING or kind is WSMsgType.PONG:
            now = loop.time()
            if now - window_s >= 1.0:
                window_s, controls = now, 0
            controls += 1
            if session is not None and kind is WSMsgType.PONG:
                session.pong()
            elif kind is WSMsgType.PING:
                connection.pong(message.data)
            if controls > MAX_CONTROL_FRAMES_PER_S:
                connection.close(CloseCode.TOO_MANY, "too many pings")
        else:
            if not connection.closing:
                _ended(connection, ws, message)
            return


def _ended(connection: WebSocketConnection, ws: web.WebSocketResponse, message: WSMessage) -> None:
    """Note why the peer's side ended, and answer its close frame."""
    if message.type is WSMsgType.ERROR and isinstance(message.data, WebSocketError):
        connection.code = message.data.code
    elif ws.close_code is not None:
        connection.code = ws.close_code
        if message.type is WSMsgType.CLOSE:
            connection.close(_echo(ws.close_code), "")


async def _receive(connection: WebSocketConnection, session: Session, data: bytes, is_text: bool) -> None:
    if not is_text:
        await session.refuse(InvalidRequest("binary frames are not understood here; send text"))
        return
    try:
        data.decode()
    except UnicodeDecodeError:
        connection.close(CloseCode.INVALID_UTF8, "the text is not valid UTF-8")
        return
    await session.receive(data)


def _echo(code: int) -> int:
    """The code that answers the peer's close frame; one without a code (1005) may not be sent back."""
    return code if code >= 3000 or code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011) else 1000
