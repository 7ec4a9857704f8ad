"""What a frame costs between the engine's step and the socket, without either.

The real queue, worker, sessions and codecs with connections that write nowhere, paired in one run with
the usual way: an asyncio.Queue and a writer task for each session.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence

import uvloop

from internal.biz.chat import Chat, ChatRules
from internal.biz.events import TextDelta
from internal.biz.flusher import Flusher
from internal.biz.generation import Finished, FinishReason, Job
from internal.biz.limits import NoLimits
from internal.biz.models import Caller
from internal.biz.ports import Capabilities, Progress, Sink
from internal.biz.session import Codec, Session, SessionLimits
from internal.biz.worker import Worker
from internal.data.memory_history import MemoryHistory
from internal.data.memory_queue import MemoryQueue, QueueLimits
from internal.metrics.instruments import Instruments
from internal.service.codec.responses import ResponsesCodec
from internal.service.codec.text import TextCodec

SESSIONS = 500
CHUNKS = 64


class NullConnection:
    """Counts frames instead of writing them."""

    remote = "127.0.0.1"
    buffered_bytes = 0

    def __init__(self) -> None:
        self.frames = 0

    def frame(self, payloads: Sequence[bytes]) -> bytes:
        self.frames += len(payloads)
        return b"".join(payloads)

    def write(self, frames: bytes) -> bool:
        return False

    def ping(self) -> None: ...

    async def drain(self) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...


class SteppedEngine:
    """Says a chunk for each job when told to."""

    capabilities = Capabilities(context_length=0, slots=SESSIONS)

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._sink: Sink | None = None

    async def start(self, sink: Sink, progress: Progress) -> None:
        self._sink = sink

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def cancel(self, job: Job) -> None: ...

    async def stop(self) -> None: ...

    def step(self, number: int) -> None:
        assert self._sink is not None
        self._sink.put([(job, TextDelta(f"chunk {number}: hello")) for job in self._jobs])

    def finish(self) -> None:
        assert self._sink is not None
        self._sink.put([(job, Finished(FinishReason.STOP)) for job in self._jobs])
        self._jobs.clear()


async def _settle() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


async def _measure(codec: Codec, message: bytes) -> float:
    """Microseconds for each text frame, whole requests included."""
    instruments, history, engine = Instruments(), MemoryHistory(), SteppedEngine()
    queue = MemoryQueue(QueueLimits(), history.finish)
    worker = Worker("bench", engine, queue, history, history.finish, instruments)
    chat = Chat(queue, history, NoLimits(), history.finish, ChatRules(("bench",)))
    flusher = Flusher(asyncio.get_running_loop())
    limits = SessionLimits(max_in_flight=8, write_timeout_s=5.0)
    sessions = [
        Session(str(i), Caller(str(i)), NullConnection(), codec, chat, flusher, limits)
        for i in range(SESSIONS)
    ]
    task = asyncio.create_task(worker.run(lambda done: None))
    await _settle()
    began = time.process_time()
    for session in sessions:
        await session.receive(message)
    await _settle()
    for number in range(CHUNKS):
        engine.step(number)
        await _settle()
    engine.finish()
    await _settle()
    seconds = time.process_time() - began
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return seconds * 1e6 / (SESSIONS * CHUNKS)


async def _measure_queues() -> float:
    """The same number of texts through an asyncio.Queue and a task for each session."""
    connections = [NullConnection() for _ in range(SESSIONS)]
    queues: list[asyncio.Queue[str]] = [asyncio.Queue(128) for _ in range(SESSIONS)]

    async def write(queue: "asyncio.Queue[str]", connection: NullConnection) -> None:
        while True:
            connection.write(connection.frame([(await queue.get()).encode()]))

    tasks = [
        asyncio.create_task(write(queue, connection))
        for queue, connection in zip(queues, connections, strict=True)
    ]
    await _settle()
    began = time.process_time()
    for number in range(CHUNKS):
        for queue in queues:
            queue.put_nowait(f"chunk {number}: hello")
        await _settle()
    seconds = time.process_time() - began
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return seconds * 1e6 / (SESSIONS * CHUNKS)


def run(rounds: int) -> list[tuple[str, float, float]]:
    """(name, µs a frame, ratio to the asyncio.Queue way), medians of `rounds` interleaved rounds."""
    create = b'{"type":"response.create","input":"hello"}'
    kinds: dict[str, Callable[[], Coroutine[None, None, float]]] = {
        "asyncio.Queue and task": _measure_queues,
        "bare text": lambda: _measure(TextCodec(), b"hello"),
        "Responses API": lambda: _measure(ResponsesCodec(), create),
    }
    samples: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, measure in kinds.items():
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                samples[name].append(runner.run(measure()))
    base = samples["asyncio.Queue and task"]
    rows = []
    for name, values in samples.items():
        ratios = sorted(value / other for value, other in zip(values, base, strict=True))
        rows.append((name, sorted(values)[rounds // 2], ratios[rounds // 2]))
    return rows
