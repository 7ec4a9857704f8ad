"""python -m cmd.stack -conf configs/redis.yaml

A server, a worker and, where none answers at `queue.url`, a Redis, under one Ctrl-C. When one of them ends by
itself, the others are stopped.

Exit status: 0 after a shutdown by signal, 1 when one could not start, ended by itself or would not stop,
2 when the configuration or the command line cannot be used.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from cmd import local_redis, logs
from cmd.leash import Leash
from cmd.process import stop_signal
from cmd.supervisor import CLOSE_MARGIN_S
from internal.biz.errors import SluiceError
from internal.conf.load import ConfigError, load
from internal.conf.settings import Settings

log = logging.getLogger("sluice.stack")

DATA = Path("data/redis")
REDIS_DEADLINE_S = 3.0
"""How long a Redis may take to answer before it counts as none."""
MARGIN_S = CLOSE_MARGIN_S + 5.0
"""What a program gets to stop, beyond the time that it gives its running answers: more than one that is a
supervisor gives its process."""
AT_ONCE_S = 1.0
"""What it gets when there is no time for more."""
DEFAULT_PORT = 6379


@dataclass(frozen=True, slots=True)
class Program:
    """`may_be_killed`: SIGKILL does no harm. Else it gets the time that it takes."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] | None = None
    may_be_killed: bool = True


def programs(conf: Path) -> list[Program]:
    """What makes up Sluice, beside a Redis, in the order of starting."""
    return [
        Program("worker", [sys.executable, "-m", "cmd.worker", "-conf", str(conf)]),
        Program("server", [sys.executable, "-m", "cmd.server", "-conf", str(conf)]),
    ]


class Child:
    """A program that runs, in a session of its own: a Ctrl-C does not reach it, nor does it outlive us."""

    def __init__(self, program: Program, process: asyncio.subprocess.Process) -> None:
        self.name = program.name
        self.pid = process.pid
        self._program = program
        self._process = process
        self._leash = Leash(process.pid)
        self.ended = asyncio.create_task(self._end())

    async def _end(self) -> int:
        status = await self._process.wait()
        self._leash.release()
        self._signal_all(signal.SIGKILL)  # processes of its own that it left behind
        return status

    def _signal_all(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def hurry(self) -> None:
        """Have it end without waiting for anything."""
        # Two signals are what our programs end for at once, and a supervisor its process with it, which is in
        # a session of its own. Two of a kind could arrive as one.
        numbers = (signal.SIGTERM, signal.SIGINT) if self._program.may_be_killed else (signal.SIGTERM,)
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def kill(self) -> None:
        if not self.ended.done() and self._program.may_be_killed:
            self._signal_all(signal.SIGKILL)

    async def stop(self, patience_s: float) -> None:
        """SIGTERM, and when it has not ended in time, SIGKILL. Raises SluiceError when it ended badly."""
        if not self.ended.done():
            self._process.send_signal(signal.SIGTERM)
            await asyncio.wait([self.ended], timeout=patience_s)
        if not self.ended.done():
            self._signal_all(signal.SIGKILL)
            await self.ended
            raise SluiceError(f"{self.name} did not stop within {patience_s:g} seconds and was killed")
        if (status := await self.ended) not in (0, -signal.SIGTERM):
            raise SluiceError(f"{self.name} ended {_how(status)}")


def _how(status: int) -> str:
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"


class Stack:
    """Programs that need each other: each one those that were started before it."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._children: list[Child] = []

    async def start(self, program: Program) -> Child:
        process = await asyncio.create_subprocess_exec(
            *program.command,
            stdin=asyncio.subprocess.DEVNULL,
            env=program.environment,
            start_new_session=True,
        )
        child = Child(program, process)
        self._children.append(child)
        log.info("started %s", child.name, extra={"pid": child.pid})
        return child

    async def first_end(self) -> SluiceError:
        """Wait until one of them has ended; says which and how. `stop` will not say it again."""
        await asyncio.wait([child.ended for child in self._children], return_when=asyncio.FIRST_COMPLETED)
        child = next(child for child in self._children if child.ended.done())
        self._children.remove(child)
        return SluiceError(f"{child.name} ended {_how(child.ended.result())}")

    async def stop(self) -> bool:
        """Stop what runs, the last one first; each is waited for. True when all went well."""
        went_well = True
        while self._children:
            child = self._children[-1]
            try:
                await child.stop(self._patience_s)
            except SluiceError as error:
                log.error(error.message)
                went_well = False
            self._children.pop()
        return went_well

    async def end_at_once(self) -> None:
        """Without waiting for what they do; nothing of them is left soon after. Takes AT_ONCE_S at most."""
        for child in self._children:
            child.hurry()
        if self._children:
            await asyncio.wait([child.ended for child in self._children], timeout=AT_ONCE_S)
        for child in self._children:
            child.kill()


async def ensure_redis(stack: Stack, url: str, data: Path) -> None:
    """Start a Redis unless one answers at `url`, and wait until it has loaded its data.

    Raises SluiceError when none can be started for that URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORT
        there = await _answers(url)
    except ValueError as error:
        raise SluiceError("queue.url is not the URL of a Redis, such as redis://127.0.0.1:6379/0") from error
    # Without the password.
    where = parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{port}"
    if there:
        log.info("using the Redis that answers at %s", where)
        return
    plain = parts.scheme == "redis" and parts.username is None and parts.password is None
    if not plain or parts.hostname not in (None, "localhost", local_redis.HOST):
        raise SluiceError(
            f"no Redis answers at {where}; one is started only for a URL such as "
            f"redis://{local_redis.HOST}:{DEFAULT_PORT}/0, of this machine and without a password"
        )
    # A folder for each port: two servers on the same data would ruin it.
    folder = (data / str(port)).resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    program = await asyncio.to_thread(local_redis.find_server)
    options = {"appendonly": "yes", "loglevel": "warning"}
    command = local_redis.command(program, port, folder, options)
    # Never SIGKILL: it may not have written everything.
    child = await stack.start(Program("Redis", command, local_redis.environment(), may_be_killed=False))
    while await asyncio.to_thread(local_redis.process_behind, port) != child.pid:
        if child.ended.done():
            raise await stack.first_end()
        await asyncio.wait([child.ended], timeout=0.02)
    log.info("no Redis answered at %s: started one; its data is in %s", where, folder)


async def _answers(url: str) -> bool:
    """Whether there is a Redis at all: it may want another password, or still load its data."""
    client = redis.asyncio.Redis.from_url(
        url,
        socket_connect_timeout=REDIS_DEADLINE_S,
        socket_timeout=REDIS_DEADLINE_S,
        retry=Retry(NoBackoff(), 0),
    )
    async with client:
        try:
            await client.ping()
        except (redis.AuthenticationError, redis.BusyLoadingError, redis.ResponseError):
            return True
        except (redis.RedisError, OSError):
            return False
        return True


async def run(settings: Settings, parts: Sequence[Program], data: Path) -> int:
    """Start everything, keep it running until SIGTERM or SIGINT, stop it. Returns the exit status."""
    stack = Stack(settings.shutdown.timeout + MARGIN_S)

    async def work() -> SluiceError:
        try:
            await ensure_redis(stack, settings.queue.url.get_secret_value(), data)
            for part in parts:
                await stack.start(part)
        except SluiceError as error:
            return error
        except OSError as error:
            return SluiceError(f"cannot start everything: {error}")
        return await stack.first_end()

    at_once = asyncio.Event()
    with stop_signal(at_once.set) as stop:
        working = asyncio.create_task(work())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
        failed = working.done()
        if failed:
            log.error("%s; stopping", working.result().message)
        else:
            log.info("stopping; once more ends everything at once")
        stop.set()
        working.cancel()
        await asyncio.wait([working, stopped])
        stopping = asyncio.create_task(stack.stop())
        hurried = asyncio.create_task(at_once.wait())
        await asyncio.wait([stopping, hurried], return_when=asyncio.FIRST_COMPLETED)
        went_well = stopping.done() and stopping.result()
        if not stopping.done():
            stopping.cancel()
            await asyncio.wait([stopping])
            await stack.end_at_once()
        hurried.cancel()
    return 1 if failed or not went_well else 0


def main(arguments: Sequence[str] | None = None, parts: Sequence[Program] = (), data: Path = DATA) -> int:
    """`parts`: other programs than a worker and a server."""
    parser = argparse.ArgumentParser(prog="python -m cmd.stack", allow_abbrev=False)
    parser.add_argument("-conf", type=Path, required=True, metavar="FILE", help="configuration file")
    options = parser.parse_args(arguments)
    try:
        settings = load(options.conf, os.environ)
        if settings.queue.driver != "redis":
            raise ConfigError(f"queue.driver is {settings.queue.driver}; a stack needs redis")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(settings.log.level, settings.log.format)
    return asyncio.run(run(settings, parts or programs(options.conf), data))


if __name__ == "__main__":
    sys.exit(main())
