"""The operators' command for users, on SQLite: the program as it is called, and refusals in this process."""

import asyncio
import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

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

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
PASSWORD = "correct horse"
SECRET = b"0123456789abcdef0123456789abcdef"


class Ended:
    def __init__(self, status: int, output: bytes, errors: bytes) -> None:
        self.status, self.output, self.errors = status, output.decode(), errors.decode()
        assert "Traceback" not in self.errors + self.output

    @property
    def password(self) -> str:
        found = re.search(r"^password: (\S+)$", self.output, re.MULTILINE)
        assert found, self.output
        return found[1]


class Program:
    """`python -m cmd.user`, called with a configuration."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/sluice.db"
        self.secret_file = folder / "secret.key"
        self.conf = folder / "config.yaml"
        self.configure(self.url)

    def configure(self, url: str) -> None:
        auth = {"registration": False, "secret_file": str(self.secret_file)}
        self.conf.write_text(yaml.safe_dump({"storage": {"url": url}, "auth": auth}))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cmd.user", "-conf", str(self.conf), *words]

    async def __call__(self, *words: str, stdin: bytes = b"") -> Ended:
        process = await asyncio.create_subprocess_exec(
            *self.command(*words),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE_S):
            output, errors = await process.communicate(stdin)
        assert process.returncode is not None
        return Ended(process.returncode, output, errors)

    async def on_a_terminal(self, *words: str, types: list[str]) -> Ended:
        """Types a line whenever it is asked for a password."""
        return await asyncio.to_thread(self._on_a_terminal, words, types)

    def _on_a_terminal(self, words: tuple[str, ...], types: list[str]) -> Ended:
        child, terminal = pty.fork()
        if child == 0:
            os.chdir(ROOT)
            os.execv(sys.executable, self.command(*words))
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
        return Ended(os.waitstatus_to_exitcode(status), said, b"")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


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
        "add", "Ada", "-email", "ada@example.org", "-password-stdin", stdin=b"correct horse\n"
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
    assert len(added.password) >= 20
    assert await is_user(accounts, "ada", added.password)
    tokens = await accounts.login("ada", added.password)
    _, key = await accounts.create_key((await accounts.identify(tokens.access)).user, "laptop")
    reset = await program("reset", "ada")
    assert "API keys are revoked" in reset.output
    assert reset.password != added.password
    assert not await is_user(accounts, "ada", added.password)
    assert await is_user(accounts, "ada", reset.password)
    with pytest.raises(Unauthenticated):
        await accounts.identify(tokens.access)
    with pytest.raises(Unauthenticated):
        await accounts.identify(key)


async def test_on_a_terminal_a_password_is_asked_for_twice_and_not_shown(
    program: Program, accounts: Accounts
) -> None:
    added = await program.on_a_terminal("add", "ada", types=[f"{PASSWORD}\n"] * 2)
    assert (added.status, added.output.count(PASSWORD)) == (0, 0)
    assert "added ada" in added.output
    assert await is_user(accounts, "ada", PASSWORD)
    differs = await program.on_a_terminal("reset", "ada", types=["another horse\n", "yet another\n"])
    assert differs.status == 1
    assert "these are two passwords; nothing was done" in differs.output
    too_short = await program.on_a_terminal("reset", "ada", types=["short\n"])
    assert too_short.status == 1
    assert "8 to 1024 characters" in too_short.output
    gone = await program.on_a_terminal("reset", "ada", types=["\x04"])
    assert gone.status == 1
    interrupted = await program.on_a_terminal("reset", "ada", types=["\x03"])
    assert interrupted.status == 130
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
    subprocess.run(
        program.command("add", "ada", "-password-stdin"), input=PASSWORD.encode(), cwd=ROOT, check=True
    )


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
