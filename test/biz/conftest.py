"""A server without sockets and without an engine, and a worker without either: the test is both."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from internal.biz.chat import Ask, Chat, ChatRules
from internal.biz.commands import Command, Create, Resume
from internal.biz.errors import EngineLost, InvalidRequest, SluiceError, Unavailable
from internal.biz.events import Delta, Event, QueueUpdate, ReasoningDelta, TextDelta
from internal.biz.flusher import Flusher
from internal.biz.generation import (
    Chunk,
    Delivery,
    Finished,
    FinishReason,
    Job,
    Output,
    Prefilled,
    Transcript,
)
from internal.biz.images import Images
from internal.biz.limits import NoLimits
from internal.biz.log import Cursor
from internal.biz.models import Caller, Message, Request, Response, Role, Settings
from internal.biz.ports import Append, Capabilities, Progress, Sink
from internal.biz.session import Session, SessionLimits
from internal.biz.worker import Worker
from internal.data.memory_history import MemoryHistory
from internal.data.memory_queue import MemoryQueue, QueueLimits

if TYPE_CHECKING:
    from test.conftest import Reader, RequestFactory

    MakeReader = Callable[[], Reader]

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


# ── a worker between the real queue and an engine that does what the test says ───────────────────


class FakeEngine:
    """Says what the test makes it say."""

    def __init__(self, slots: int = 4) -> None:
        self.capabilities = Capabilities(0, slots)
        self.jobs: list[Job] = []
        self.cancelled: list[Job] = []
        self.starts = 0
        self.stopped = False
        self.refusal: Exception | None = None
        self.go_on = asyncio.Event()
        """Unless it is set, a start takes its time at the half."""
        self.go_on.set()
        self._sink: Sink | None = None
        self._news = asyncio.Event()

    async def start(self, sink: Sink, progress: Progress) -> None:
        self.starts += 1
        self.stopped = False
        progress(0.5)
        await self.go_on.wait()
        if self.refusal is not None:
            raise self.refusal
        self._sink = sink

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        self._news.set()

    def cancel(self, job: Job) -> None:
        # As the port says: a job that the engine does not know is ignored.
        if job in self.jobs:
            self.cancelled.append(job)
            self._news.set()

    async def stop(self) -> None:
        self.stopped = True

    async def job(self, number: int) -> Job:
        """The job that was submitted as the `number`th, from 0."""
        async with asyncio.timeout(5):
            while len(self.jobs) <= number:
                self._news.clear()
                await self._news.wait()
        return self.jobs[number]

    async def cancellation(self) -> Job:
        async with asyncio.timeout(5):
            while not self.cancelled:
                self._news.clear()
                await self._news.wait()
        return self.cancelled[-1]

    def step(self, *chunks: Chunk) -> None:
        assert self._sink is not None
        self._sink.put(list(chunks))

    def lose(self) -> None:
        assert self._sink is not None
        self._sink.fail(EngineLost("the card has fallen off the bus"))

    def say(self, job: Job, *outputs: Output | str) -> None:
        self.step(*((job, _output(output)) for output in outputs))


def _output(output: Output | str) -> Output:
    if isinstance(output, (TextDelta, ReasoningDelta, Prefilled, Finished)):
        return output
    return TextDelta(output)


class FakeHistory:
    """Keeps what it was told, in the order of what else happened."""

    def __init__(self) -> None:
        self.finished: list[Response] = []
        self.away = 0
        """How many of the next calls fail."""
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.before_end: list[bool] = []
        self.said: dict[str, tuple[Message, ...]] = {}
        self.asked_for: list[int] = []
        self.unreadable = False
        self.unstorable: set[str] = set()
        """Both raise what nobody has thought of."""
        self.log_ended: Callable[[str], bool] = lambda _: False

    async def check(self, request: Request, owner: str | None) -> None:
        raise AssertionError("a worker does not check")

    async def begin(self, request: Request, owner: str | None, *, begins: bool, wants_title: bool) -> None:
        raise AssertionError("a worker does not begin")

    async def begin_batch(
        self, requests: Sequence[Request], owner: str | None, *, begins: bool, wants_title: bool
    ) -> None:
        raise AssertionError("a worker does not begin")

    async def unfinished(self, before: float, after_id: str, limit: int) -> Sequence[Response]:
        raise AssertionError("a worker does not look for others' responses")

    async def before(self, requests: Sequence[Request], max_chars: int) -> Sequence[tuple[Message, ...]]:
        await asyncio.sleep(0)
        if self.away:
            self.away -= 1
            raise Unavailable("the storage is away")
        if self.unreadable:
            raise ValueError("a row is broken")
        self.asked_for.append(max_chars)
        return [self.said.get(request.response_id, ()) for request in requests]

    async def finish(self, responses: Sequence[Response]) -> None:
        await self.go_on.wait()
        await asyncio.sleep(0)
        if self.away:
            self.away -= 1
            raise Unavailable("the storage is away")
        if any(response.id in self.unstorable for response in responses):
            raise ValueError("a row is broken")
        self.before_end += [not self.log_ended(response.id) for response in responses]
        self.finished += responses


class FlakyQueue(MemoryQueue):
    """Is away, or takes its time, as the test says."""

    def __init__(self, limits: QueueLimits, settle: Callable[[Sequence[Response]], Awaitable[None]]) -> None:
        super().__init__(limits, settle)
        self.away: Counter[str] = Counter()
        """How many of the next calls of a method fail."""
        self.tried: list[str] = []
        self.lost: set[str] = set()
        """Responses whose appends are refused."""
        self.at_append = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def _try(self, method: str) -> None:
        self.tried.append(method)
        await asyncio.sleep(0)
        if self.away[method]:
            self.away[method] -= 1
            raise Unavailable("the queue is away", code="queue_unavailable")

    async def append(self, step: Sequence[Append]) -> Sequence[Append]:
        self.at_append.set()
        await self.go_on.wait()
        await self._try("append")
        refused = [one for one in step if one.response_id in self.lost]
        return [*refused, *await super().append([one for one in step if one not in refused])]

    async def retry(self, delivery: Delivery, reason: str) -> None:
        await self._try("retry")
        await super().retry(delivery, reason)

    async def release(self, delivery: Delivery) -> None:
        await self._try("release")
        await super().release(delivery)


class Shop:
    """A worker at work."""

    def __init__(self, meter: FakeMeter, make_request: "RequestFactory", make_reader: "MakeReader") -> None:
        self.engine = FakeEngine()
        self.history = FakeHistory()
        self.queue: MemoryQueue = FlakyQueue(QueueLimits(max_attempts=2), self.history.finish)
        self.meter = meter
        self.progress: list[float] = []
        self.make_request = make_request
        self.make_reader = make_reader
        self.worker: Worker | None = None
        self._task: asyncio.Task[None] | None = None
        self._readings: list[asyncio.Task[list[Event]]] = []

    def open(
        self,
        *,
        slots: int = 4,
        queue: MemoryQueue | None = None,
        images: Images | None = None,
        idle_unload_s: float = 0.0,
        unload_timeout_s: float = 5.0,
    ) -> None:
        self.engine.capabilities = Capabilities(0, slots)
        self.worker = Worker(
            "m",
            self.engine,
            queue or self.queue,
            self.history,
            self.history.finish,
            self.meter,
            images,
            idle_unload_s=idle_unload_s,
            unload_timeout_s=unload_timeout_s,
        )
        self._task = asyncio.create_task(self.worker.run(self.progress.append))

    @property
    def flaky(self) -> FlakyQueue:
        assert isinstance(self.queue, FlakyQueue)
        return self.queue

    async def waiting(self) -> int:
        return (await self.queue.backlog("m")).waiting

    async def close(self) -> None:
        for reading in self._readings:
            reading.cancel()
        await asyncio.gather(*self._readings, return_exceptions=True)
        if self._task is not None:
            await self.close_worker()

    async def ended(self) -> None:
        """The worker has ended by itself. Raises what it raised."""
        assert self._task is not None
        task, self._task = self._task, None
        async with asyncio.timeout(5):
            await task

    async def close_worker(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        error = None if self._task.cancelled() else self._task.exception()
        assert error is None, f"the worker died: {error!r}"

    async def ask(
        self, *turn: str, queue_updates: bool = False, settings: Settings | None = None
    ) -> "Answer":
        request, reader = self.make_request(*turn, settings=settings), self.make_reader()
        await self.queue.publish(request)
        cursor = await self.queue.follow(request.response_id, -1, reader, queue_updates=queue_updates)
        reading = asyncio.create_task(reader.read(cursor))
        self._readings.append(reading)
        return Answer(request, reader, reading)


class Answer:
    def __init__(self, request: Request, reader: "Reader", reading: asyncio.Task[list[Event]]) -> None:
        self.id = request.response_id
        self.request = request
        self.reader = reader
        self._reading = reading

    async def events(self) -> list[Event]:
        return await self._reading

    async def response(self) -> Response:
        last = (await self.events())[-1]
        response: Response = last.response  # type: ignore[union-attr]
        return response

    async def text(self) -> str:
        return "".join(event for event in await self.events() if isinstance(event, TextDelta))


MakeShop = Callable[[], Shop]


@pytest.fixture
def make_shop(meter: FakeMeter, make_request: "RequestFactory", make_reader: "MakeReader") -> MakeShop:
    return lambda: Shop(meter, make_request, make_reader)


@pytest.fixture
async def shop(watched_loop: None, make_shop: MakeShop) -> AsyncIterator[Shop]:
    shop = make_shop()
    yield shop
    await shop.close()
