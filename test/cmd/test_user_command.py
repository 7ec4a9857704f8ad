"""The operators' command for users, on SQLite: the program as it is called, and refusals in this process."""

import asyncio
import io
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from cmd import logs, user
from internal.biz.accounts import AccountRules, Accounts
from internal.biz.errors import Unauthenticated
from internal.biz.limits import NoLimits
from internal.data.credentials.cipher import SecretCipher
from internal.data.credentials.passwords import Argon2Hasher
from internal.data.credentials.tokens import JwtSigner
from internal.data.sql.accounts import SqlAccounts
from internal.data.sql.database import Database

if TYPE_CHECKING:
    from test.conftest import Ended, RunProgram

ROOT = Path(__file__).parents[2]
PASSWORD = "correct horse"
SECRET = b"0123456789abcdef0123456789abcdef"


def password_in(output: str) -> str:
    found = re.search(r"^password: (\S+)$", output, re.MULTILINE)
    assert found, output
    return found[1]


class Program:
    """`python -m cmd.user`, called with a configuration."""

    def __init__(self, run: "RunProgram", folder: Path) -> None:
        self._run = run
        self.url = f"sqlite:///{folder}/sluice.db"
        self.secret_file = folder / "secret.key"
        self.conf = folder / "config.yaml"
        self.configure(self.url)

    def configure(self, url: str) -> None:
        auth = {"registration": False, "secret_file": str(self.secret_file)}
        self.conf.write_text(yaml.safe_dump({"storage": {"url": url}, "auth": auth}))

    def words(self, *words: str) -> list[str]:
        return ["-m", "cmd.user", "-conf", str(self.conf), *words]

    def run(self, *words: str, stdin: bytes = b"", fresh: bool = False) -> "Ended":
        ended = self._run(*self.words(*words), stdin=stdin, fresh=fresh)
        assert "Traceback" not in ended.errors + ended.output
        return ended

    async def __call__(self, *words: str, stdin: bytes = b"", fresh: bool = False) -> "Ended":
        return await asyncio.to_thread(self.run, *words, stdin=stdin, fresh=fresh)

    async def on_a_terminal(self, *words: str, types: list[str]) -> tuple[int, str]:
        """Its status, and all that it said. Types a line whenever it is asked for a password."""
        return await asyncio.to_thread(self._on_a_terminal, words, types)

    def _on_a_terminal(self, words: tuple[str, ...], types: list[str]) -> tuple[int, str]:
        child, terminal = pty.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # whatever those who started the tests ignore
            os.chdir(ROOT)
            os.execv(sys.executable, [sys.executable, *self.words(*words)])
        said, lines = b"", iter(types)
        while True:
            try:
                more = os.read(terminal, 4096)
            except OSError:  # it has ended
                break
            said += more
            if more.endswith((b"Password: ", b"Again: ")):
                os.write(terminal, next(lines).encode())
        os.close(terminal)
        _, status = os.waitpid(child, 0)
        assert b"Traceback" not in said
        return os.waitstatus_to_exitcode(status), said.decode()


@pytest.fixture
def program(run_program: "RunProgram", tmp_path: Path) -> Program:
    return Program(run_program, tmp_path)


@pytest.fixture
async def accounts(program: Program) -> AsyncIterator[Accounts]:
    """The server's, on the same database."""
    database = Database(program.url)
    yield Accounts(
        SqlAccounts(database),
        Argon2Hasher(),
        JwtSigner(SECRET),
        SecretCipher(SECRET),
        NoLimits(),
        AccountRules(),
    )
    await database.close()


async def is_user(accounts: Accounts, name: str, password: str) -> bool:
    try:
        await accounts.login(name, password)
    except Unauthenticated:
        return False
    return True


async def test_an_operator_adds_disables_enables_and_lists_users(
    program: Program, accounts: Accounts
) -> None:
    assert (await program("list")).output == "there are no users\n"
    added = await program(
        "add", "Ada", "-email", "ada@example.org", "-password-stdin", stdin=b"correct horse\n", fresh=True
    )
    assert (added.status, added.output, added.errors) == (0, "added Ada\n", "")
    assert await is_user(accounts, "ada", PASSWORD)

    assert (await program("disable", "ADA")).output == "disabled Ada\n"
    assert not await is_user(accounts, "ada", PASSWORD)
    header, row = (await program("list")).output.splitlines()
    assert header.split() == ["name", "email", "since", "id"]
    assert row.split()[:2] == ["Ada", "ada@example.org"]
    assert row.endswith("  disabled")

    assert (await program("enable", "ada")).output == "enabled Ada\n"
    assert await is_user(accounts, "ada", PASSWORD)


async def test_without_a_terminal_a_password_is_made_up_and_printed(
    program: Program, accounts: Accounts
) -> None:
    added = await program("add", "ada")
    assert len(password_in(added.output)) >= 20
    assert await is_user(accounts, "ada", password_in(added.output))
    tokens = await accounts.login("ada", password_in(added.output))
    _, key = await accounts.create_key((await accounts.identify(tokens.access)).user, "laptop")
    reset = await program("reset", "ada")
    assert "API keys are revoked" in reset.output
    assert password_in(reset.output) != password_in(added.output)
    assert not await is_user(accounts, "ada", password_in(added.output))
    assert await is_user(accounts, "ada", password_in(reset.output))
    with pytest.raises(Unauthenticated):
        await accounts.identify(tokens.access)
    with pytest.raises(Unauthenticated):
        await accounts.identify(key)


async def test_on_a_terminal_a_password_is_asked_for_twice_and_not_shown(
    program: Program, accounts: Accounts
) -> None:
    status, told = await program.on_a_terminal("add", "ada", types=[f"{PASSWORD}\n"] * 2)
    assert (status, told.count(PASSWORD)) == (0, 0)
    assert "added ada" in told
    assert await is_user(accounts, "ada", PASSWORD)
    status, told = await program.on_a_terminal("reset", "ada", types=["another horse\n", "yet another\n"])
    assert status == 1
    assert "these are two passwords; nothing was done" in told
    status, told = await program.on_a_terminal("reset", "ada", types=["short\n"])
    assert status == 1
    assert "8 to 1024 characters" in told
    gone, _ = await program.on_a_terminal("reset", "ada", types=["\x04"])
    assert gone == 1
    interrupted, _ = await program.on_a_terminal("reset", "ada", types=["\x03"])
    assert interrupted == 130
    assert await is_user(accounts, "ada", PASSWORD)


async def test_the_command_makes_no_secret_that_the_server_could_not_read(program: Program) -> None:
    assert (await program("add", "ada")).status == 0
    assert not program.secret_file.exists()


# ── refusals, in this process ────────────────────────────────────────────────────────────────────

Refused = Callable[[Sequence[str], bytes], tuple[int, str]]


@pytest.fixture
def refused(program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command, which must say nothing but why not; returns its status and that."""
    monkeypatch.setattr(logs, "configure", lambda *_: None)

    def run(words: Sequence[str], stdin: bytes = b"") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cmd.user", "-conf", str(program.conf), *words])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            status = user.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        output, errors = capsys.readouterr()
        assert not output
        return status, errors

    return run


def add_ada(program: Program) -> None:
    assert program.run("add", "ada", "-password-stdin", stdin=PASSWORD.encode()).status == 0


@pytest.mark.parametrize("words", [("add", "ADA"), ("add", "ａｄａ", "-email", "a@b")])
def test_a_name_that_is_taken_is_not_given_again(
    program: Program, refused: Refused, words: tuple[str, ...]
) -> None:
    add_ada(program)
    assert refused(words, b"") == (1, "this name is taken\n")


@pytest.mark.parametrize(
    ("words", "stdin", "told"),
    [
        (("add", "a da"), b"", "a username has no spaces"),
        (("add", "x"), b"", "3 to 64 characters"),
        (("add", "bob", "-email", "bob"), b"", "an e-mail address looks like"),
        (("add", "bob", "-password-stdin"), b"short\n", "8 to 1024 characters"),
        (("add", "bob", "-password-stdin"), b"", "8 to 1024 characters"),
        (("add", "bob", "-password-stdin"), b"\ncorrect horse\n", "8 to 1024 characters"),
        (("add", "bob", "-password-stdin"), b"x" * 100_000, "8 to 1024 characters"),
        (("add", "bob", "-password-stdin"), b"\xff\xfecorrect horse", "no text in UTF-8"),
        (("disable", "bob"), b"", "there is no user bob"),
        (("enable", "bob\x1b[31m"), b"", r"there is no user bob\u001b[31m"),
        (("reset", "bob"), b"", "there is no user bob"),
    ],
)
def test_what_cannot_be_done_is_told(
    refused: Refused, words: tuple[str, ...], stdin: bytes, told: str
) -> None:
    status, errors = refused(words, stdin)
    assert status == 1
    assert told in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "words", [(), ("add",), ("list", "x"), ("delete", "ada"), ("add", "ada", "-pass", "x")]
)
def test_a_command_line_that_makes_no_sense_is_refused(refused: Refused, words: tuple[str, ...]) -> None:
    status, errors = refused(words, b"")
    assert status == 2
    assert errors.startswith("usage: python -m cmd.user")


def test_without_a_database_there_are_no_users(program: Program, refused: Refused) -> None:
    program.configure("")
    told = "storage.url is empty: users live in a database, and this needs one\n"
    assert refused(["list"], b"") == (2, told)


def test_a_database_that_is_away_is_named(program: Program, refused: Refused) -> None:
    program.configure("sqlite:////proc/no/such/place.db")
    status, errors = refused(["list"], b"")
    assert status == 1
    assert "/proc/no/such" in errors
    assert "storage.url" in errors
