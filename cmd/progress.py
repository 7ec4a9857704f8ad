"""What a person sees while models load, and where to connect when they are ready."""

import logging
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from tqdm import tqdm

from internal.server.readiness import Readiness

log = logging.getLogger("sluice")

_STEP = 0.25
"""How often a log without a terminal tells about the progress."""


class LoadingProgress:
    """Told of each model's progress, from any thread: a bar on a terminal, a few log lines elsewhere."""

    def __init__(self, readiness: Readiness, ready: Callable[[], None], *, alone: bool) -> None:
        """`ready` is called when every model is. Not `alone`: several processes have one terminal, where
        their bars would overwrite each other."""
        self._readiness = readiness
        self._ready = ready
        self._terminal = alone and sys.stderr.isatty()
        self._bars: dict[str, tqdm[NoReturn]] = {}
        self._told: dict[str, float] = {}
        self._started_at = time.monotonic()

    def __call__(self, model: str, done: float) -> None:
        self._readiness.loaded(model, done)
        if done >= 1.0:
            self._finished(model)
        elif self._terminal:
            if model not in self._bars:
                self._bars[model] = self._bar(model)
            bar = self._bars[model]
            bar.update(done * 100 - bar.n)
        elif done >= self._told.get(model, 0.0) + _STEP:
            self._told[model] = done
            log.info("loading %s: %d %%", model, done * 100)

    def _bar(self, model: str) -> "tqdm[NoReturn]":
        tqdm.monitor_interval = 0  # no thread of its own
        form = "loading {desc}: {percentage:3.0f} %|{bar}| {elapsed}"
        return tqdm(desc=model, total=100, bar_format=form, leave=False, file=sys.stderr)

    def _finished(self, model: str) -> None:
        if model in self._bars:
            self._bars.pop(model).close()
        log.info("model %s is ready after %.1f s", model, time.monotonic() - self._started_at)
        if self._readiness.ready:
            self._ready()


def say_ready(listener: socket.socket) -> None:
    """Tell a person that the server is ready, and what to do with it; nothing when it is stopping already."""
    if listener.fileno() < 0:
        return
    host, port = listener.getsockname()[:2]
    host = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1") else host
    print(_BANNER.format(address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}"), flush=True)


_BANNER = """
  Sluice is ready.

    page    http://{address}/
    chat    wscat -c ws://{address}/ws
    openai  base_url="http://{address}/v1"
    state   http://{address}/readyz  http://{address}/metrics
"""
