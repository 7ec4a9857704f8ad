"""What the storage takes: turns per second, each a question and its answer, at several numbers of callers.

The real history on both databases, with commits that many callers share, paired with a transaction for
every write. PostgreSQL waits for the disk at every commit, SQLite does not: see internal/data/sql/engine.py.
"""

import asyncio
import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvloop
from sqlalchemy.engine import Connection

from cmd.local_postgres import LocalPostgres, find_server
from internal.biz.ids import new_id
from internal.biz.models import (
    ItemKind,
    Message,
    OutputItem,
    Request,
    Response,
    Role,
    Settings,
    Status,
    Usage,
)
from internal.data.sql.database import Confirmation, Database, Part
from internal.data.sql.engine import Bounds
from internal.data.sql.history import SqlHistory
from internal.data.sql.migrate import migrate

CALLERS = (1, 10, 100, 1000)
SECONDS = 0.8
QUESTION = "What is the tallest mountain of the Alps, and who was the first to climb it? " * 2
ANSWER = "Mont Blanc, 4,806 m; Jacques Balmat and Michel Paccard climbed it on 8 August 1786. " * 8


class OneByOne(Database):
    """As a database is used without group commits: a transaction for every write, on ten connections."""

    def __init__(self, url: str) -> None:
        super().__init__(url, Bounds(writers=10, command_timeout_s=60.0))

    async def write(self, *parts: Part, confirm: Confirmation | None = None) -> bool:
        def work(connection: Connection) -> None:
            for write, values in sorted(parts, key=lambda part: part[0].rank):
                if values:
                    connection.execute(write.statement, values)
            if confirm is not None:
                connection.execute(confirm[0], {"ids": [confirm[1]]})

        await self.transact(work)
        self.commits += 1
        return True


@dataclass(frozen=True, slots=True)
class Rate:
    """Per second, of `callers` at once. A turn is two writes. `p50_ms`: how long a question takes to be
    accepted, in the middle of all. `alone`: turns per second without group commits."""

    callers: int
    turns: float
    commits: float
    p50_ms: float
    alone: float


async def _turn(history: SqlHistory, user: str, conversation_id: str, *, is_first: bool) -> float:
    """Seconds until the question was accepted."""
    settings = Settings(conversation_id=conversation_id)
    asked = (Message(Role.USER, QUESTION),)
    request = Request(new_id("resp"), "m", user, time.time(), asked, settings)
    start = time.perf_counter()
    await history.begin(request, None, begins=is_first, wants_title=False)
    accepted_s = time.perf_counter() - start
    said = (OutputItem(ItemKind.MESSAGE, ANSWER),)
    usage = Usage(40, 0, 180, 0)
    await history.finish([Response.of(request, Status.COMPLETED, output=said, usage=usage, attempt=1)])
    return accepted_s


async def _measure(database: Database, callers: int) -> tuple[float, float, float]:
    """Turns and commits per second, and the median of acceptance in ms."""
    history = SqlHistory(database)
    writing = asyncio.create_task(database.run())
    accepted: list[float] = []
    end = float("inf")

    async def talk(number: int) -> None:
        conversation_id = new_id("conv")
        for turn in itertools.count():
            took = await _turn(history, f"user_{number}", conversation_id, is_first=not turn)
            if turn:
                accepted.append(took)
            if time.perf_counter() > end:
                break

    # The first turn of each opens its conversation, and all connections.
    await _turn(history, "user", new_id("conv"), is_first=True)
    start, commits = time.perf_counter(), database.commits
    end = start + SECONDS
    await asyncio.gather(*(talk(number) for number in range(callers)))
    took = time.perf_counter() - start
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await database.close()
    turns = len(accepted) + callers
    p50_ms = sorted(accepted)[len(accepted) // 2] * 1000 if accepted else float("nan")
    return turns / took, (database.commits - commits) / took, p50_ms


async def _rates(url: str) -> list[Rate]:
    await migrate(url)
    rates = []
    for callers in CALLERS:
        alone, _, _ = await _measure(OneByOne(url), callers)
        turns, commits, p50_ms = await _measure(Database(url), callers)
        rates.append(Rate(callers, turns, commits, p50_ms, alone))
    return rates


@contextmanager
def _url(name: str) -> Iterator[str]:
    if name == "postgresql":
        with LocalPostgres(find_server(), durable=True) as server:
            yield server.url
        return
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/bench.db"


def run() -> dict[str, list[Rate]]:
    """By database."""
    found = {}
    for name in ("sqlite", "postgresql"):
        with _url(name) as url, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found[name] = runner.run(_rates(url))
    return found
