"""python -m cmd.migrate, as an operator calls it."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from internal.data.sql.migrate import LOCK, MIGRATIONS

if TYPE_CHECKING:
    from test.conftest import Ended, RunProgram, StartProgram

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
OURS = sorted(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
LAST = OURS[-1]

Migrate = Callable[..., Awaitable["Ended"]]


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("models: [{name: echo, generator: echo}]\n")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/data/sluice.db"
    url: str = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture
def migrate(run_program: "RunProgram", conf: Path) -> Migrate:
    """Runs it, on a database at a URL."""

    async def migrate(url: str, *options: str, fresh: bool = False) -> "Ended":
        words = ("-m", "cmd.migrate", "-conf", str(conf), *options)
        env = {"SLUICE_STORAGE__URL": url}
        return await asyncio.to_thread(run_program, *words, env=env, fresh=fresh)

    return migrate


async def test_it_says_what_is_pending_migrates_and_is_up_to_date(migrate: Migrate, url: str) -> None:
    assert (await migrate(url, "-check"))[:2] == (1, f"is at nothing; pending: {', '.join(OURS)}\n")
    assert (await migrate(url, fresh=True))[:2] == (0, f"migrated from nothing to {LAST}\n")
    assert await migrate(url) == (0, f"is up to date, at {LAST}\n", "")
    assert await migrate(url, "-check") == (0, f"is up to date, at {LAST}\n", "")


@asynccontextmanager
async def held_up(url: str) -> AsyncIterator[None]:
    """Nobody can migrate meanwhile."""
    if url.startswith("sqlite"):
        path = Path(make_url(url).database or "")
        path.parent.mkdir(exist_ok=True)
        other = sqlite3.connect(path)
        other.execute("BEGIN IMMEDIATE")
        yield
        other.close()
        return
    async with create_async_engine(url, poolclass=NullPool).begin() as connection:
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        yield


async def test_four_processes_that_start_together_migrate_once(
    start_program: "StartProgram", conf: Path, url: str, tmp_path: Path
) -> None:
    words, env = ("-m", "cmd.migrate", "-conf", str(conf)), {"SLUICE_STORAGE__URL": url}
    reading, writing = os.pipe()
    outputs = [tmp_path / f"output-{number}" for number in range(4)]
    with os.fdopen(writing, "wb") as errors, os.fdopen(reading, "rb") as said:
        async with asyncio.timeout(PATIENCE_S), held_up(url):
            processes = []
            for path in outputs:
                with path.open("wb") as output:
                    start = partial(start_program, words, env, stdout=output, stderr=errors)
                    processes.append(await asyncio.to_thread(start))
            for _ in processes:
                assert b"is not ready yet" in await asyncio.to_thread(said.readline)
        for process in processes:
            assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0
    told = sorted(path.read_text() for path in outputs)
    assert told == [*[f"is up to date, at {LAST}\n"] * 3, f"migrated from nothing to {LAST}\n"]


async def test_a_storage_that_cannot_be_used_is_one_sentence(migrate: Migrate, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 100)
    for options in ((), ("-check",)):
        status, output, errors = await migrate(f"sqlite:///{path}", *options)
        assert (status, output) == (1, "")
        assert errors == f"the file {path} cannot be used: it is not an SQLite database (storage.url)\n"


@pytest.mark.parametrize(
    ("url", "told"), [("", "storage.url is empty"), ("oracle://ada:hunter2@db/x", "storage.url")]
)
async def test_a_configuration_without_a_storage_is_refused(migrate: Migrate, url: str, told: str) -> None:
    status, output, errors = await migrate(url)
    assert (status, output) == (2, "")
    assert told in errors
    assert "hunter2" not in errors
