"""A cluster of real processes to do harm to, and clients that notice everything that is lost.

`cluster` runs servers and workers on a Redis of the test's own. What still lives at the end is stopped by
SIGTERM, must exit with 0, and must not have logged an error that nobody expected.
"""

import asyncio
import contextlib
import itertools
import json
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pytest
import yaml
from aiohttp import ClientError, ClientSession, ClientTimeout, CookieJar
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from sqlalchemy.engine import Row
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from cmd.local_redis import free_port
from internal.data.sql.database import Database

if TYPE_CHECKING:
    from test.conftest import Child, OwnRedis, StartProgram

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
HOST = "127.0.0.1"
PATIENCE_S = 20.0
"""What a single step of a test may take on a busy machine. Never reached by a test that passes."""
START_DEADLINE_S = 60.0
LEASE_S = 1.0

JSON = dict[str, Any]
TERMINAL = ("response.completed", "response.incomplete", "response.failed")
ALARMS = re.compile(
    r"Traceback|Task was destroyed|never retrieved|never awaited|Warning:|Fatal|CRITICAL|Exception|Unhandled"
)
"""Nothing that breaks outside of a process may make it say such a thing."""
LOST = re.compile(r"(?:append refused|lease lost) response=(\S+)")
"""How a worker says that an answer is not its own any more."""

CHUNKS, INTERVAL_S = 60, 0.05
ECHO: JSON = {
    "name": "echo",
    "generator": "echo",
    "options": {"chunks": CHUNKS, "interval": f"{INTERVAL_S * 1000:g}ms", "slots": 200},
}
SMOLLM2: JSON = {
    "name": "smollm2",
    "generator": "llamacpp",
    # The most likely token each time: the same answers in every run.
    "options": {"slots": 6, "context": 512, "threads": 1, "temperature": 0, "max_output_tokens": 40},
}
STORY = "Tell me a long story about a dog who sails around the world."


async def until(
    condition: Callable[[], Awaitable[bool]], what: Callable[[], str], within_s: float = PATIENCE_S
) -> None:
    """For what happens in another process. `what` says how things stand when it does not."""
    deadline_s = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < deadline_s, what()
        await asyncio.sleep(0.02)


async def together(steps: Iterable[Awaitable[None]]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for step in steps:
            tasks.create_task(_run(step))


async def _run(step: Awaitable[None]) -> None:
    await step


# ── processes ────────────────────────────────────────────────────────────────────────────────────


class Reply(NamedTuple):
    """What a plain HTTP request was answered with. `seconds`: after how long."""

    status: int
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True, eq=False)
class Process:
    """A server or a worker."""

    name: str
    port: int
    log_file: Path
    popen: "Child"
    paused: bool = False

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def lives(self) -> bool:
        return self.popen.poll() is None

    async def get(self, path: str) -> Reply:
        """Raises OSError when nobody answers."""
        asked_at = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(HOST, self.port)
            with contextlib.closing(writer):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        if not head:
            raise ConnectionError("cut off")  # somebody else tried whether the port is free
        return Reply(int(head.split()[1]), body, time.monotonic() - asked_at)

    async def ready(self) -> bool:
        return (await self.get("/readyz")).status == 200

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels; -1 when there are none."""
        families = text_string_to_metric_families((await self.get("/metrics")).body.decode())
        found = [
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else -1

    async def metric_becomes(self, name: str, value: float, **labels: str) -> None:
        seen = 0.0

        async def reached() -> bool:
            nonlocal seen
            seen = await self.metric(name, **labels)
            return seen == value

        await until(reached, lambda: f"{self.name}: {name} is {seen}, and did not become {value}")

    async def says(self, words: str) -> None:
        """Wait until its log has these words."""

        async def said() -> bool:
            return words in self.log

        await until(said, lambda: f"{self.name} did not say {words!r}:\n{self.log}")

    def kill(self) -> None:
        """It has no time to say a word."""
        self.popen.kill()
        self.popen.wait()

    def pause(self) -> None:
        """Returns when it stands still."""
        self.popen.pause()
        self.paused = True

    def resume(self) -> None:
        self.popen.send_signal(signal.SIGCONT)
        self.paused = False

    async def started(self) -> None:
        async def up() -> bool:
            assert self.lives, f"{self.name} ended with {self.popen.returncode}:\n{self.log}"
            with contextlib.suppress(OSError):
                return await self.ready()
            return False

        async with asyncio.timeout(START_DEADLINE_S):
            await until(up, lambda: f"{self.name} was not ready in time:\n{self.log}")

    async def stopped(self) -> None:
        """It was told to stop, and must do so quietly."""
        status = await asyncio.to_thread(self.popen.wait, PATIENCE_S)
        assert status == 0, f"{self.name} ended with {status}:\n{self.log}"


# ── clients ──────────────────────────────────────────────────────────────────────────────────────


class Client:
    """One `/v1/responses` WebSocket at a time, and all that was heard of one answer, on whichever server.

    `arrived_at_s` tells when each event came.
    """

    def __init__(self, message: str, person: "Person | None" = None) -> None:
        self.message = message
        self.person = person
        self.events: list[JSON] = []
        self.errors: list[JSON] = []
        self.arrived_at_s: list[float] = []
        self.connected = False
        self.server: Process | None = None
        self._connection: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    async def connect(self, server: Process) -> None:
        await self.leave()
        url = f"ws://{HOST}:{server.port}/v1/responses"
        headers = self.person.headers if self.person else {}
        self._connection = await connect(
            url, additional_headers=headers, proxy=None, ping_interval=None, open_timeout=PATIENCE_S
        )
        self.server, self.connected = server, True
        self._reader = asyncio.create_task(self._read(self._connection))

    async def _read(self, connection: ClientConnection) -> None:
        try:
            while True:
                event = json.loads(await connection.recv())
                if event["type"] == "error":
                    self.errors.append(event["error"])
                else:
                    self.events.append(event)
                    self.arrived_at_s.append(time.monotonic())
                self._news.set()
        except ConnectionClosed:
            self.connected = False
            self._news.set()

    async def leave(self) -> None:
        if self._connection is not None and self._reader is not None:
            await self._connection.close()
            await self._reader
        self._connection = self._reader = None

    async def _send(self, event: JSON) -> None:
        assert self._connection is not None
        await self._connection.send(json.dumps(event))

    async def ask(self, model: str = "echo", **fields: object) -> None:
        """Ask for a new answer."""
        self.events, self.errors, self.arrived_at_s = [], [], []
        await self._send({"type": "response.create", "model": model, "input": self.message, **fields})

    async def go_on(self, server: Process) -> None:
        """Connect to a server, and take up the answer behind the last number that was seen."""
        await self.connect(server)
        resume: JSON = {"type": "response.resume", "response_id": self.response_id}
        if self.events:
            resume["starting_after"] = self.numbers[-1]
        await self._send(resume)

    async def continue_dialogue(self, server: Process, model: str = "echo", **fields: object) -> None:
        """Connect to a server, and ask there what comes behind the answer that was heard last."""
        previous = self.response_id
        await self.connect(server)
        await self.ask(model, previous_response_id=previous, **fields)

    async def _until(self, condition: Callable[[], bool], *, connected: bool = True) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    assert self.connected or not connected, f"{self} was cut off"
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"{self} waits for ever")

    async def spoken_to(self, count: int = 1) -> None:
        """So many pieces of text have come."""
        await self._until(lambda: len(self.deltas) >= count or self.types[-1:] == ["response.failed"])
        assert len(self.deltas) >= count, self

    async def queued(self) -> None:
        await self._until(lambda: bool(self.events))

    async def ended(self) -> None:
        await self._until(lambda: self.types[-1:] != [] and self.types[-1] in TERMINAL)

    async def refused(self) -> JSON:
        """The next error."""
        await self._until(lambda: bool(self.errors))
        return self.errors.pop(0)

    async def cut_off(self) -> None:
        await self._until(lambda: not self.connected, connected=False)

    @property
    def response_id(self) -> str:
        found: str = self.events[0]["response"]["id"]
        return found

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    @property
    def numbers(self) -> list[int]:
        return [event["sequence_number"] for event in self.events]

    @property
    def deltas(self) -> list[str]:
        return [event["delta"] for event in self.events if event["type"] == "response.output_text.delta"]

    @property
    def text(self) -> str:
        return "".join(self.deltas)

    @property
    def response(self) -> JSON:
        """The response object of the last event."""
        response: JSON = self.events[-1]["response"]
        return response

    @property
    def longest_silence_s(self) -> float:
        """Between two events."""
        return max(after - before for before, after in itertools.pairwise(self.arrived_at_s))

    def __repr__(self) -> str:
        last = [event["type"] for event in self.events[-2:]]
        return f"<{self.message!r}: {len(self.events)} events, last {last}, errors {self.errors}>"

    # ── checks ───────────────────────────────────────────────────────────────────────────────────

    def require_consistent(self, status: str) -> None:
        """Every event of one whole answer once, in order, and what is repeated at the end agrees."""
        assert self.numbers == list(range(len(self.events))), self
        assert self.types[-1] == f"response.{status}", self
        assert self.response["status"] == status
        opening = ["response.queued", "response.created", "response.in_progress"]
        assert self.types[:3] == opening, self.types[:5]
        for once in ("response.created", "response.in_progress", *TERMINAL):
            assert self.types.count(once) <= 1, self.types
        output = [part["text"] for item in self.response["output"] for part in item["content"]]
        if self.deltas:
            assert self.types.count("response.output_item.added") == 1
            done = [event["text"] for event in self.events if event["type"] == "response.output_text.done"]
            assert done == output == [self.text]
        else:
            assert output == []
        ids = {event["response"]["id"] for event in self.events if "response" in event}
        assert ids == {self.response_id}

    def require_exact(self, chunks: int = CHUNKS) -> None:
        """A whole answer of the echo model, each chunk an event of its own."""
        assert self.deltas == [f"chunk {number}: {self.message}" for number in range(1, chunks + 1)]
        self.require_consistent("completed")
        assert self.response["usage"]["output_tokens"] == chunks


class Streams(tuple[Client, ...]):
    """Clients that do the same."""

    __slots__ = ()

    def on(self, server: Process) -> "Streams":
        return Streams(client for client in self if client.server is server)

    def split(self, count: int) -> "tuple[Streams, Streams]":
        return Streams(self[:count]), Streams(self[count:])

    async def ask(self, model: str = "echo", **fields: object) -> None:
        await together(client.ask(model, **fields) for client in self)

    async def spoken_to(self, count: int = 1) -> None:
        await together(client.spoken_to(count) for client in self)

    async def queued(self) -> None:
        await together(client.queued() for client in self)

    async def ended(self) -> None:
        await together(client.ended() for client in self)

    async def cut_off(self) -> None:
        await together(client.cut_off() for client in self)

    async def go_on(self, server: Process) -> None:
        await together(client.go_on(server) for client in self)

    async def continue_dialogue(self, server: Process, model: str = "echo", **fields: object) -> None:
        await together(client.continue_dialogue(server, model, **fields) for client in self)

    def require_connected(self) -> None:
        """Nobody lost the connection, and nobody was told of an error."""
        for client in self:
            assert client.connected, client
            assert not client.errors, client

    def require_exact(self, chunks: int = CHUNKS) -> None:
        for client in self:
            client.require_exact(chunks)

    def require_running(self) -> None:
        """The fault did hit in mid-stream."""
        assert not any(client.types[-1] in TERMINAL for client in self)


class Person:
    """A guest with conversations, whom every server knows by a cookie."""

    def __init__(self) -> None:
        self._http = ClientSession(
            cookie_jar=CookieJar(unsafe=True), timeout=ClientTimeout(PATIENCE_S), trust_env=False
        )

    @property
    def headers(self) -> dict[str, str]:
        return {"Cookie": "; ".join(f"{it.key}={it.value}" for it in self._http.cookie_jar)}

    async def call(self, server: Process, method: str, path: str, **body: object) -> Reply:
        asked_at = time.monotonic()
        url = f"http://{HOST}:{server.port}{path}"
        async with self._http.request(method, url, json=body or None) as response:
            return Reply(response.status, await response.read(), time.monotonic() - asked_at)

    async def begin(self, server: Process, count: int) -> list[str]:
        """So many conversations, in which nothing was said yet."""
        begun = []
        for _ in range(count):
            reply = await self.call(server, "POST", "/conversations")
            assert reply.status == 201, reply
            begun.append(reply.json["session_id"])
        return begun

    async def said(self, server: Process, conversation: str) -> list[tuple[str, str]]:
        """Who said what there, as a server tells."""
        reply = await self.call(server, "GET", f"/conversations/{conversation}/history")
        assert reply.status == 200, reply
        return [(message["role"], message["content"]) for message in reply.json["messages"]]

    async def listen(self, server: Process, conversation: str, heard: asyncio.Event, message: str) -> str:
        """Say something, and read the stream as far as it comes. `heard`: it was accepted."""
        url = f"http://{HOST}:{server.port}/chat/message"
        body = {"session_id": conversation, "message": message}
        told = b""
        with contextlib.suppress(OSError, ClientError):
            async with self._http.post(url, json=body) as response:
                assert response.status == 200, await response.text()
                heard.set()
                async for data in response.content.iter_any():
                    told += data
        return told.decode()

    async def close(self) -> None:
        await self._http.close()


# ── what is stored ───────────────────────────────────────────────────────────────────────────────


class Stored:
    """The database, looked at past the servers."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def rows(self, query: str) -> Sequence[Row[Any]]:
        database = Database(self.url)
        try:
            return await database.read(text(query))
        finally:
            await database.close()

    async def responses(self) -> dict[str, Row[Any]]:
        return {row.id: row for row in await self.rows("SELECT * FROM responses")}

    async def questions(self) -> dict[str, str]:
        """By response."""
        return await self._messages("input")

    async def answers(self) -> dict[str, str]:
        return await self._messages("output")

    async def _messages(self, kind: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for row in await self.rows(f"SELECT * FROM messages WHERE kind = '{kind}'"):
            assert row.response_id not in found, f"{row.response_id} has two messages: {kind}"
            found[row.response_id] = row.content
        return found

    async def nothing_runs(self, within_s: float = PATIENCE_S) -> None:
        """Wait until all responses have ended."""
        running: Sequence[Row[Any]] = ()

        async def ended() -> bool:
            nonlocal running
            running = await self.rows("SELECT id FROM responses WHERE ended_at IS NULL")
            return not running

        await until(ended, lambda: f"{len(running)} responses did not end: {running[:3]}", within_s)

    async def require(self, clients: "Iterable[Client]", *, failed: str = "") -> None:
        """What the clients were told is what is stored, once. One who did not hear the end has either the
        whole answer there, or none, because it `failed` with this code."""
        responses, questions, answers = await self.responses(), await self.questions(), await self.answers()
        for client in clients:
            row = responses[client.response_id]
            assert questions[client.response_id] == client.message
            if client.types[-1] in TERMINAL:
                assert row.status == client.response["status"], client
            if row.status == "failed":
                assert client.types[-1] == "response.failed" or row.error_code == failed, (client, row)
                assert client.response_id not in answers
            else:
                assert row.status in ("completed", "incomplete"), (client, row)
                answer = answers.get(client.response_id, "")
                assert answer.startswith(client.text), client
                if client.types[-1] in TERMINAL:
                    assert answer == client.text


# ── the cluster ──────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Cluster:
    """Servers and workers on one Redis, and their clients. `worker_program`: what a worker runs."""

    redis: "OwnRedis"
    folder: Path
    config: JSON
    start_program: "StartProgram"
    worker_program: Sequence[str] = ("-m", "cmd.worker")
    servers: list[Process] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    persons: list[Person] = field(default_factory=list)

    @property
    def stored(self) -> Stored:
        return Stored(self.config["storage"]["url"])

    def _spawn(self, program: str, number: int) -> Process:
        port, name = free_port(), f"{program}-{number}"
        words = self.worker_program if program == "worker" else ("-m", f"cmd.{program}")
        conf, log_file = self.folder / f"{name}.yaml", self.folder / f"{name}.log"
        http = {"http": {"addr": f"{HOST}:{port}"}}
        conf.write_text(yaml.safe_dump({**self.config, "server": http, "worker": http}))
        with log_file.open("wb") as log:
            popen = self.start_program([*words, "-conf", str(conf)], stdout=log, stderr=log)
        return Process(name, port, log_file, popen)

    async def start(self, servers: int, workers: int) -> None:
        """Returns when every server knows every worker."""
        self.servers = [self._spawn("server", number) for number in range(servers)]
        self.workers = [self._spawn("worker", number) for number in range(workers)]
        await together(process.started() for process in self.processes)
        if self.config["queue"]["driver"] == "redis":
            await together(self.know_workers(server, workers) for server in self.servers)

    async def another_server(self) -> Process:
        """Started, and ready."""
        server = self._spawn("server", len(self.servers))
        self.servers.append(server)
        await server.started()
        return server

    async def another_worker(self) -> Process:
        """Started, and ready."""
        worker = self._spawn("worker", len(self.workers))
        self.workers.append(worker)
        await worker.started()
        return worker

    def person(self) -> Person:
        self.persons.append(Person())
        return self.persons[-1]

    async def know_workers(self, server: Process, count: int) -> None:
        """Wait until a server is ready and counts so many workers for each model."""
        seen: JSON = {}

        async def known() -> bool:
            nonlocal seen
            reply = await server.get("/readyz")
            seen = reply.json
            counts = [model["workers"] for model in seen["models"].values()]
            return reply.status == 200 and counts == [count] * len(self.config["models"])

        await until(known, lambda: f"{server.name} does not know {count} workers: {seen}")

    @property
    def processes(self) -> Sequence[Process]:
        return (*self.servers, *self.workers)

    async def connect(
        self, count: int, *servers: Process, message: str = "message {}", person: Person | None = None
    ) -> Streams:
        """Clients, spread over these servers, or all."""
        spread = itertools.cycle(servers or self.servers)
        streams = Streams(Client(message.format(number), person) for number in range(1, count + 1))
        self.clients += streams
        await together(client.connect(server) for client, server in zip(streams, spread, strict=False))
        return streams

    async def stream(self, count: int, *servers: Process, model: str = "echo", spoken: int = 10) -> Streams:
        """As many answers, of which all have begun: so many pieces have come of each."""
        message = "message {}" if model == "echo" else STORY
        streams = await self.connect(count, *servers, message=message)
        await streams.ask(model)
        await streams.spoken_to(spoken)
        return streams

    async def busy(self, model: str = "echo") -> dict[Process, int]:
        """How many answers each worker runs, as it said last."""
        server = next(one for one in self.servers if one.lives and not one.paused)
        # A worker is named HOST-PID-RANDOM.
        by_pid = {
            int(worker["id"].split("-")[-2]): worker["busy"]
            for worker in (await server.get("/v1/workers")).json["data"]
            if worker["model"] == model
        }
        return {one: by_pid[one.popen.pid] for one in self.workers if one.popen.pid in by_pid}

    async def busiest(self, running: int, model: str = "echo") -> tuple[Process, int]:
        """The worker that runs the most of the `running` answers, and how many those are."""
        seen: dict[Process, int] = {}

        async def told() -> bool:
            nonlocal seen
            seen = await self.busy(model)
            return sum(seen.values()) == running

        await until(told, lambda: f"of {running} answers run {list(seen.values())}")
        worker = max(seen, key=lambda one: seen[one])
        return worker, seen[worker]

    async def gives_up(self, worker: Process, answers: int, model: str = "echo") -> None:
        """Wait until a worker has learned that so many answers are not its own any more, by what it wanted
        to write or when it renewed its leases, and its engine has stopped."""
        lost: set[str] = set()
        busy = 0

        async def given_up() -> bool:
            nonlocal lost, busy
            lost = set(LOST.findall(worker.log))
            busy = (await self.busy(model)).get(worker, -1)
            return len(lost) == answers and busy == 0

        await until(given_up, lambda: f"{worker.name} lost {len(lost)} of {answers} answers, runs {busy}")
        refused = worker.log.count("append refused")
        assert max(0, await worker.metric("sluice_appends_refused_total")) == refused

    async def takeovers(self) -> float:
        living = [one for one in self.workers if one.lives and not one.paused]
        return sum([max(0, await one.metric("sluice_lease_takeovers_total")) for one in living])

    async def taken_over(self, answers: int) -> None:
        """Wait until the workers that live have taken over so many answers."""
        seen = 0.0

        async def done() -> bool:
            nonlocal seen
            seen = await self.takeovers()
            return seen == answers

        await until(done, lambda: f"{seen} of {answers} answers were taken over")

    async def wait_until(self, time_s: float) -> None:
        """For how long something lasts that is done to the cluster."""
        await asyncio.sleep(max(0.0, time_s - time.monotonic()))

    async def becomes(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        await until(condition, lambda: f"it did not come about that {what}")

    async def nothing_runs(self) -> None:
        """Wait until no request is left, waiting or running."""
        server = next(one for one in self.servers if one.lives)
        await server.metric_becomes("sluice_queue_depth", 0)
        await server.metric_becomes("sluice_queue_running", 0)

    async def stop(self) -> None:
        """Stop what lives; it must go quietly, and nobody may have been surprised."""
        await together(client.leave() for client in self.clients)
        await together(person.close() for person in self.persons)
        living = [one for one in self.processes if one.lives]
        for process in living:
            process.popen.terminate()
        await together(process.stopped() for process in living)
        for process in self.processes:
            assert not ALARMS.search(process.log), f"{process.name}:\n{process.log}"

    async def end_at_once(self) -> None:
        for process in self.processes:
            process.kill()
        await together(client.leave() for client in self.clients)
        await together(person.close() for person in self.persons)


class RunCluster(Protocol):
    def __call__(
        self,
        *,
        servers: int = 1,
        workers: int = 2,
        models: Sequence[JSON] = (ECHO,),
        program: str = "",
        **sections: JSON,
    ) -> AbstractAsyncContextManager[Cluster]:
        """Run so many of each; `sections` go into the configuration. `program`: one of `programs` that the
        workers run."""


@pytest.fixture
def run_cluster(own_redis: "OwnRedis", tmp_path: Path, start_program: "StartProgram") -> RunCluster:
    @contextlib.asynccontextmanager
    async def run(
        *,
        servers: int = 1,
        workers: int = 2,
        models: Sequence[JSON] = (ECHO,),
        program: str = "",
        **sections: JSON,
    ) -> AsyncIterator[Cluster]:
        own: JSON = {"driver": "redis", "url": own_redis.url, "lease": f"{LEASE_S:g}s"}
        queue: JSON = {**own, **sections.get("queue", {})}
        storage: JSON = {
            "url": f"sqlite:///{tmp_path}/sluice.db",
            **sections.get("storage", {}),
        }
        auth: JSON = {"secret_file": str(tmp_path / "secret.key"), **sections.get("auth", {})}
        config = {**sections, "models": list(models), "queue": queue, "storage": storage, "auth": auth}
        cluster = Cluster(own_redis, tmp_path, config, start_program)
        if program:
            cluster.worker_program = (str(PROGRAMS / program),)
        try:
            await cluster.start(servers, workers)
            yield cluster
            await cluster.stop()
        finally:
            await cluster.end_at_once()

    return run


@pytest.fixture(scope="session")
def smollm2() -> JSON:
    """A real model, small and with the same answers in every run."""
    return SMOLLM2


@pytest.fixture(scope="session")
def lease_s() -> float:
    return LEASE_S
