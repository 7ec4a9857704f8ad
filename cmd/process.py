"""What every long-lived process of ours needs: signals, a calm collector, an exit status, and a successor."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvloop

from internal.biz.errors import EngineLost, SluiceError

log = logging.getLogger("sluice")

ENGINE_LOST = 75
"""The exit status of a process whose engine cannot go on in it: another one may. As EX_TEMPFAIL."""


def own_command() -> list[str]:
    """What starts such a process as this one."""
    return [sys.executable, *sys.orig_argv[1:]]


def exit_status(work: Callable[[], int]) -> int:
    """What `work` returns; 1, and a sentence for a person, when it fails in a way that is expected."""
    try:
        return work()
    except (SluiceError, BaseExceptionGroup) as error:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        if not isinstance(cause, SluiceError):
            raise
        print(cause.message, file=sys.stderr)
        return 1


def run(work: Coroutine[Any, Any, None]) -> int:
    """Run `work` to its end on an event loop of its own; 0. When it ends for a lost engine, so does the
    process, at once: the threads of such an engine may never end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_unless_lost(work))
    return 0


async def _unless_lost(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except BaseException as error:
        if (lost := lost_engine(error)) is None:
            raise
        log.error("the engine is lost, and this process ends: %s", lost.message)
        logging.shutdown()
        os._exit(ENGINE_LOST)


def lost_engine(error: BaseException | None) -> EngineLost | None:
    """The loss of an engine, if that is what it is, or among it."""
    if isinstance(error, BaseExceptionGroup):
        return next((lost for one in error.exceptions if (lost := lost_engine(one)) is not None), None)
    return error if isinstance(error, EngineLost) else None


def _exit_at_once() -> None:
    os._exit(1)


@contextlib.contextmanager
def stop_signal(at_once: Callable[[], None] = _exit_at_once) -> Iterator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets. Each one after it calls `at_once`, which by itself ends
    the process."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            at_once()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def spare_collector() -> None:
    """Keep the garbage collector from stopping the loop: full collections over the state of thousands of
    sessions took up to half a second. What lives since the start is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 1_000)
