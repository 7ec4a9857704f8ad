"""python -m cmd.server -conf configs/config.yaml [-check]

Exit status: 0 after a shutdown by signal, 1 when the server cannot run, 2 when the configuration or the
command line cannot be used.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvloop
from aiohttp import web

from cmd import logs, wire
from cmd.progress import LoadingProgress
from internal.biz.close import CloseCode
from internal.biz.errors import SluiceError
from internal.conf.load import ConfigError, effective, load
from internal.conf.settings import Settings, parse_address
from internal.server.listen import BACKLOG, listen, raise_descriptor_limit

log = logging.getLogger("sluice")

IDLE_HTTP_S = 75.0
"""How long a connection may stay that asks for nothing."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cmd.server", allow_abbrev=False)
    parser.add_argument("-conf", type=Path, required=True, metavar="FILE", help="configuration file")
    parser.add_argument("-check", action="store_true", help="print the effective configuration and exit")
    options = parser.parse_args()
    try:
        settings = load(options.conf, os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if options.check:
        print(effective(settings), end="")
        return 0
    logs.configure(settings.log.level, settings.log.format)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except (SluiceError, BaseExceptionGroup) as error:
        cause = _first(error)
        if not isinstance(cause, SluiceError):
            raise
        print(cause.message, file=sys.stderr)
        return 1
    return 0


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def serve(settings: Settings) -> None:
    """Listen, load the models, serve until SIGTERM or SIGINT, then drain."""
    host, port = parse_address(settings.server.http.addr)
    try:
        listener = listen(host, port, settings.session.write_buffer_bytes)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise SluiceError(f"cannot listen on {settings.server.http.addr}: {reason}") from error
    raise_descriptor_limit()
    sluice = wire.build(settings)
    runner = web.AppRunner(
        sluice.application, access_log=None, handle_signals=False, keepalive_timeout=IDLE_HTTP_S
    )
    with _stop_signal() as stop:
        await runner.setup()
        site = web.SockSite(runner, listener, backlog=BACKLOG)
        await site.start()
        progress = LoadingProgress(sluice.readiness, _shown_address(listener))
        work = asyncio.create_task(sluice.work(progress))
        stopped = asyncio.create_task(stop.wait())
        _spare_collector()
        try:
            await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                log.info("stopping: waiting for running answers")
                sluice.readiness.draining = True
                await site.stop()
                await sluice.sessions.drain(settings.shutdown.timeout)
            stopped.cancel()
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
        finally:
            await sluice.sessions.close_all(CloseCode.INTERNAL_ERROR, "the server has failed")
            await sluice.sessions.stop()
            await runner.cleanup()
    log.info("stopped")


def _shown_address(listener: socket.socket) -> str:
    """Where to connect from this machine."""
    host, port = listener.getsockname()[:2]
    host = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1") else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def _stop_signal() -> Iterator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets; the second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _spare_collector() -> None:
    """Keep the garbage collector from stopping the loop: full collections over the state of thousands of
    sessions took up to half a second. What lives since the start is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 1_000)


if __name__ == "__main__":
    sys.exit(main())
