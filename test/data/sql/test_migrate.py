"""Migrations: what they make, by how many processes, and what happens when they cannot be."""

import asyncio
import contextlib
import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, make_url, text

from internal.biz.errors import SluiceError, Unavailable
from internal.data.sql.engine import BOUNDS, open_writing
from internal.data.sql.migrate import LOCK, MIGRATIONS, VERSION_TABLE, Migration, Patience, migrate, pending
from internal.data.sql.runner import T, Work
from internal.data.sql.tables import metadata

HASTE = Patience(answer_s=0.0, lock_s=0.2)
OURS = tuple(sorted(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py")))
LAST = OURS[-1]
FOLLOWING = tuple(f"{int(LAST) + number:04}" for number in (1, 2))
"""What tests add."""


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/folder/sluice.db"
    url: str = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Our migrations, to which a test may add some of its own."""
    copy = tmp_path / "migrations of 50%"
    shutil.copytree(MIGRATIONS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def add(folder: Path, revision: str, *statements: str) -> None:
    lines = "\n".join(f"    {statement}" for statement in statements)
    source = f"""from alembic import op
revision, down_revision = "{revision}", "{int(revision) - 1:04}"
def upgrade():
{lines}
"""
    (folder / "versions" / f"{revision}_more.py").write_text(source)


async def on(url: str, work: Work[T]) -> T:
    """What `work` returns, past all that is to be tested here."""
    runner = open_writing(make_url(url), BOUNDS)
    try:
        return await runner.run(work)
    finally:
        await runner.close()


async def execute(url: str, *statements: str) -> None:
    def work(connection: Connection) -> None:
        for statement in statements:
            connection.execute(text(statement))

    await on(url, work)


async def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    found = await on(url, lambda connection: connection.execute(text(statement)).all())
    return sorted(tuple(row) for row in found)


SCHEMA = {
    # Not the text of the tables: that tells which columns were added later.
    "sqlite": [
        """SELECT t.name, c.name, c.type, c."notnull", c.dflt_value, c.pk
        FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.name != 'sluice_version'""",
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        """SELECT t.name, i."unique", i.origin, i.partial, c.name FROM sqlite_master t,
        pragma_index_list(t.name) i, pragma_index_info(i.name) c WHERE t.name != 'sluice_version'""",
        """SELECT t.name, k."from", k."table", k."to", k.on_update, k.on_delete
        FROM sqlite_master t, pragma_foreign_key_list(t.name) k""",
    ],
    "postgresql": [
        """SELECT table_name, column_name, data_type, is_nullable, character_maximum_length, column_default
        FROM information_schema.columns WHERE table_schema = 'public' AND table_name != 'sluice_version'""",
        """SELECT indexname, indexdef FROM pg_indexes
        WHERE schemaname = 'public' AND tablename != 'sluice_version'""",
        """SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conname NOT LIKE 'sluice_version%'""",
    ],
}


async def schema(url: str) -> list[list[tuple[Any, ...]]]:
    return [await rows(url, query) for query in SCHEMA[make_url(url).get_backend_name()]]


# ── what they make ───────────────────────────────────────────────────────────────────────────────


async def test_migrations_lead_to_the_tables_that_the_code_knows(empty_url: str) -> None:
    await migrate(empty_url)

    def differences(connection: Connection) -> list[Any]:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        found: list[Any] = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        return found

    assert await on(empty_url, differences) == []


async def test_migrations_make_what_the_code_itself_would_make_to_the_letter(empty_url: str) -> None:
    await migrate(empty_url)
    migrated = await schema(empty_url)
    await on(empty_url, metadata.drop_all)
    await on(empty_url, metadata.create_all)
    assert migrated == await schema(empty_url)
    assert all(migrated)


async def test_a_migration_says_from_where_to_where(empty_url: str, folder: Path) -> None:
    assert await pending(empty_url, folder) == Migration(None, OURS)
    assert await migrate(empty_url, folder=folder) == Migration(None, OURS)
    assert await migrate(empty_url, folder=folder) == Migration(LAST, ())
    add(folder, FOLLOWING[0], "op.execute('CREATE TABLE pets (id INTEGER)')")
    add(folder, FOLLOWING[1], "op.execute('INSERT INTO pets VALUES (3)')")
    assert await pending(empty_url, folder) == Migration(LAST, FOLLOWING)
    assert (await migrate(empty_url, folder=folder)).after == FOLLOWING[1]
    assert await rows(empty_url, "SELECT id FROM pets") == [(3,)]


async def test_what_was_said_before_there_were_branches_is_one_straight_line(
    empty_url: str, folder: Path
) -> None:
    (folder / "versions" / "0003_branches.py").unlink()
    assert (await migrate(empty_url, folder=folder)).after == "0002"
    columns = "id, user_id, previous_id, model, status, settings, input_chars, output_chars, created_at"
    said = "'ada', NULL, 'm', 'completed', '{}', 1, 1, 1.5"
    await execute(empty_url, f"INSERT INTO responses ({columns}) VALUES ('resp_1', {said})")
    assert await migrate(empty_url) == Migration("0002", OURS[2:])
    # A server of before, which has not been replaced yet, writes as it always did.
    await execute(empty_url, f"INSERT INTO responses ({columns}) VALUES ('resp_2', {said})")
    found = await rows(empty_url, "SELECT id, aside FROM responses")
    assert found == [("resp_1", False), ("resp_2", False)]


async def test_who_only_asks_what_is_pending_makes_no_file(tmp_path: Path) -> None:
    await pending(f"sqlite:///{tmp_path}/new/sluice.db")
    assert not (tmp_path / "new").exists()


async def test_a_new_folder_is_its_owner_s_alone(tmp_path: Path) -> None:
    await migrate(f"sqlite:///{tmp_path}/new/sluice.db")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


async def test_an_sqlite_file_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sluice.db"
    await migrate(url)
    assert await rows(url, "PRAGMA journal_mode") == [("wal",)]


async def test_nothing_is_printed(empty_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    await migrate(empty_url)
    assert capfd.readouterr() == ("", "")


# ── what cannot be ───────────────────────────────────────────────────────────────────────────────


async def test_a_migration_that_fails_half_way_leaves_nothing(empty_url: str, folder: Path) -> None:
    await migrate(empty_url, folder=folder)
    before = await schema(empty_url)
    first, second = FOLLOWING
    add(folder, first, "op.execute('CREATE TABLE pets (id INTEGER)')", "op.execute('DROP TABLE messages')")
    add(folder, second, "op.execute('INSERT INTO pets VALUES (1)')", "op.execute('SELECT nonsense')")
    with pytest.raises(SluiceError) as error:
        await migrate(empty_url, folder=folder)
    assert f"could not be migrated to {second}" in error.value.message
    assert "nonsense" in error.value.message
    assert await schema(empty_url) == before
    assert await pending(empty_url, folder) == Migration(LAST, FOLLOWING)


async def test_a_first_start_that_fails_leaves_an_empty_database(empty_url: str, folder: Path) -> None:
    add(folder, FOLLOWING[0], "1 / 0")
    with pytest.raises(SluiceError, match="ZeroDivisionError"):
        await migrate(empty_url, folder=folder)
    assert not any(await schema(empty_url))
    await migrate(empty_url)


async def test_a_database_of_a_newer_version_is_left_alone(empty_url: str, folder: Path) -> None:
    add(folder, FOLLOWING[0], "op.execute('CREATE TABLE pets (id INTEGER)')")
    await migrate(empty_url, folder=folder)
    before = await schema(empty_url)
    for attempt in (migrate, pending):
        with pytest.raises(SluiceError) as error:
            await attempt(empty_url)
        assert not isinstance(error.value, Unavailable)
        assert "newer than this program" in error.value.message
        assert FOLLOWING[0] in error.value.message
        assert "storage.url" in error.value.message
    assert await schema(empty_url) == before


async def test_tables_of_another_program_are_left_alone(empty_url: str) -> None:
    if "sqlite" in empty_url:
        Path(make_url(empty_url).database or "").parent.mkdir(parents=True)
    # Theirs has the name that Alembic likes best.
    theirs = "CREATE TABLE alembic_version (version_num TEXT)"
    await execute(empty_url, "CREATE TABLE users (name TEXT)", theirs)
    with pytest.raises(SluiceError, match=r"users.* already exists"):
        await migrate(empty_url)
    assert await rows(empty_url, "SELECT * FROM users") == []


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SluiceError, match="/file/sub cannot be made: Not a directory"):
        await migrate(f"sqlite:///{tmp_path}/file/sub/sluice.db")


async def test_an_sqlite_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/sluice.db"

    def modes_while_it_is_open(connection: Connection) -> dict[str, int]:  # so are the files beside it
        connection.execute(text("DELETE FROM users"))
        return {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}

    before = os.umask(0)
    try:
        await migrate(url)
        modes = await on(url, modes_while_it_is_open)
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("sluice.db", "sluice.db-wal", "sluice.db-shm"), 0o600)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


async def test_the_mode_of_an_sqlite_file_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "sluice.db").touch()
    (tmp_path / "sluice.db").chmod(0o660)
    await migrate(f"sqlite:///{tmp_path}/sluice.db")
    assert (tmp_path / "sluice.db").stat().st_mode & 0o777 == 0o660


async def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match="cannot be opened"):
        await migrate(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize("name", ["", "sluice.db"])
def test_a_start_that_fails_prints_nothing_and_leaves_no_thread_that_could(
    tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "empty").mkdir()
    add(folder, FOLLOWING[0], "1 / 0")
    before = threading.enumerate()
    for attempt in (migrate, pending):
        with contextlib.suppress(SluiceError):
            asyncio.run(attempt(f"sqlite:///{tmp_path}/empty/{name}", folder=folder))
    assert threading.enumerate() == before
    assert capfd.readouterr() == ("", "")


async def test_a_user_that_may_not_create_tables_is_told_so(postgres_database: str) -> None:
    await execute(postgres_database, "CREATE USER reader", "REVOKE CREATE ON SCHEMA public FROM public")
    reader = make_url(postgres_database).set(username="reader").render_as_string(hide_password=False)
    try:
        with pytest.raises(SluiceError, match=r"'reader' may not create tables in .*GRANT"):
            await migrate(reader)
    finally:
        await execute(postgres_database, "DROP USER reader")


async def test_a_driver_that_is_not_installed_is_named() -> None:
    with pytest.raises(SluiceError, match="the driver aiomysql is not installed: pip install aiomysql"):
        await migrate("mysql+aiomysql://ada:hunter2@localhost/sluice")


# ── several at once ──────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def held_up(url: str) -> AsyncIterator[None]:
    """Nobody can migrate meanwhile."""
    if "sqlite" in url:
        path = Path(make_url(url).database or "")
        path.parent.mkdir(parents=True)
        other = sqlite3.connect(path)
        other.execute("BEGIN IMMEDIATE")
        yield
        other.close()
        return
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    await connection.execute(f"SELECT pg_advisory_lock({LOCK})")
    yield
    await connection.close()


async def test_who_waits_for_another_says_so_and_not_for_ever(
    empty_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="internal"):
        async with held_up(empty_url):
            with pytest.raises(Unavailable, match="another process has kept the storage locked"):
                await migrate(empty_url, HASTE)
    assert ["is not ready yet" in line for line in caplog.messages] == [True]
    assert (await migrate(empty_url, HASTE)).after == LAST


async def test_who_waits_can_be_stopped(empty_url: str) -> None:
    async with held_up(empty_url):
        migrating = asyncio.create_task(migrate(empty_url))
        await asyncio.sleep(0.15)
        migrating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(migrating, 3)
    assert (await migrate(empty_url, HASTE)).after == LAST


async def test_a_migration_that_is_cancelled_leaves_the_database_as_it_was(
    empty_url: str, folder: Path, tmp_path: Path, eventually: Any
) -> None:
    await migrate(empty_url, folder=folder)
    before = await schema(empty_url)
    begun = tmp_path / "begun"
    numbers = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    add(
        folder,
        FOLLOWING[0],
        "op.execute('CREATE TABLE pets (id INTEGER)')",
        f"open({str(begun)!r}, 'w').close()",
        f"op.execute({numbers!r})",
    )
    migrating = asyncio.create_task(migrate(empty_url, folder=folder))

    async def has_begun() -> bool:
        return begun.exists()

    await eventually(has_begun)
    await asyncio.sleep(0.1)  # now it counts
    migrating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(migrating, 3)
    assert await schema(empty_url) == before
    assert await pending(empty_url, folder) == Migration(LAST, FOLLOWING[:1])


async def test_a_migration_that_is_cancelled_between_two_statements_is_not_committed(
    tmp_path: Path, folder: Path, eventually: Any
) -> None:
    url, begun, goes_on = f"sqlite:///{tmp_path}/sluice.db", tmp_path / "begun", tmp_path / "goes on"
    add(
        folder,
        FOLLOWING[0],
        "import pathlib, time",
        "op.execute('CREATE TABLE pets (id INTEGER)')",
        f"pathlib.Path({str(begun)!r}).touch()",
        f"while not pathlib.Path({str(goes_on)!r}).exists(): time.sleep(0.01)",
    )
    migrating = asyncio.create_task(migrate(url, folder=folder))

    async def has_begun() -> bool:
        return begun.exists()

    await eventually(has_begun)
    migrating.cancel()
    await asyncio.sleep(0.1)
    assert not migrating.done(), "it waits until nothing works on the database any more"
    goes_on.touch()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(migrating, 3)
    assert not any(await schema(url))


async def test_a_database_that_is_not_up_yet_is_waited_for(own_postgres: Any) -> None:
    await own_postgres.kill()
    migrating = asyncio.create_task(migrate(own_postgres.url))
    await asyncio.sleep(0.2)
    assert not migrating.done()
    await own_postgres.start()
    assert (await migrating).after == LAST


async def test_a_database_that_never_comes_up_is_told() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 cannot be reached"):
        await migrate("postgresql+asyncpg://ada:hunter2@127.0.0.1:1/sluice", HASTE)


async def test_eight_at_once_migrate_once(empty_url: str) -> None:
    done = await asyncio.gather(*(migrate(empty_url) for _ in range(8)))
    assert sorted(one.before or "" for one in done) == ["", *[LAST] * 7]
