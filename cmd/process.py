"""What every long-lived process of ours needs: signals, a calm collector, the error behind a group."""

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Iterator


def first(error: BaseException) -> BaseException:
    """The error that made a group of tasks fail."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextlib.contextmanager
def stop_signal() -> Iterator[asyncio.Event]:
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


def spare_collector() -> None:
    """Keep the garbage collector from stopping the loop: full collections over the state of thousands of
    sessions took up to half a second. What lives since the start is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 1_000)
