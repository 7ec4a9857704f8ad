"""The processes: servers and workers of Sluice, a Redis, the library alone, clients. All end with who has
started them."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import chats
import library
from task import Task

from cmd.local_redis import HOST, LocalRedis, find_server, free_port
from internal.biz.errors import SluiceError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
MODEL = "model"
START_S = 150.0
STOP_S = 20.0
MOST_SAID = 200_000
"""Characters of a program's log that are kept."""


class Broken(Exception):
    """A process did not do what it is for."""


@dataclass(slots=True)
class Program:
    """A server or a worker, with what it logs."""

    name: str
    port: int
    log_file: Path
    process: "subprocess.Popen[bytes]"

    def get(self, path: str) -> tuple[int, str]:
        """Status and body. Raises OSError when nobody answers."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def samples(self, name: str) -> dict[str, float]:
        """The samples of a metric, by what stands in braces behind the name."""
        found = re.findall(rf"^{name}(?:\{{(.*)\}})? ([-+.e\w]+)$", self.get("/metrics")[1], re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    async def ready(self) -> None:
        deadline_s = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if (await asyncio.to_thread(self.get, "/readyz"))[0] == 200:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                raise Broken(f"{self.name} does not start: {self.last_words()}")
            await asyncio.sleep(0.1)

    def last_words(self) -> str:
        said = self.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(said[-5:])

    def stop(self) -> None:
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(slots=True)
class Site:
    """A server that is ready, and its workers, if it has any."""

    server: Program
    workers: list[Program] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"ws://{HOST}:{self.server.port}"


def why_no_redis() -> str:
    """Empty where there is one to start."""
    try:
        find_server()
    except SluiceError as error:
        return error.message
    return ""


@contextlib.asynccontextmanager
async def site(
    task: Task, driver: str, slots: int, *, workers: int = 1, **queue: object
) -> AsyncIterator[Site]:
    """With the queue in memory the engine is a thread of the server; with Redis, `workers` have one each.
    `queue`: more of its settings."""
    with contextlib.ExitStack() as around:
        folder = Path(around.enter_context(TemporaryDirectory(prefix="sluice-site-")))
        config: dict[str, object] = {
            "models": [{"name": MODEL, "generator": "exllamav2", "options": _options(task, slots)}],
            "queue": {"driver": driver, **queue},
            "storage": {"url": "", "titles": False},
            "auth": {"secret_file": f"{folder}/secret.key"},
            "files": {"folder": f"{folder}/files"},
            "shutdown": {"timeout": "2s"},
        }
        if driver == "redis":
            redis = around.enter_context(LocalRedis(find_server(), folder))
            config["queue"] = {"driver": driver, "url": redis.url, **queue}
            config["storage"] = {"url": f"sqlite:///{folder}/sluice.db", "titles": False}
        server = around.enter_context(_program("cmd.server", 0, folder, config))
        found = Site(server)
        for number in range(workers if driver == "redis" else 0):
            found.workers.append(around.enter_context(_program("cmd.worker", number, folder, config)))
        for program in (server, *found.workers):
            await program.ready()
        yield found


def _options(task: Task, slots: int) -> Mapping[str, object]:
    load = task.load(slots)
    return {
        "path": str(load.path),
        "cache": load.cache,
        "cache_tokens": load.cache_tokens,
        "max_seq_len": load.max_seq_len,
        "max_batch_size": load.slots,
        "chunk_size": load.chunk_size,
        "temperature": 0,
    }


@contextlib.contextmanager
def _program(module: str, number: int, folder: Path, config: Mapping[str, object]) -> Iterator[Program]:
    port, name = free_port(), f"{module}-{number}"
    address = {"http": {"addr": f"{HOST}:{port}"}}
    conf, log_file = folder / f"{name}.yaml", folder / f"{name}.log"
    conf.write_text(json.dumps({**config, "server": address, "worker": address}))  # JSON is YAML
    own = {key: value for key, value in os.environ.items() if not key.startswith("SLUICE_")}
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "-conf", str(conf)],
            cwd=ROOT,
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    program = Program(name, port, log_file, process)
    try:
        yield program
    finally:
        program.stop()
        # Its log goes with its folder; what the part prints is kept.
        said = log_file.read_text(encoding="utf-8", errors="replace")[-MOST_SAID:]
        print(f"── {name}\n{said}", file=sys.stderr, flush=True)


class Bare:
    """The library alone, in a process of its own that has the model loaded as well."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def answers(self, questions: Sequence[str], tokens: int) -> chats.Round:
        """All at a time, each of exactly `tokens`."""
        assert self._process.stdin is not None
        self._process.stdin.write((json.dumps({"questions": questions, "tokens": tokens}) + "\n").encode())
        found = json.loads(await _line(self._process, library.MARK))
        each = zip(found["texts"], found["at_s"], strict=True)
        return chats.Round([chats.Heard(text, tokens, at_s, [], "") for text, at_s in each], found["seconds"])


@contextlib.asynccontextmanager
async def bare(task: Task, slots: int) -> AsyncIterator[Bare]:
    process = await _started("library.py", task.as_json(), str(slots))
    try:
        async with asyncio.timeout(START_S):
            await _line(process, library.MARK)
        yield Bare(process)
    finally:
        await _ended(process)


class Clients:
    """Chats that are going on."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def spoken(self) -> None:
        """Until every chat has had as many frames as was wanted."""
        said = await _line(self._process, chats.MARK)
        if said != chats.SPOKEN:
            raise Broken(f"the clients said {said[:200]}")

    async def done(self) -> chats.Round:
        return chats.parse(await _line(self._process, chats.MARK))


@contextlib.asynccontextmanager
async def clients(wanted: chats.Wanted) -> AsyncIterator[Clients]:
    process = await _started("chats.py")
    try:
        assert process.stdin is not None
        process.stdin.write((json.dumps(asdict(wanted)) + "\n").encode())
        yield Clients(process)
    finally:
        await _ended(process)


async def converse(site: Site, questions: list[str], tokens: int) -> chats.Round:
    """A round of chats, each on a WebSocket of its own."""
    wanted = chats.Wanted(f"{site.url}/v1/responses", MODEL, questions, tokens)
    async with clients(wanted) as talking:
        await talking.spoken()
        return await talking.done()


async def _started(program: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / program),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 28,  # a round of chats is one line
    )


async def _line(process: asyncio.subprocess.Process, mark: str) -> str:
    """The next line that begins with `mark`, without it."""
    assert process.stdout is not None
    while line := (await process.stdout.readline()).decode():
        if line.startswith(mark):
            return line.removeprefix(mark).strip()
    raise Broken(f"a process ended that was to say more, with {await process.wait()}")


async def _ended(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
