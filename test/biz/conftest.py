"""A server without sockets and without an engine: the test is both."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest

from internal.biz.chat import Ask, Chat, ChatRules
from internal.biz.commands import Command, Create, Resume
from internal.biz.errors import InvalidRequest, SluiceError
from internal.biz.events import Delta, Event, QueueUpdate, ReasoningDelta, TextDelta
from internal.biz.flusher import Flusher
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.limits import NoLimits
from internal.biz.log import Cursor
from internal.biz.models import Caller, Message, Request, Response, Role, Settings
from internal.biz.session import Session, SessionLimits
from internal.data.memory_history import MemoryHistory
from internal.data.memory_queue import MemoryQueue, QueueLimits

UNLIMITED = 1 << 30


class FakeConnection:
    """A socket that takes as many writes as the test lets it."""

    def __init__(self, remote: str = "192.0.2.1") -> None:
        self.remote = remote
        self.payloads: list[bytes] = []
        self.writes: list[list[bytes]] = []
        self.pings = 0
        self.closed_with: tuple[int, str] | None = None
        self.aborted = False
        self.buffered_bytes = 0
        self._room = UNLIMITED
        self._changed = asyncio.Event()
        self._lost = False

    def frame(self, payloads: Sequence[bytes]) -> bytes:
        if self.closed_with is not None:
            return b""
        return b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads)

    def write(self, frames: bytes) -> bool:
        assert frames, "an empty write"
        written = list(_unframe(frames))
        self.payloads += written
        self.writes.append(written)
        self._room -= 1
        return self._room <= 0

    def congest(self, room: int = 0) -> None:
        """Take `room` more writes, then report congestion."""
        self._room = room
        self._changed.set()

    def make_room(self) -> None:
        self.congest(UNLIMITED)

    def lose(self) -> None:
        self._lost = True
        self._changed.set()

    async def drain(self) -> None:
        while self._room <= 0:
            if self._lost:
                raise ConnectionResetError("gone")
            self._changed.clear()
            await self._changed.wait()

    def ping(self) -> None:
        self.pings += 1

    def close(self, code: int, reason: str) -> None:
        self.closed_with = self.closed_with or (code, reason)

    def abort(self) -> None:
        self.aborted = True


def _unframe(frames: bytes) -> Iterator[bytes]:
    while frames:
        size = int.from_bytes(frames[:4], "big")
        yield frames[4 : 4 + size]
        frames = frames[4 + size :]


class FakeCodec:
    """A dialect whose frames say plainly what they are: [kind, response, number, text, lane]."""

    def __init__(self, *, continues: bool = False) -> None:
        self.continues = continues
        self._commands: dict[bytes, Command] = {}

    def frame(self, command: Command) -> bytes:
        data = str(len(self._commands)).encode()
        self._commands[data] = command
        return data

    def greeting(self, session_id: str) -> list[bytes]:
        return []

    def decode(self, data: bytes) -> Command:
        if data not in self._commands:
            raise InvalidRequest("what?")
        return self._commands[data]

    def lane(self, data: bytes) -> str | None:
        command = self._commands.get(data)
        return command.lane if isinstance(command, (Create, Resume)) else None

    def encode(self, cursor: Cursor, first: int, events: Sequence[Event]) -> list[bytes]:
        payloads = []
        for number, event in enumerate(events, first):
            text = event if isinstance(event, (TextDelta, ReasoningDelta)) else None
            payloads.append(_dump(type(event).__name__, cursor.response_id, number, text, cursor.lane))
        return payloads

    def encode_update(self, cursor: Cursor, update: QueueUpdate) -> bytes | None:
        return _dump("update", cursor.response_id, update.position, None, cursor.lane)

    def encode_error(self, error: SluiceError, lane: str | None) -> bytes:
        return _dump("error", error.code, 0, error.message, lane)


def _dump(*fields: object) -> bytes:
    return json.dumps(fields).encode()


class Frame:
    """A payload of FakeCodec, read."""

    def __init__(self, payload: bytes) -> None:
        self.kind: str
        self.response_id: str
        self.number: int
        self.text: str | None
        self.lane: str | None
        self.kind, self.response_id, self.number, self.text, self.lane = json.loads(payload)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.response_id} {self.number} {self.text!r} {self.lane}>"


class Client:
    """A session, and what its client got."""

    def __init__(self, session: Session, connection: FakeConnection, codec: FakeCodec) -> None:
        self.session = session
        self.connection = connection
        self._codec = codec

    async def send(self, command: Command) -> None:
        await self.session.receive(self._codec.frame(command))

    async def ask(self, text: str = "hello", *, lane: str | None = None, model: str | None = None) -> None:
        await self.send(Create(Ask((Message(Role.USER, text),), model), lane))

    async def ask_all(self, *models: str, text: str = "hello", lane: str | None = None) -> None:
        await self.send(Create(Ask((Message(Role.USER, text),)), lane, models=models))

    @property
    def frames(self) -> list[Frame]:
        return [Frame(payload) for payload in self.connection.payloads]

    def of(self, response_id: str) -> list[Frame]:
        return [frame for frame in self.frames if frame.response_id == response_id]

    def text(self, response_id: str) -> str:
        return "".join(frame.text or "" for frame in self.of(response_id))

    @property
    def errors(self) -> list[str]:
        """Codes of the errors it was told."""
        return [frame.response_id for frame in self.frames if frame.kind == "error"]


class Run:
    """A response on an engine that is the test."""

    def __init__(self, server: "Server", delivery: Delivery) -> None:
        self._server = server
        self.delivery = delivery
        self.transcript = Transcript(delivery)

    @property
    def id(self) -> str:
        return self.transcript.response_id

    async def say(self, *words: str, kind: Callable[[str], Delta] = TextDelta) -> None:
        self.transcript.start()
        for word in words:
            self.transcript.add(kind(word))
        await self._append()

    async def _append(self) -> None:
        self._server.model.setdefault(self.id, []).extend(self.transcript.events)
        assert not await self._server.queue.append([self.transcript])
        self.transcript.number += len(self.transcript.events)
        self.transcript.events = ()

    async def finish(
        self, reason: FinishReason = FinishReason.STOP, error: SluiceError | None = None
    ) -> Response:
        response = self.transcript.finish(Finished(reason, error=error))
        await self._server.history.finish([response])
        await self._append()
        return response


class Server:
    """Queue, history and sessions are real; connections, codec and engine are the test's."""

    def __init__(self, limits: QueueLimits | None = None, rules: ChatRules | None = None) -> None:
        self.history = MemoryHistory()
        self.queue = MemoryQueue(limits or QueueLimits(), self.history.finish)
        rules = rules or ChatRules(("m", "other"))
        self.chat = Chat(self.queue, self.history, NoLimits(), self.history.finish, rules, self)
        self.flusher = Flusher(asyncio.get_running_loop())
        self.revoked: list[str] = []
        self.model: dict[str, list[Event]] = {}
        """What each log should hold behind response.queued."""
        self.unknown_users: set[str] = set()
        """Who may not come in any more."""
        self._clients: list[Client] = []

    async def still_valid(self, caller: Caller) -> bool:
        return caller.user not in self.unknown_users

    async def said(self, response_id: str) -> list[str]:
        """The dialogue up to and including a response."""
        following = Request("", "m", "", 0.0, (), Settings(previous_response_id=response_id))
        (messages,) = await self.history.before([following], 0)
        return [message.content for message in messages]

    slots = room = 1
    """As a worker it takes one request at a time."""

    def revoke(self, delivery: Delivery) -> None:
        self.revoked.append(delivery.request.response_id)

    def lose(self, delivery: Delivery) -> None:
        raise AssertionError("nothing is lost in memory")

    async def waiting(self) -> int:
        return (await self.queue.backlog("m")).waiting

    def client(
        self,
        *,
        max_in_flight: int = 8,
        write_timeout_s: float = 0.0,
        continues: bool = False,
        caller: Caller | None = None,
        conversation_id: str | None = None,
    ) -> Client:
        connection, codec = FakeConnection(), FakeCodec(continues=continues)
        limits = SessionLimits(max_in_flight, write_timeout_s)
        name = f"sess_{len(self._clients)}"
        session = Session(
            name,
            caller or Caller(name),
            connection,
            codec,
            self.chat,
            self.flusher,
            limits,
            conversation_id,
        )
        client = Client(session, connection, codec)
        self._clients.append(client)
        return client

    async def claim(self, model: str = "m") -> Run:
        async with asyncio.timeout(5):
            (delivery,) = await self.queue.claim(model, self)
        run = Run(self, delivery)
        (before,) = await self.history.before([delivery.request], 0)
        run.transcript.recall(before)
        return run

    async def close(self) -> None:
        for client in self._clients:
            await client.session.close()


@pytest.fixture(scope="session")
def server_type() -> type[Server]:
    """For tests that need a new one for every example."""
    return Server


@pytest.fixture
async def server(watched_loop: None) -> AsyncIterator[Server]:
    server = Server()
    yield server
    await server.close()


@pytest.fixture(scope="session")
def connection_type() -> type[FakeConnection]:
    return FakeConnection


@pytest.fixture(scope="session")
def codec_type() -> type[FakeCodec]:
    return FakeCodec


class FakeMeter:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed: list[int] = []
        self.ended: list[tuple[str, str]] = []
        self.first_tokens = 0
        self.gaps: list[tuple[float, int]] = []

    def session_opened(self) -> None:
        self.opened += 1

    def session_closed(self, code: int) -> None:
        self.closed.append(code)

    def response_ended(self, model: str, status: str, seconds: float) -> None:
        assert seconds >= 0
        self.ended.append((model, status))

    def first_token(self, model: str, seconds: float) -> None:
        self.first_tokens += 1

    def token_gap(self, model: str, seconds: float, tokens: int) -> None:
        self.gaps.append((seconds, tokens))


@pytest.fixture
def meter() -> FakeMeter:
    return FakeMeter()
