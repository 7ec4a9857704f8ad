"""Brings the tables of a database up to date: once, also when several processes start together.

Knows Alembic, which works on a thread: its imports and its statements would block an event loop.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import make_url, text
from sqlalchemy.engine import URL, Connection

from internal.biz.errors import SluiceError, Unavailable
from internal.data.sql.engine import BOUNDS, Bounds, is_sqlite, open_migrating, open_reading
from internal.data.sql.faults import explained, is_away, is_busy, is_forbidden, told
from internal.data.sql.runner import Runner

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).with_name("migrations")
VERSION_TABLE = "sluice_version"
"""Not Alembic's usual one: the database may be another program's as well."""
LOCK = 0x736C75696365
"""Ours among the advisory locks of a PostgreSQL database."""
LOOK_INTERVAL_S = 0.1
SAY_INTERVAL_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a database that does not answer yet, and for another process that migrates it."""

    answer_s: float = 10.0
    lock_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Migration:
    """Ids of migrations: the tables stood at `before` (None: there were none) and were, or are to be,
    brought through all of `steps`."""

    before: str | None
    steps: tuple[str, ...]

    @property
    def after(self) -> str | None:
        return self.steps[-1] if self.steps else self.before


async def migrate(url: str, patience: Patience = Patience(), folder: Path = MIGRATIONS) -> Migration:
    """Bring the database up to date, all or nothing; an SQLite file and its folder are made where missing.

    Raises SluiceError with what a person can do about it. Cancelling leaves the database as it was, or all is
    committed already; it waits until nothing works there any more.
    """
    return await _on_a_thread(lambda: _migrate(make_url(url), patience, folder))


async def pending(url: str, folder: Path = MIGRATIONS) -> Migration:
    """What `migrate` would do. Changes nothing. Raises SluiceError."""
    return await _on_a_thread(lambda: _pending(make_url(url), folder))


async def _on_a_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work` on an event loop of its own. Cancelling cancels it there, and waits until it has ended."""
    there = asyncio.new_event_loop()
    there.set_debug(False)  # nobody else waits on it
    task = there.create_task(work())

    def run() -> T:
        try:
            return there.run_until_complete(task)
        finally:
            there.run_until_complete(there.shutdown_asyncgens())
            there.run_until_complete(there.shutdown_default_executor())

    running = asyncio.get_running_loop().run_in_executor(None, run)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        there.call_soon_threadsafe(task.cancel)
        await asyncio.wait([running])
        running.cancelled() or running.exception()  # seen
        raise
    finally:
        there.close()


async def _migrate(url: URL, patience: Patience, folder: Path) -> Migration:
    if is_sqlite(url) and "uri" not in url.query:
        _make_file(_file(url))
    runner = _opened(open_migrating, url)
    try:
        done = await _when_ready(runner, url, patience, folder)
    finally:
        await runner.close()
    if done.steps:
        log.info("the storage was migrated from %s to %s", done.before or "nothing", done.after)
    return done


async def _when_ready(runner: Runner, url: URL, patience: Patience, folder: Path) -> Migration:
    start = time.monotonic()
    said_at = float("-inf")
    while True:
        waiting_for = "another process, which migrates or writes to it"
        try:
            done = await _try(runner, url, folder)
        except SluiceError as error:
            if not isinstance(error, Unavailable) or time.monotonic() > start + patience.answer_s:
                raise
            waiting_for, done = error.message, None
        else:
            if done is None and time.monotonic() > start + patience.lock_s:
                raise Unavailable(
                    f"another process has kept the storage locked for {patience.lock_s:g} s: "
                    "end it, and start again",
                    code="storage_unavailable",
                )
        if done:
            return done
        if time.monotonic() > said_at + SAY_INTERVAL_S:
            said_at = time.monotonic()
            log.info("the storage is not ready yet: %s", waiting_for)
        await asyncio.sleep(LOOK_INTERVAL_S)


async def _try(runner: Runner, url: URL, folder: Path) -> Migration | None:
    """None while another process has the lock. Ours ends with the transaction, and with our process."""
    try:
        return await runner.run(lambda connection: _upgrade(connection, folder))
    except SluiceError:
        raise
    except Exception as error:
        if is_busy(error):
            return None
        raise explained(error, url) from error


async def _pending(url: URL, folder: Path) -> Migration:
    if is_sqlite(url) and not _file(url).exists():
        return _plan(None, folder)
    reader = _opened(open_reading, url)
    try:
        return await reader.run(lambda connection: _look(connection, folder))
    except SluiceError:
        raise
    except Exception as error:
        raise explained(error, url) from error
    finally:
        await reader.close()


def _opened(open_it: Callable[[URL, Bounds], T], url: URL) -> T:
    try:
        return open_it(url, BOUNDS)
    except Exception as error:
        raise explained(error, url) from error


def _file(url: URL) -> Path:
    return Path(url.database or "").absolute()


def _make_file(file: Path) -> None:
    """For nobody else: it will hold what people said. SQLite gives the files beside it the same mode."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SluiceError(
            f"the folder {file.parent} cannot be made: {error.strerror} (storage.url)",
            code="storage_unavailable",
        ) from error
    with contextlib.suppress(OSError):  # SQLite will say what is wrong
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))


# ── what runs inside the transaction ─────────────────────────────────────────────────────────────


def _upgrade(connection: Connection, folder: Path) -> Migration | None:
    if connection.dialect.name == "postgresql":
        query = text("SELECT pg_try_advisory_xact_lock(:lock)")
        if not connection.scalar(query, {"lock": LOCK}):
            return None
    plan = _look(connection, folder)
    if plan.steps:
        from alembic import command

        config = _config(folder)
        config.attributes.update(connection=connection, version_table=VERSION_TABLE)
        try:
            command.upgrade(config, "head")
        except Exception as error:
            if is_away(error) or is_forbidden(error):
                raise
            raise SluiceError(
                f"the storage could not be migrated to {plan.after}, and is as it was: {told(error)}",
                code="storage_not_migrated",
            ) from error
    return plan


def _look(connection: Connection, folder: Path) -> Migration:
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return _plan(context.get_current_revision(), folder)


def _plan(before: str | None, folder: Path) -> Migration:
    from alembic.script import ScriptDirectory
    from alembic.script.revision import ResolutionError

    scripts = ScriptDirectory.from_config(_config(folder))
    try:
        steps = [script.revision for script in scripts.iterate_revisions("head", before)]
    except ResolutionError as error:
        raise SluiceError(
            f"the storage is newer than this program: its tables are at {before}, which is not known here. "
            "Start the newer version again, or let storage.url name another database",
            code="storage_newer",
        ) from error
    return Migration(before, tuple(reversed(steps)))


def _config(folder: Path) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config
