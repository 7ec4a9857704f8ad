"""python -m cmd.worker -conf configs/redis.yaml [-model NAME ...]

Runs models for the servers on the same Redis. Exit status: 0 after a shutdown by signal, 1 when the worker
cannot run, 2 when the configuration or the command line cannot be used, 75 when its engine is lost and nobody
starts another process.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from cmd import lifeline, logs, supervisor
from cmd.process import exit_status, own_command, run, spare_collector, stop_signal
from cmd.progress import LoadingProgress
from cmd.wire.worker import build_crew
from internal.conf.load import ConfigError, load
from internal.conf.settings import Model, Settings, parse_address
from internal.server import probes
from internal.server.listen import listen, naming
from internal.server.readiness import Readiness, Standing

log = logging.getLogger("sluice")

SEND_BUFFER_BYTES = 1 << 16


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cmd.worker", allow_abbrev=False)
    parser.add_argument("-conf", type=Path, required=True, metavar="FILE", help="configuration file")
    parser.add_argument(
        "-model", action="append", metavar="NAME", help="a model to run, may be repeated; default: all"
    )
    parser.add_argument("-child", action="store_true", help=argparse.SUPPRESS)  # see cmd.supervisor
    options = parser.parse_args()
    try:
        settings = load(options.conf, os.environ)
        models = _chosen(settings, options.model)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(settings.log.level, settings.log.format)
    if not options.child and any(model.may_be_lost for model in models):
        return exit_status(lambda: supervisor.run_worker(settings, own_command()))
    return exit_status(lambda: run(work(settings, models, is_child=options.child)))


def _chosen(settings: Settings, names: Sequence[str] | None) -> list[Model]:
    """The models of these names, or all. Raises ConfigError."""
    if settings.queue.driver != "redis":
        raise ConfigError(
            "queue.driver is memory: then the server runs the models itself; workers need queue.driver: redis"
        )
    known = {model.name: model for model in settings.models}
    if unknown := [name for name in names or () if name not in known]:
        raise ConfigError(f"-model {unknown[0]}: there is no such model (known: {', '.join(known)})")
    return [known[name] for name in dict.fromkeys(names or known)]


async def work(settings: Settings, models: Sequence[Model], *, is_child: bool = False) -> None:
    """Load the models, take requests until SIGTERM or SIGINT, then finish or hand over what runs. A child
    also ends with its supervisor."""
    crew = build_crew(settings, models)
    names = [model.name for model in models]
    readiness = Readiness(names)

    def crew_stands() -> dict[str, Standing]:
        return {one.model: Standing(int(one.takes_requests), one.condition) for one in crew.workers}

    async with contextlib.AsyncExitStack() as around:
        stop = around.enter_context(stop_signal())
        await _serve_probes(around, settings, probes.build(readiness, crew.instruments, crew_stands))
        patience_s = supervisor.patience_s(settings)
        line = await around.enter_async_context(lifeline.held(stop, patience_s)) if is_child else None

        def ready() -> None:
            log.info("worker %s is ready: %s", crew.name, ", ".join(names))
            if line is not None:
                line.tell_ready()

        progress = LoadingProgress(readiness, ready, alone=True)
        working = asyncio.create_task(crew.work(progress))
        stopped = asyncio.create_task(stop.wait())
        spare_collector()
        await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
        if stopped.done() and not working.done():
            log.info("stopping: finishing running answers")
            readiness.draining = True
            await crew.drain(settings.shutdown.timeout)
        stopped.cancel()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
    log.info("stopped")


async def _serve_probes(around: contextlib.AsyncExitStack, settings: Settings, app: web.Application) -> None:
    address = settings.worker.http.addr
    if not address:
        return
    host, port = parse_address(address)
    with naming(address):
        listener = listen(host, port, SEND_BUFFER_BYTES)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    around.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listener).start()


if __name__ == "__main__":
    sys.exit(main())
