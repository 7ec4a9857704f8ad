"""The line between browsers and a server, which a test cuts where it likes. Knows bytes, and where a message
of a WebSocket ends; nothing of what messages say."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

PATIENCE_S = 20.0
"""How long it waits for what must happen. Never reached by a test that passes."""
MAX_READ_BYTES = 65536
_TEXT = 1


class Way(Enum):
    UP = "to the server"
    DOWN = "to the browser"


@dataclass(slots=True)
class Moment:
    """When something with `words` goes one way. It arrives if `arrives`, then the line is cut."""

    way: Way
    words: bytes
    arrives: bool
    has_come: asyncio.Event = field(default_factory=asyncio.Event)

    async def comes(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.has_come.wait()


class Cable:
    """Implements Site."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._port = 0
        self._listener: asyncio.Server | None = None
        self._lines: set[_Line] = set()
        self._joins: set[asyncio.Event] = set()
        """Of each that has come, and is not over: set when it is."""
        self._cuts = 0
        self._moment: Moment | None = None

    def http(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self._port}{path}"

    async def mend(self) -> None:
        """What comes from now on gets through."""
        self._listener = await asyncio.start_server(self._join, "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Nothing gets through any more, and both sides notice. The server still reads what had left."""
        self._cuts += 1
        if self._listener is not None:
            self._listener.close()
        for line in self._lines:
            line.cut()

    def silence(self) -> None:
        """The WebSockets that are open now stay so, and neither side hears the other any more. What comes
        from now on gets through."""
        for line in self._lines:
            line.is_silent = line.is_upgraded

    def hold(self) -> None:
        """What comes on the WebSockets that are open now waits, until it is let go."""
        for line in self._lines:
            if line.is_upgraded:
                line.is_open.clear()

    def let_go(self) -> None:
        for line in self._lines:
            line.is_open.set()

    def cut_when(self, way: Way, words: str, *, arrives: bool) -> Moment:
        """Cut as soon as something with `words` goes this way: a message of a WebSocket, or a piece of
        HTTP."""
        self._moment = Moment(way, words.encode(), arrives)
        return self._moment

    async def end(self) -> None:
        self.cut()
        for over in [*self._joins]:
            await over.wait()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over = asyncio.Event()
        self._joins.add(over)
        try:
            await self._lead(reader, writer)
        finally:
            self._joins.discard(over)
            over.set()

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """To the server, and back."""
        cuts = self._cuts
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.transport.abort()
            return
        line = _Line(writer, far_writer)
        if cuts != self._cuts:
            line.cut()
            return
        self._lines.add(line)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(line, Way.UP, reader, far_writer))
                group.create_task(self._carry(line, Way.DOWN, far_reader, writer))
        finally:
            line.cut()
            self._lines.discard(line)

    async def _carry(
        self, line: "_Line", way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(MAX_READ_BYTES):
                for piece, words in line.pieces(way, data):
                    if way is Way.DOWN:
                        await line.is_open.wait()
                    if line.is_silent:
                        continue
                    moment = self._moment
                    is_it = moment is not None and moment.way is way and moment.words in words
                    if not is_it or (moment and moment.arrives):
                        writer.write(piece)
                        await writer.drain()
                    if is_it and moment is not None:
                        self._moment = None
                        self.cut()
                        moment.has_come.set()
                        return
        line.cut()


class _Line:
    """One connection, and the one that it goes on in."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.is_silent = False
        self.is_open = asyncio.Event()
        self.is_open.set()
        self._near = near
        self._far = far
        self.is_upgraded = False
        self._unread = {Way.UP: b"", Way.DOWN: b""}

    def cut(self) -> None:
        self.is_open.set()
        self._near.transport.abort()
        self._far.close()

    def pieces(self, way: Way, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """What has come whole, as it is to be passed on and as it reads."""
        if not self.is_upgraded:
            if way is Way.DOWN and data.startswith(b"HTTP/1.1 101 "):
                self.is_upgraded = True
                end = data.index(b"\r\n\r\n") + 4
                yield data[:end], data[:end]
                data = data[end:]
            else:
                yield data, data
                return
        data = self._unread[way] + data
        while (frame := _first_frame(data)) is not None:
            size, words = frame
            yield data[:size], words
            data = data[size:]
        self._unread[way] = data


def _first_frame(data: bytes) -> tuple[int, bytes] | None:
    """Its size, and its text. Source: RFC 6455 §5.2."""
    if len(data) < 2:
        return None
    is_masked, length, start = data[1] & 0x80, data[1] & 0x7F, 2
    if length >= 126:
        start += 2 if length == 126 else 8
        length = int.from_bytes(data[2:start])
    mask = data[start : start + 4] if is_masked else b"\0\0\0\0"
    start += 4 if is_masked else 0
    size = start + length
    if len(data) < size:
        return None
    if data[0] & 0x0F != _TEXT:
        return size, b""
    repeated = (mask * (length // 4 + 1))[:length]
    text = int.from_bytes(data[start:size]) ^ int.from_bytes(repeated)
    return size, text.to_bytes(length)
