"""Real clients of the real process (`run_server`). Tests share these by fixtures: `test` cannot be imported.

A server is stopped by SIGTERM when its test (or module) ends, and must then have exited with 0 and have
logged nothing alarming.
"""

import asyncio
import contextlib
import json
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from test.conftest import Metrics as Metrics
    from test.conftest import Reply as Reply
    from test.conftest import RunServer as RunServer
    from test.conftest import Server as Server

STEP_DEADLINE_S = 15.0
"""What a single step of a test may take on a busy machine."""

JSON = dict[str, Any]
TERMINAL = ("response.completed", "response.incomplete", "response.failed")


# ── a client without manners ─────────────────────────────────────────────────────────────────────


class Frame(NamedTuple):
    opcode: int
    payload: bytes


TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class RawSocket:
    """A WebSocket client that does what it is told, right or wrong. It reads only when asked to."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._sending = asyncio.Lock()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(STEP_DEADLINE_S), self._sending:
            await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def send_text(self, message: str) -> None:
        await self.send(frame(TEXT, message.encode()))

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Raw bytes; empty at the end of the stream. Raises TimeoutError."""
        async with asyncio.timeout(STEP_DEADLINE_S):
            return await asyncio.get_running_loop().sock_recv(self._sock, max_bytes)

    def unread(self, data: bytes) -> None:
        """Put back what `receive` gave."""
        self._buffer[:0] = data

    async def _fill(self) -> None:
        data = await self.receive()
        if not data:
            raise EOFError(f"the server cut the connection after {bytes(self._buffer[:80])!r}")
        self._buffer += data

    async def read_head(self) -> str:
        """The head of an HTTP response."""
        while (at := self._buffer.find(b"\r\n\r\n")) < 0:
            await self._fill()
        return self._take(at + 4).decode()

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._fill()
        return self._take(size)

    async def frame(self) -> Frame:
        """The next frame. Raises EOFError or ConnectionError when the connection is cut."""
        first, second = await self._read(2)
        assert first & 0xF0 == 0x80, "servers here send whole messages, without extensions"
        assert not second & 0x80, "a server does not mask"
        size = second
        if size == 126:
            (size,) = struct.unpack(">H", await self._read(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", await self._read(8))
        return Frame(first & 0x0F, await self._read(size))

    async def text(self) -> str:
        """The next text; pings in between are answered."""
        while True:
            opcode, payload = await self.frame()
            if opcode == PING:
                await self.send(frame(PONG, payload))
            elif opcode == TEXT:
                return payload.decode()
            elif opcode == CLOSE:
                raise EOFError(f"closed with {close_code(payload)}: {payload[2:].decode()}")

    async def close_code(self) -> int | None:
        """Read to the end of the connection: the code of the close frame, None when there was none.

        Answers the close frame, and nothing else.
        """
        code = None
        try:
            while True:
                opcode, payload = await self.frame()
                assert code is None, f"after the close frame came {opcode:#x} {payload!r}"
                if opcode == CLOSE:
                    code = close_code(payload)
                    with contextlib.suppress(ConnectionError):
                        await self.send(frame(CLOSE, payload[:2]))
        except (EOFError, ConnectionError):
            return code

    def close(self, *, reset: bool = False) -> None:
        """Leave without a close frame; with `reset` as a machine does that has crashed."""
        if reset and self._sock.fileno() >= 0:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


def upgrade_request(path: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, reserved: int = 0) -> bytes:
    """A client's frame, or what is none. `reserved`: the three bits that no extension was agreed for."""
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    mask_bit = 0x80
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", first, mask_bit | size)
    elif size < 65536:
        head = struct.pack(">BBH", first, mask_bit | 126, size)
    else:
        head = struct.pack(">BBQ", first, mask_bit | 127, size)
    mask = secrets.token_bytes(4)
    repeated = (mask * (size // 4 + 1))[:size]
    body = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return head + mask + body.to_bytes(size, "big")


def close_code(payload: bytes) -> int | None:
    return struct.unpack(">H", payload[:2])[0] if payload else None


class Raw:
    """Opens raw sockets and closes those that a test has left open, and builds what they send."""

    def __init__(self) -> None:
        self._opened: list[RawSocket] = []
        self.frame = frame
        self.upgrade_request = upgrade_request

    async def open(
        self,
        server: "Server",
        path: str = "/ws",
        *,
        receive_buffer: int | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> RawSocket:
        """Upgraded. `receive_buffer`: bytes that the kernel may take from the server on our behalf."""
        socket = await self.connect(server, receive_buffer=receive_buffer)
        await socket.send(upgrade_request(path, headers))
        head = await socket.read_head()
        assert head.startswith("HTTP/1.1 101 "), head
        return socket

    async def connect(
        self, server: "Server", *, receive_buffer: int | None = None, source: str | None = None
    ) -> RawSocket:
        """Only TCP yet, from the address `source`."""
        sock = socket.socket()
        opened = RawSocket(sock)
        self._opened.append(opened)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source is not None:
            sock.bind((source, 0))
        sock.setblocking(False)
        async with asyncio.timeout(STEP_DEADLINE_S):
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
        return opened

    def close(self) -> None:
        for opened in self._opened:
            opened.close()


@pytest.fixture
def raw() -> Iterator[Raw]:
    opener = Raw()
    yield opener
    opener.close()


# ── clients with manners ─────────────────────────────────────────────────────────────────────────


class Answer(NamedTuple):
    """The events of one response as one socket saw them, up to its end or less."""

    events: list[JSON]

    @property
    def id(self) -> str:
        found: str = next(event["response"]["id"] for event in self.events if "response" in event)
        return found

    @property
    def numbers(self) -> list[int]:
        return [event["sequence_number"] for event in self.events]

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    @property
    def text(self) -> str:
        deltas = (e["delta"] for e in self.events if e["type"] == "response.output_text.delta")
        return "".join(deltas)

    @property
    def response(self) -> JSON:
        """The response object of the last event."""
        response: JSON = self.events[-1]["response"]
        return response

    @property
    def output_text(self) -> str:
        """The text as the response's own `output` has it."""
        parts = (part["text"] for item in self.response["output"] for part in item["content"])
        return "".join(parts)


class ResponsesSocket:
    """`/v1/responses` over the `websockets` package: events as they came, errors and updates included."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, event: object) -> None:
        await self.connection.send(json.dumps(event))

    async def create(self, text: object, /, **fields: object) -> None:
        await self.send({"type": "response.create", "input": text, **fields})

    async def resume(self, response_id: str, **fields: object) -> None:
        await self.send({"type": "response.resume", "response_id": response_id, **fields})

    async def cancel(self, response_id: str) -> None:
        await self.send({"type": "response.cancel", "response_id": response_id})

    async def event(self) -> JSON:
        async with asyncio.timeout(STEP_DEADLINE_S):
            event: JSON = json.loads(await self.connection.recv())
        return event

    async def error(self) -> JSON:
        """The next event, which must be an error: its inner object."""
        event = await self.event()
        assert event["type"] == "error", event
        error: JSON = event["error"]
        assert error["message"], "an error is a sentence"
        return error

    async def until(self, kind: str) -> list[JSON]:
        """All events up to the first one of type `kind`."""
        events = [await self.event()]
        while events[-1]["type"] != kind:
            assert events[-1]["type"] not in ("error", *TERMINAL), events[-1]
            events.append(await self.event())
        return events

    async def rest(self, seen: Iterable[JSON] = ()) -> Answer:
        """Everything up to the end of the response, behind what was `seen`."""
        events = list(seen)
        while not events or events[-1]["type"] not in TERMINAL:
            event = await self.event()
            assert event["type"] != "error", event
            events.append(event)
        return Answer(events)

    async def ask(self, text: object, /, **fields: object) -> Answer:
        await self.create(text, **fields)
        return await self.rest()


class OpenText(Protocol):
    def __call__(
        self, server: "Server", path: str = "/ws"
    ) -> AbstractAsyncContextManager[ClientConnection]: ...


class OpenResponses(Protocol):
    def __call__(self, server: "Server") -> AbstractAsyncContextManager[ResponsesSocket]: ...


@pytest.fixture(scope="session")
def text_socket() -> OpenText:
    def open_text(server: "Server", path: str = "/ws") -> AbstractAsyncContextManager[ClientConnection]:
        return connect(server.ws(path), proxy=None, max_size=None)

    return open_text


@pytest.fixture(scope="session")
def responses_socket() -> OpenResponses:
    @contextlib.asynccontextmanager
    async def open_responses(server: "Server") -> AsyncIterator[ResponsesSocket]:
        async with connect(server.ws("/v1/responses"), proxy=None, max_size=None) as connection:
            yield ResponsesSocket(connection)

    return open_responses


@dataclass(slots=True)
class Visitor:
    """Somebody who comes again: keeps the cookies that they are given, as a browser does, and shows their
    token or key if they have one.

    `forwarded_for` is what a proxy says of where they come from, `source` the address that they come from.
    """

    server: "Server"
    token: str | None = None
    forwarded_for: str | None = None
    source: str = "127.0.0.1"
    cookies: SimpleCookie = field(default_factory=SimpleCookie)

    @property
    def headers(self) -> dict[str, str]:
        pairs = [f"{name}={morsel.coded_value}" for name, morsel in self.cookies.items()]
        headers = {
            "Authorization": self.token and f"Bearer {self.token}",
            "Cookie": "; ".join(pairs),
            "X-Forwarded-For": self.forwarded_for,
        }
        return {name: value for name, value in headers.items() if value}

    async def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> "Reply":
        headers = {**self.headers, **(headers or {})}
        reply = await self.server.fetch(path, method, headers, body, self.source)
        self._keep(reply.headers)
        return reply

    def _keep(self, headers: Mapping[str, str]) -> None:
        self.cookies.load(headers.get("Set-Cookie", ""))

    async def register(self, name: str, password: str = "correct horse battery") -> JSON:
        """Become a user who is logged in. Returns what the login was answered with."""
        account = {"username": name, "email": f"{name}@example.org", "password": password}
        registered = await self.call("POST", "/api/v1/auth/register", account)
        assert registered.status == 201, registered.text
        return await self.login(name, password)

    async def login(self, name: str, password: str = "correct horse battery") -> JSON:
        login = {"username": name, "password": password}
        reply = await self.call("POST", "/api/v1/auth/login", login)
        assert reply.status == 200, reply.text
        tokens: JSON = reply.json
        self.token = tokens["access_token"]
        return tokens

    async def key(self, name: str = "laptop") -> JSON:
        """A new API key."""
        reply = await self.call("POST", "/api/v1/keys", {"name": name})
        assert reply.status == 201, reply.text
        key: JSON = reply.json
        return key

    async def ask(self, message: str, **fields: object) -> JSON:
        """The answer to POST /chat."""
        reply = await self.call("POST", "/chat", {"message": message, **fields})
        assert reply.status == 200, reply.text
        answer: JSON = reply.json
        return answer

    async def conversations(self, query: str = "") -> list[JSON]:
        reply = await self.call("GET", f"/conversations{query}")
        assert reply.status == 200, reply.text
        found: list[JSON] = reply.json["conversations"]
        return found

    async def history(self, conversation_id: str) -> list[tuple[str, str]]:
        """Who said what."""
        reply = await self.call("GET", f"/conversations/{conversation_id}/history")
        assert reply.status == 200, reply.text
        return [(message["role"], message["content"]) for message in reply.json["messages"]]

    @contextlib.asynccontextmanager
    async def text(self, path: str = "/ws") -> AsyncIterator[ClientConnection]:
        async with self._connected(path) as socket:
            yield socket

    @contextlib.asynccontextmanager
    async def responses(self) -> AsyncIterator[ResponsesSocket]:
        async with self._connected("/v1/responses") as socket:
            yield ResponsesSocket(socket)

    @contextlib.asynccontextmanager
    async def _connected(self, path: str) -> AsyncIterator[ClientConnection]:
        opening = connect(self.server.ws(path), proxy=None, max_size=None, additional_headers=self.headers)
        async with opening as socket:
            assert socket.response is not None
            self._keep(socket.response.headers)
            yield socket


@pytest.fixture(scope="session")
def visitor() -> type[Visitor]:
    return Visitor


class Closed(NamedTuple):
    """The server's close frame; code 1006 when there was none."""

    code: int
    reason: str


class HowClosed(Protocol):
    async def __call__(self, socket: ClientConnection, *messages: str) -> Closed:
        """Send `messages`, then read on, whatever comes, until the connection has ended."""


@pytest.fixture(scope="session")
def how_closed() -> HowClosed:
    async def read_to_the_end(socket: ClientConnection, *messages: str) -> Closed:
        try:
            for message in messages:
                await socket.send(message)
            while True:
                await socket.recv()
        except ConnectionClosed as end:
            return Closed(end.rcvd.code, end.rcvd.reason) if end.rcvd else Closed(1006, "")

    return read_to_the_end


def chunks(message: str, count: int = 5) -> list[str]:
    return [f"chunk {number}: {message}" for number in range(1, count + 1)]


class Say(Protocol):
    async def __call__(self, socket: ClientConnection, message: str, count: int = 5) -> str:
        """Say something to the echo model. Returns its answer, which has `count` chunks."""


@pytest.fixture(scope="session")
def say() -> Say:
    async def say(socket: ClientConnection, message: str, count: int = 5) -> str:
        await socket.send(message)
        async with asyncio.timeout(STEP_DEADLINE_S):
            frames = [str(await socket.recv()) for _ in range(count)]
        assert frames == chunks(message, count)
        return "".join(frames)

    return say


class Until(Protocol):
    async def __call__(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait for what nothing announces."""


@pytest.fixture(scope="session")
def until() -> Until:
    async def until(condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(STEP_DEADLINE_S):
            while not await condition():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    return until


@pytest.fixture(scope="session")
def impatient() -> Sequence[str]:
    """A program for `run_server`, see there."""
    return (str(Path(__file__).with_name("programs") / "impatient.py"),)


@pytest.fixture(scope="session")
def echo_chunks() -> Callable[..., list[str]]:
    """What the echo model says: (message, count=5)."""
    return chunks


# ── a client that minds its own business ─────────────────────────────────────────────────────────


@dataclass(slots=True)
class Bystander:
    """Streams answers while others misbehave. `largest_gap_s` is the longest it waited for a frame."""

    answers: int = 0
    largest_gap_s: float = 0.0
    frames: int = 0


class Watch(Protocol):
    def __call__(
        self, server: "Server", model: str, count: int
    ) -> AbstractAsyncContextManager[Bystander]: ...


@pytest.fixture(scope="session")
def bystander() -> Watch:
    """A client that asks `model`, whose answers have `count` chunks, over and over: every one exact."""

    @contextlib.asynccontextmanager
    async def watch(server: "Server", model: str, count: int) -> AsyncIterator[Bystander]:
        seen, stop = Bystander(), asyncio.Event()

        async def stream() -> None:
            async with connect(server.ws(f"/ws?model={model}"), proxy=None) as socket:
                while not stop.is_set() or not seen.answers:
                    message = f"bystander {seen.answers}"
                    await socket.send(message)
                    for expected in chunks(message, count):
                        asked = time.monotonic()
                        async with asyncio.timeout(STEP_DEADLINE_S):
                            assert await socket.recv() == expected
                        seen.frames += 1
                        seen.largest_gap_s = max(seen.largest_gap_s, time.monotonic() - asked)
                    seen.answers += 1

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stream())
            yield seen
            stop.set()

    return watch
