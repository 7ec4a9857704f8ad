"""Reads and group commits, on SQLite and PostgreSQL, and what happens while these are away."""

import asyncio
import logging
import sqlite3
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    MetaData,
    String,
    Table,
    delete,
    func,
    insert,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from internal.biz.errors import SluiceError, Unavailable
from internal.data.sql.database import Database, Write
from internal.data.sql.engine import Bounds, open_migrating

if TYPE_CHECKING:
    from test.conftest import OwnPostgres

SHORT = Bounds(connect_timeout_s=0.4, command_timeout_s=0.4)

metadata = MetaData()
pets = Table("pets", metadata, Column("id", String(20), primary_key=True), Column("name", String(20)))
toys = Table(
    "toys",
    metadata,
    Column("id", String(20), primary_key=True),
    Column("pet_id", String(20), ForeignKey("pets.id"), nullable=False),
)
ADD_PET = Write(0, insert(pets))
ADD_TOY = Write(1, insert(toys))
FOR_EVER = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
NAME_PETS = Write(2, update(pets).values(name="Rex"))

Open = Callable[..., AbstractAsyncContextManager[Database]]


@pytest.fixture
def opened() -> Open:
    """Opens a database that runs, on its URL."""
    return _opened


@asynccontextmanager
async def _opened(url: str, bounds: Bounds = SHORT, **options: Any) -> AsyncIterator[Database]:
    database = Database(url, bounds, **options)
    writing = asyncio.create_task(database.run())
    try:
        yield database
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await database.close()


async def create_tables(database: Database) -> None:
    await database.transact(metadata.create_all)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/pets.db"
    url: str = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture
async def database(watched_loop: None, empty_url: str) -> AsyncIterator[Database]:
    async with _opened(empty_url, Bounds()) as it:
        await create_tables(it)
        yield it


def pet(name: str) -> tuple[Write, list[dict[str, str]]]:
    return (ADD_PET, [{"id": name, "name": name}])


async def count(database: Database, table: Table = pets) -> int:
    (row,) = await database.read(select(func.count()).select_from(table))
    return int(row[0])


# ── group commit ─────────────────────────────────────────────────────────────────────────────────


async def test_what_comes_in_during_a_commit_shares_the_next_one(database: Database) -> None:
    first = asyncio.create_task(database.write(pet("first")))
    while not database.is_busy:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.gather(*(database.write(pet(f"pet {number}")) for number in range(100)))
    await first
    assert database.commits == 2
    assert await count(database) == 101


async def test_a_write_is_there_when_it_returns(database: Database) -> None:
    await database.write(pet("Rex"), pet("Tom"))
    assert [row.id for row in await database.read(select(pets).order_by(pets.c.id))] == ["Rex", "Tom"]


async def test_of_many_writes_the_one_that_breaks_a_rule_fails_alone(database: Database) -> None:
    await database.write(pet("pet 7"))
    results = await asyncio.gather(
        *(database.write(pet(f"pet {number}")) for number in range(20)), return_exceptions=True
    )
    failed = [number for number, result in enumerate(results) if isinstance(result, IntegrityError)]
    assert failed == [7]
    assert [result for result in results if result is not True] == [results[7]]
    assert await count(database) == 20


async def test_a_part_that_breaks_a_rule_takes_its_own_write_with_it(database: Database) -> None:
    with pytest.raises(IntegrityError):
        await database.write(pet("Rex"), (ADD_TOY, [{"id": "ball", "pet_id": "nobody"}]))
    assert await count(database) == 0


async def test_rows_come_in_the_order_of_their_rank(database: Database) -> None:
    await asyncio.gather(
        database.write((NAME_PETS, [{}])),
        database.write((ADD_TOY, [{"id": "ball", "pet_id": "Tom"}]), pet("Tom")),
    )
    assert database.commits == 1
    assert await count(database, toys) == 1
    assert [row.name for row in await database.read(select(pets))] == ["Rex"]


async def test_a_write_without_rows_is_none(database: Database) -> None:
    await database.write((ADD_PET, []))
    await database.write()
    assert await count(database) == 0


async def test_a_caller_that_goes_takes_nobody_with_it(database: Database) -> None:
    first = asyncio.create_task(database.write(pet("first")))
    while not database.is_busy:  # noqa: ASYNC110
        await asyncio.sleep(0)
    second = asyncio.create_task(database.write(pet("second")))
    third = asyncio.create_task(database.write(pet("third")))
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    await third
    assert first.cancelled()
    assert second.cancelled()
    assert {row.id for row in await database.read(select(pets))} >= {"third"}


async def test_a_reader_that_goes_leaves_its_connection_to_others(opened: Open, empty_url: str) -> None:
    async with opened(empty_url, Bounds(readers=1)) as database:
        await create_tables(database)
        for _ in range(10):
            reading = asyncio.create_task(count(database))
            await asyncio.sleep(0.001)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        assert await asyncio.gather(*(count(database) for _ in range(20))) == [0] * 20


async def test_what_nobody_waits_for_any_more_is_no_longer_read(opened: Open, empty_url: str) -> None:
    """It would keep its connection from others."""
    async with opened(empty_url, Bounds(readers=1)) as database:
        await create_tables(database)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await database.read(text(FOR_EVER))
            async with asyncio.timeout(2):
                assert await asyncio.gather(*(count(database) for _ in range(3))) == [0] * 3


async def test_what_is_more_than_may_wait_is_refused(opened: Open, empty_url: str) -> None:
    async with opened(empty_url, Bounds(), max_waiting=10) as database:
        await create_tables(database)
        results = await asyncio.gather(
            *(database.write(pet(str(number))) for number in range(15)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, Unavailable)]
        assert [error.code for error in refused] == ["storage_busy"] * 5
        assert await count(database) == 10


async def test_who_waits_when_it_stops_is_told(watched_loop: None, empty_url: str) -> None:
    database = Database(empty_url)
    await create_tables(database)
    running = asyncio.create_task(database.run())
    first = asyncio.create_task(database.write(pet("first")))
    while not database.is_busy:  # noqa: ASYNC110
        await asyncio.sleep(0)
    second = asyncio.create_task(database.write(pet("second")))
    await asyncio.sleep(0)
    running.cancel()
    for result in await asyncio.gather(first, second, return_exceptions=True):
        assert isinstance(result, Unavailable)
        assert result.code == "restarting"
    with pytest.raises(Unavailable):
        await database.write(pet("third"))
    await database.close()


async def test_who_asks_after_the_end_is_told(watched_loop: None, empty_url: str) -> None:
    """A request may still be on its way when the server has stopped what it stands on."""
    database = Database(empty_url)
    await create_tables(database)
    await database.close()
    for asking in (database.read(select(pets)), database.change(delete(pets))):
        with pytest.raises(Unavailable) as error:
            await asking
        assert error.value.code == "restarting"


async def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    def fail(connection: Connection) -> None:
        connection.execute(insert(pets), {"id": "Rex", "name": "Rex"})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.transact(fail)
    assert await count(database) == 0


async def test_a_transaction_that_is_cancelled_has_done_nothing_and_is_in_nobody_s_way(
    database: Database,
) -> None:
    def add_for_ever(connection: Connection) -> None:
        connection.execute(insert(pets), {"id": "Rex", "name": "Rex"})
        connection.execute(text(FOR_EVER))

    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await database.transact(add_for_ever)
        async with asyncio.timeout(2):
            await asyncio.gather(*(database.change(update(pets).values(name="Tom")) for _ in range(3)))
    assert await count(database) == 0


async def test_a_transaction_that_is_cancelled_between_two_statements_is_not_committed(
    tmp_path: Path, opened: Open
) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def add(connection: Connection) -> None:
        connection.execute(insert(pets), {"id": "Rex", "name": "Rex"})
        begun.set()
        goes_on.wait()
        connection.execute(insert(pets), {"id": "Tom", "name": "Tom"})

    async with opened(f"sqlite:///{tmp_path}/pets.db") as database:
        await create_tables(database)
        adding = asyncio.create_task(database.transact(add))
        await asyncio.to_thread(begun.wait)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        goes_on.set()
        assert await database.change(update(pets).values(name="Tom")) == 0


async def test_what_waits_for_its_transaction_can_go(database: Database) -> None:
    """And takes no place from those behind it."""

    def add(connection: Connection) -> None:
        connection.execute(insert(pets), {"id": "Rex", "name": "Rex"})

    waiting = [asyncio.create_task(database.transact(add)) for _ in range(10)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    async with asyncio.timeout(2):
        await asyncio.gather(*waiting, return_exceptions=True)
        assert [task.cancelled() for task in waiting] == [True] * 10
        await database.change(delete(pets))
        await database.transact(add)
    assert await count(database) == 1


async def test_transactions_and_group_commits_take_turns(database: Database) -> None:
    async def alone(number: int) -> None:
        await database.change(insert(pets).values(id=f"alone {number}", name=""))

    async with asyncio.timeout(10):
        await asyncio.gather(
            *(alone(number) for number in range(20)),
            *(database.write(pet(f"pet {number}")) for number in range(20)),
        )
    assert await count(database) == 40


async def test_two_processes_may_write_to_the_same_database(opened: Open, empty_url: str) -> None:
    async with opened(empty_url, Bounds()) as one, opened(empty_url, Bounds()) as other:
        await create_tables(one)

        async def fill(database: Database, name: str) -> None:
            for number in range(50):
                await database.write(pet(f"{name} {number}"))

        await asyncio.gather(fill(one, "a"), fill(other, "b"))
        assert await count(one) == await count(other) == 100


# ── discretion ───────────────────────────────────────────────────────────────────────────────────


SECRET = "hunter2"


def told(error: BaseException) -> str:
    """All that a log would show."""
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("name", [SECRET, f"{SECRET}\ud800"])
async def test_no_failure_tells_what_was_to_be_stored(database: Database, name: str) -> None:
    statement = insert(toys).values(id=name, pet_id=None)
    errors = []
    for attempt in (
        database.write((Write(0, statement), [{"id": name, "pet_id": None}])),
        database.change(statement),
        database.read(select(pets).where(pets.c.name == name, text("nothing = 1"))),
    ):
        with pytest.raises(Exception) as error:  # noqa: PT011
            await attempt
        errors.append(told(error.value))
    assert [SECRET in one for one in errors] == [False] * 3


async def test_no_failed_migration_tells_what_is_stored(empty_url: str) -> None:
    runner = open_migrating(make_url(empty_url), Bounds())
    await runner.run(metadata.create_all)
    with pytest.raises(IntegrityError) as error:
        await runner.run(lambda connection: connection.execute(insert(toys).values(id=SECRET, pet_id=None)))
    await runner.close()
    assert SECRET not in told(error.value)


async def test_postgresql_s_own_words_about_a_value_are_not_told(
    postgres_database: str, opened: Open
) -> None:
    async with opened(postgres_database, Bounds()) as database:
        with pytest.raises(DBAPIError) as error:
            await database.read(text(f"SELECT CAST('{SECRET}: ' || now() AS INTEGER)"))
    assert SECRET not in told(error.value).replace(f"CAST('{SECRET}", "")
    assert "invalid input syntax" in told(error.value)


# ── away, and back ───────────────────────────────────────────────────────────────────────────────


async def seconds_to_unavailable(attempt: Any) -> float:
    start = time.monotonic()
    with pytest.raises(Unavailable) as error:
        await attempt
    assert error.value.code == "storage_unavailable"
    assert error.value.retryable
    return time.monotonic() - start


@pytest.mark.parametrize("away", ["killed", "stopped", "paused"])
async def test_a_postgresql_that_goes_and_comes_back_needs_no_restart_of_ours(
    own_postgres: "OwnPostgres", opened: Open, eventually: Any, away: str
) -> None:
    async with opened(own_postgres.url) as database:
        await create_tables(database)
        await database.write(pet("before"))
        await getattr(own_postgres, {"killed": "kill", "stopped": "stop", "paused": "pause"}[away])()
        took = await asyncio.gather(
            seconds_to_unavailable(count(database)), seconds_to_unavailable(database.write(pet("during")))
        )
        assert max(took) < 3.0
        # Those behind them do not wait for long either.
        assert await seconds_to_unavailable(count(database)) < 3.0
        await (own_postgres.resume() if away == "paused" else own_postgres.start())

        async def is_back() -> bool:
            try:
                await database.write(pet(f"after {time.monotonic_ns()}"))
                return await count(database) >= 2
            except Unavailable:
                return False

        await eventually(is_back)


async def test_a_postgresql_that_restarted_while_nobody_asked_is_not_noticed(
    own_postgres: "OwnPostgres", opened: Open
) -> None:
    async with opened(own_postgres.url) as database:
        await create_tables(database)
        await database.write(pet("before"))
        await asyncio.gather(*(count(database) for _ in range(8)))
        await own_postgres.restart()
        await database.write(pet("after"))
        assert await asyncio.gather(*(count(database) for _ in range(8))) == [2] * 8


@pytest.mark.parametrize("way", ["write", "transact"])
async def test_a_deadlock_with_another_server_is_tried_again(
    postgres_database: str, opened: Open, eventually: Any, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    name_pet = Write(0, update(pets).where(pets.c.id == "Rex").values(name="1"))
    name_other = Write(1, update(pets).where(pets.c.id == "Tom").values(name="1"))

    def name_both(connection: Connection) -> None:
        connection.execute(name_pet.statement)
        connection.execute(name_other.statement)

    async with opened(postgres_database, Bounds()) as database:
        await create_tables(database)
        await database.write(pet("Rex"), pet("Tom"))
        async with create_async_engine(postgres_database, poolclass=NullPool).begin() as other:
            # Whoever looks first gives up: it has to be ours.
            await other.execute(text("SET LOCAL deadlock_timeout = '1min'"))
            await other.execute(update(pets).where(pets.c.id == "Tom").values(name="2"))
            writing = asyncio.create_task(
                database.write((name_pet, [{}]), (name_other, [{}]))
                if way == "write"
                else database.transact(name_both)
            )
            blocked = text("SELECT count(*) FROM pg_locks WHERE NOT granted")

            async def is_blocked() -> bool:
                return bool((await database.read(blocked))[0][0])

            await eventually(is_blocked)
            await other.execute(update(pets).where(pets.c.id == "Rex").values(name="2"))
        await writing
        assert {row.name for row in await database.read(select(pets))} == {"1"}
    assert not caplog.records  # the storage was there all the time


async def test_an_sqlite_that_another_program_locks_is_waited_for_and_given_up(
    tmp_path: Path, opened: Open
) -> None:
    path = tmp_path / "pets.db"
    async with opened(f"sqlite:///{path}") as database:
        await create_tables(database)
        other = sqlite3.connect(path)
        other.execute("BEGIN IMMEDIATE")
        assert await count(database) == 0  # readers do not care
        took = await seconds_to_unavailable(database.write(pet("during")))
        assert 0.3 < took < 3.0
        writing = asyncio.create_task(database.write(pet("waiting")))
        await asyncio.sleep(0.05)
        other.execute("ROLLBACK")
        await writing
        assert await count(database) == 1
        other.close()


async def test_a_postgres_that_answers_nobody_is_noticed_long_before_its_statements_run_out(
    own_postgres: "OwnPostgres", opened: Open, eventually: Any
) -> None:
    bounds = Bounds(connect_timeout_s=0.4, command_timeout_s=60.0, silence_s=0.3)
    async with opened(own_postgres.url, bounds) as database:
        await create_tables(database)
        await database.write(pet("Rex"))
        assert await count(database) == 1
        await own_postgres.pause()
        writing = [asyncio.create_task(seconds_to_unavailable(database.write(pet("Tom"))))]
        while not database.is_busy:  # noqa: ASYNC110
            await asyncio.sleep(0)
        writing.append(asyncio.create_task(seconds_to_unavailable(database.write(pet("Kim")))))
        changing = asyncio.create_task(seconds_to_unavailable(database.change(delete(pets))))
        reading = asyncio.create_task(seconds_to_unavailable(count(database)))
        for seconds in await asyncio.gather(*writing):
            assert seconds < 1.0
        # The connection is ended first, for which the driver takes two seconds.
        assert await seconds_to_unavailable(database.write(pet("Ben"))) < 0.1
        assert max(await asyncio.gather(reading, changing)) < 3.5
        await own_postgres.resume()

        async def is_back() -> bool:
            try:
                await database.write(pet(f"after {time.monotonic_ns()}"))
                return await count(database) >= 2
            except Unavailable:
                return False

        await eventually(is_back)


async def test_a_postgres_that_takes_long_is_not_taken_for_one_that_answers_nobody(
    postgres_database: str, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    sleep = text("SELECT pg_sleep(1)")
    async with opened(postgres_database, Bounds(silence_s=0.5)) as database:
        await database.connect()
        await database.transact(lambda connection: connection.execute(sleep).all())
        await database.read(sleep)
        await database.write((Write(0, sleep), [{}]))
    # The loop's own watch may have something to say of the machine.
    assert not [record.getMessage() for record in caplog.records if record.name.startswith("internal")]


async def test_a_file_that_was_taken_away_is_told(tmp_path: Path, opened: Open) -> None:
    async with opened(f"sqlite:///{tmp_path}/no/pets.db") as database:
        await seconds_to_unavailable(count(database))
        await seconds_to_unavailable(database.write(pet("Rex")))


async def test_what_is_wrong_with_a_value_is_not_blamed_on_the_database(database: Database) -> None:
    async def lookup() -> None:
        await database.read(select(pets).where(pets.c.id == text(":value")), {"value": object()})

    with pytest.raises(DBAPIError) as error:
        await lookup()
    assert not isinstance(error.value, Unavailable)


async def test_what_is_away_is_logged_once_and_without_what_was_written(
    tmp_path: Path, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="internal"):
        async with opened(f"sqlite:///{tmp_path}/no/pets.db") as database:
            for _ in range(5):
                await seconds_to_unavailable(database.write(pet("secret")))
    (line,) = caplog.messages
    assert "unable to open database file" in line
    assert "secret" not in line


# ── the start ────────────────────────────────────────────────────────────────────────────────────


async def complaint(url: str) -> str:
    database = Database(url, SHORT)
    with pytest.raises(SluiceError) as error:
        await database.connect()
    await database.close()
    assert "hunter2" not in error.value.message
    assert "storage.url" in error.value.message
    return error.value.message


async def test_a_driver_that_is_not_installed_is_named() -> None:
    with pytest.raises(SluiceError, match="the driver aiomysql is not installed: pip install aiomysql"):
        Database("mysql+aiomysql://ada:hunter2@localhost/sluice")


async def test_a_database_that_answers_is_connected(database: Database) -> None:
    await database.connect()


async def test_a_database_that_does_not_exist_is_named(postgres_url: str, watched_loop: None) -> None:
    url = make_url(postgres_url).set(database="nowhere").render_as_string(hide_password=False)
    assert "has no database 'nowhere'" in await complaint(url)


async def test_a_host_that_does_not_exist_is_named(postgres_driver: None) -> None:
    assert "no.such.host.invalid:5432 cannot be reached" in await complaint(
        "postgresql+asyncpg://ada:hunter2@no.such.host.invalid/sluice"
    )


async def test_a_port_where_nobody_listens_is_named(postgres_driver: None) -> None:
    assert "127.0.0.1:1 cannot be reached" in await complaint(
        "postgresql+asyncpg://ada:hunter2@127.0.0.1:1/sluice"
    )


async def test_a_database_that_does_not_answer_is_named(own_postgres: "OwnPostgres") -> None:
    await own_postgres.pause()
    assert "does not answer" in await complaint(own_postgres.url)
    await own_postgres.resume()


async def test_a_wrong_password_is_told_without_it(own_postgres: "OwnPostgres") -> None:
    engine = create_async_engine(own_postgres.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text("CREATE USER ada PASSWORD 'right'"))
        rules = await connection.scalar(text("SHOW hba_file"))
        await connection.execute(text(f"COPY (SELECT 'host all ada all scram-sha-256') TO '{rules}'"))
        await connection.execute(text("SELECT pg_reload_conf()"))
    place = make_url(own_postgres.url)
    ada = place.set(username="ada", password="hunter2").render_as_string(hide_password=False)
    assert "does not take the password of 'ada'" in await complaint(ada)
    eve = place.set(username="eve", password="hunter2").render_as_string(hide_password=False)
    assert "does not let 'eve' in" in await complaint(eve)


async def test_a_parameter_that_the_driver_does_not_know_is_named(postgres_url: str) -> None:
    assert "'colour'" in await complaint(f"{postgres_url}?colour=red")


async def test_a_file_that_is_no_database_is_named(tmp_path: Path, watched_loop: None) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 100)
    assert f"the file {path} cannot be used: it is not an SQLite database" in await complaint(
        f"sqlite:///{path}"
    )
