"""What every long-lived process of ours needs: signals, a calm collector, an exit status."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvloop

from internal.biz.errors import SluiceError


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
    """Run `work` to its end on an event loop of its own; 0."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)
    return 0


@contextlib.contextmanager
def stop_signal(at_once: Callable[[], None] = lambda: None) -> Iterator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets; the second one calls `at_once` and ends the process."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            at_once()
            os._exit(1)
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
