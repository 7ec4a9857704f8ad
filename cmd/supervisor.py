"""Runs processes: several servers behind one address, or one of which the engine may be lost. Starts them,
replaces those that die, ends all together.

The supervisor opens the listening sockets and keeps them: a connection that arrives while a process is being
replaced waits in its backlog. It serves nothing itself, and its processes need it only to be started again.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import tempfile
from asyncio.subprocess import Process
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import uvloop

from cmd.process import ENGINE_LOST
from cmd.progress import say_ready
from internal.conf.settings import Settings, parse_address
from internal.server.listen import listen_together, naming

log = logging.getLogger("sluice")

TRIES = 3
"""How often one of several processes may fail while none has ever become ready: starting it again would not
help."""

STEADY_S = 10.0
"""A process that was ready for so long is replaced at once. The others wait, each time twice as long."""

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 10.0

CLOSE_MARGIN_S = 15.0
"""What a process may need to end when the time for running answers is over; then it is killed."""


def patience_s(settings: Settings, close_margin_s: float = CLOSE_MARGIN_S) -> float:
    """How long a process may go on after it was told to end."""
    return settings.shutdown.timeout + close_margin_s


def run(settings: Settings, command: Sequence[str], close_margin_s: float = CLOSE_MARGIN_S) -> int:
    """Supervise `server.processes` processes until SIGTERM or SIGINT; returns the exit status.

    `command` starts one. It gets the arguments `-child NUMBER DESCRIPTOR FOLDER`: which process it is, its
    listening socket, and where it meets the others; and a standard input as `cmd.lifeline` describes it.
    Raises SluiceError when the address cannot be had.
    """
    host, port = parse_address(settings.server.http.addr)
    with naming(settings.server.http.addr):
        listeners = listen_together(
            host, port, settings.session.write_buffer_bytes, settings.server.processes
        )
    announce = partial(say_ready, listeners[0])
    with (
        tempfile.TemporaryDirectory(prefix="sluice-", ignore_cleanup_errors=True) as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        deadline_s = patience_s(settings, close_margin_s)
        posts = [
            Post(("-child", str(number), str(listener.fileno()), folder), listener)
            for number, listener in enumerate(listeners)
        ]
        return runner.run(Supervisor(command, posts, announce, deadline_s).run())


def run_worker(settings: Settings, command: Sequence[str], close_margin_s: float = CLOSE_MARGIN_S) -> int:
    """Supervise a worker process, which `command` starts, as `run` does servers. Its one argument is
    `-child`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        deadline_s = patience_s(settings, close_margin_s)
        return runner.run(Supervisor(command, [Post(("-child",))], lambda: None, deadline_s).run())


@dataclass(frozen=True, slots=True)
class Post:
    """What one process after another is started for: the arguments that they get, and the listening socket
    that outlives them, where they have one."""

    arguments: tuple[str, ...]
    listener: socket.socket | None = None


@dataclass(frozen=True, slots=True)
class _End:
    """How a process ended: its exit status, negative for a signal, and how long it had been ready."""

    status: int
    ready_s: float = 0.0


class Supervisor:
    """Keeps a process alive at each of `posts`, whose listening sockets it closes when it stops."""

    def __init__(
        self,
        command: Sequence[str],
        posts: Sequence[Post],
        announce: Callable[[], None],
        deadline_s: float,
    ) -> None:
        """`announce` is called once, when all are ready. After a signal they have `deadline_s` to end."""
        self._command = command
        self._posts = posts
        self._announce = announce
        self._deadline_s = deadline_s
        self._deadline: asyncio.TimerHandle | None = None
        self._running: dict[int, Process] = {}
        self._have_been_ready: set[int] = set()
        self._stopping = asyncio.Event()
        self._status = 0

    async def run(self) -> int:
        """The exit status: 0 when a signal ended it and all processes ended well, 1 when one did not. It is
        that of the processes when they fail before any was ready."""
        try:
            with self._signals():
                async with asyncio.TaskGroup() as tasks:
                    for number in range(len(self._posts)):
                        tasks.create_task(self._keep(number))
        finally:
            self._close_listeners()
            if self._deadline:
                self._deadline.cancel()
        log.info("all processes have ended", extra={"status": self._status})
        return self._status

    # ── one process ──────────────────────────────────────────────────────────────────────────────

    async def _keep(self, number: int) -> None:
        """Run one process after another in this place, until all stop."""
        failures = 0
        while not self._stopping.is_set():
            end = await self._live(number)
            if self._stopping.is_set():
                self._judge(number, end)
                return
            failures = 0 if end.ready_s >= STEADY_S else failures + 1
            told = {"number": number, "status": end.status}
            if failures >= self._tries(end) and not self._have_been_ready:
                log.warning("a process cannot start: giving up", extra=told)
                self._stop(end.status if end.status > 0 else 1)
                return
            delay_s = delay_after(failures)
            log.warning("a process has ended: starting another", extra={**told, "delay_s": delay_s})
            await self._pause(delay_s)

    def _tries(self, end: _End) -> int:
        """How often a process may fail like this at its start. The only one has said why, in one sentence,
        and would say it again, perhaps minutes later; several may get in each other's way."""
        has_said_why = 0 < end.status != ENGINE_LOST
        return 1 if has_said_why and len(self._posts) == 1 else TRIES

    async def _live(self, number: int) -> _End:
        """Start a process, and wait for its end."""
        clock = asyncio.get_running_loop().time
        ready_at = None
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                process = await self._start(number, theirs.fileno())
            except OSError as error:
                log.warning("a process cannot be started", extra={"number": number, "because": str(error)})
                return _End(status=1)
            theirs.close()
            self._running[number] = process
            try:
                if await _says_ready(ours):
                    ready_at = clock()
                    self._is_ready(number)
                status = await process.wait()
            finally:
                del self._running[number]
        return _End(status, clock() - ready_at if ready_at else 0.0)

    async def _start(self, number: int, lifeline: int) -> Process:
        post = self._posts[number]
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *post.arguments,
            stdin=lifeline,
            pass_fds=[post.listener.fileno()] if post.listener is not None else [],
            # Ctrl-C in the terminal is for the supervisor alone, which tells the others.
            start_new_session=True,
        )
        if self._stopping.is_set():  # told while it was being started
            _send(process, signal.SIGTERM)
        return process

    def _is_ready(self, number: int) -> None:
        log.info("a process is ready", extra={"number": number})
        waited_for = number not in self._have_been_ready
        self._have_been_ready.add(number)
        if waited_for and len(self._have_been_ready) == len(self._posts):
            self._announce()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._kill()
        else:
            log.info("stopping: waiting for all processes")
            self._stop(0)

    def _stop(self, status: int) -> None:
        self._status = status
        self._stopping.set()
        self._close_listeners()
        for process in self._running.values():
            _send(process, signal.SIGTERM)
        self._deadline = asyncio.get_running_loop().call_later(self._deadline_s, self._kill)

    def _kill(self) -> None:
        for process in self._running.values():
            _send(process, signal.SIGKILL)

    def _judge(self, number: int, end: _End) -> None:
        """Take the end of a process after the signal into the exit status."""
        # Before it handles signals there is nothing that it could have left undone.
        cut_short = end.status == -signal.SIGTERM and not end.ready_s
        if end.status and not cut_short:
            log.warning("a process did not end well", extra={"number": number, "status": end.status})
            self._status = self._status or 1

    def _close_listeners(self) -> None:
        for post in self._posts:
            if post.listener is not None:
                post.listener.close()


def delay_after(failures: int) -> float:
    """How long to wait before the next try."""
    return min(FIRST_DELAY_S * 2 ** min(failures - 1, 20), LONGEST_DELAY_S) if failures else 0.0


async def _says_ready(lifeline: socket.socket) -> bool:
    """Wait until the process tells that it is ready; False when it ends instead."""
    lifeline.setblocking(False)
    try:
        return bool(await asyncio.get_running_loop().sock_recv(lifeline, 64))
    except ConnectionError:
        return False


def _send(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
