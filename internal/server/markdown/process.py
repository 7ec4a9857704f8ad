"""A process that renders: its start, questions and answers, its end. Knows frames, not what they say."""

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from internal.service.frames import HEAD_BYTES, frame, length_of
from internal.service.markdown import MAX_HTML_CHARS

MAX_ANSWER_BYTES = 4 * MAX_HTML_CHARS
"""It says more only when it is broken."""


class Lost(Exception):
    """The process has ended, could not be started, or talks nonsense. No client is told."""


@dataclass(frozen=True, slots=True)
class Program:
    """How to start one: its end of a socket pair is its standard input. `environment` is all that it gets."""

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path


class RenderingProcess:
    """One that runs. Whatever is cancelled or fails here, `end` it then: an answer may be on its way."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._reader.at_eof() or self._process.poll() is not None

    async def answer(self) -> str:
        """What it says next. Raises Lost."""
        try:
            length = length_of(await self._reader.readexactly(HEAD_BYTES))
            if length > MAX_ANSWER_BYTES:
                raise Lost("it says too much")
            return (await self._reader.readexactly(length)).decode()
        except (EOFError, OSError, UnicodeDecodeError) as error:
            raise Lost("it has ended") from error

    async def ask(self, text: str) -> str:
        """Raises Lost."""
        try:
            self._writer.write(frame(text))
            await self._writer.drain()
        except OSError as error:
            raise Lost("it has ended") from error
        return await self.answer()

    async def end(self) -> int:
        """Kill it, unless it has ended. Returns its exit status."""
        self._writer.transport.abort()
        return await asyncio.to_thread(_end, self._process)


async def start(program: Program) -> RenderingProcess:
    """A process that has been started: its first answer says that it is ready. Raises Lost."""
    # On a thread: where the system is busy, it takes a while until a new process is there.
    starting = asyncio.get_running_loop().run_in_executor(None, _start, program)
    try:
        process, line = await asyncio.shield(starting)
        return RenderingProcess(process, *await asyncio.open_unix_connection(sock=line))
    except OSError as error:
        raise Lost(str(error)) from error
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            process, line = await starting  # nobody else knows of it
            line.close()
            await asyncio.to_thread(_end, process)
        raise


def _start(program: Program) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        try:
            process = subprocess.Popen(
                program.command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=program.environment,
                cwd=program.folder,
                # Ctrl-C in the terminal is for the server.
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
    return process, ours


def _end(process: subprocess.Popen[bytes]) -> int:
    process.kill()
    return process.wait()
