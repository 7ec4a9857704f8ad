"""python -m cmd.server -conf configs/config.yaml [-check]

Exit status: 0 after a shutdown by signal, 1 when the server cannot run, 2 when the configuration or the
command line cannot be used, 75 when its engine is lost and nobody starts another process.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aiohttp import web

from cmd import logs, supervisor
from cmd.child import Place, attached
from cmd.process import exit_status, lost_engine, own_command, run, spare_collector, stop_signal
from cmd.progress import LoadingProgress, say_ready
from cmd.wire.server import build_server
from internal.biz.close import CloseCode
from internal.conf.load import ConfigError, effective, load
from internal.conf.settings import Settings, parse_address
from internal.server.listen import BACKLOG, listen, naming, raise_descriptor_limit

log = logging.getLogger("sluice")

IDLE_HTTP_S = 75.0
"""How long a connection may stay that asks for nothing."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cmd.server", allow_abbrev=False)
    parser.add_argument("-conf", type=Path, required=True, metavar="FILE", help="configuration file")
    parser.add_argument("-check", action="store_true", help="print the effective configuration and exit")
    parser.add_argument("-child", nargs=3, help=argparse.SUPPRESS)  # see cmd.supervisor
    options = parser.parse_args()
    try:
        settings = load(options.conf, os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if options.check:
        print(effective(settings), end="")
        return 0
    place = _place(options.child, settings) if options.child else None
    number = place.number if place and place.is_shared else None
    logs.configure(settings.log.level, settings.log.format, number)
    if not place and _is_supervised(settings):
        return exit_status(lambda: supervisor.run(settings, own_command()))
    return exit_status(lambda: run(serve(settings, place)))


def _is_supervised(settings: Settings) -> bool:
    """Whether there are several processes, or the only one may lose its engine."""
    runs_models = settings.queue.driver == "memory"
    return settings.server.processes > 1 or (runs_models and any(it.may_be_lost for it in settings.models))


def _place(arguments: list[str], settings: Settings) -> Place:
    number, descriptor, folder = arguments
    listener = socket.socket(fileno=int(descriptor))
    return Place(int(number), settings.server.processes, listener, Path(folder))


async def serve(settings: Settings, place: Place | None = None) -> None:
    """Listen, load the models, serve until SIGTERM or SIGINT, then drain. `place`: as one of several."""
    listener = place.listener if place else _listen(settings)
    raise_descriptor_limit()
    sluice = build_server(settings)
    runner = web.AppRunner(
        sluice.application, access_log=None, handle_signals=False, keepalive_timeout=IDLE_HTTP_S
    )
    async with contextlib.AsyncExitStack() as around:
        stop = around.enter_context(stop_signal())
        ready: Callable[[], None] = partial(say_ready, listener)
        if place:
            patience_s = supervisor.patience_s(settings)
            ready = await around.enter_async_context(attached(place, sluice, stop, patience_s))
        # Who comes first is served, and not told that the queue cannot be reached yet.
        await sluice.connect()
        await runner.setup()
        site = web.SockSite(runner, listener, backlog=BACKLOG)
        await site.start()
        progress = LoadingProgress(sluice.readiness, ready, alone=not (place and place.is_shared))
        work = asyncio.create_task(sluice.work(progress, ready))
        stopped = asyncio.create_task(stop.wait())
        spare_collector()
        try:
            await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                log.info("stopping: waiting for running answers")
                sluice.readiness.draining = True
                await site.stop()
                await sluice.drain(settings.shutdown.timeout)
            stopped.cancel()
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
        finally:
            await sluice.sessions.close_all(*_farewell(work))
            await sluice.sessions.stop()
            await sluice.streams.close()
            await runner.cleanup()
    log.info("stopped")


def _farewell(work: "asyncio.Task[None]") -> tuple[CloseCode, str]:
    """What sessions are told that are open when `work` is done or cancelled."""
    if work.done() and not work.cancelled() and lost_engine(work.exception()) is not None:
        return CloseCode.RESTART, "the server is restarting; connect again"
    return CloseCode.INTERNAL_ERROR, "the server has failed"


def _listen(settings: Settings) -> socket.socket:
    host, port = parse_address(settings.server.http.addr)
    with naming(settings.server.http.addr):
        return listen(host, port, settings.session.write_buffer_bytes)


if __name__ == "__main__":
    sys.exit(main())
