"""The metrics of all processes that share an address, from any of them.

A scrape reaches an arbitrary process. Each serves its own metrics on a unix socket, where the others can ask
for them, in a folder that only this user can enter.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import aiohttp
from aiohttp import web

from internal.server.listen import naming

log = logging.getLogger(__name__)

PATIENCE_S = 1.0
"""How long a scrape waits for another process. One that is stopped, or is being replaced, is left out."""


class Siblings:
    """This process among those that share its address. An asynchronous context, in which others can ask it.

    `number` is this process's, below `count`, and `own` gives its metrics in the text exposition format.
    """

    def __init__(self, folder: Path, number: int, count: int, own: Callable[[], bytes]) -> None:
        self._number = number
        self._own = own
        self._sockets = [folder / f"{one}.sock" for one in range(count)]
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=PATIENCE_S)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        path = self._sockets[self._number]
        path.unlink(missing_ok=True)  # of the process whose place this one takes
        with naming(str(path)):
            await web.UnixSite(self._runner, path).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        self._sockets[self._number].unlink(missing_ok=True)

    async def _answer(self, request: web.Request) -> web.Response:
        return web.Response(body=self._own())

    async def scrape(self) -> bytes:
        """The metrics of all that answer in time, each sample with the label `process`."""
        numbers = range(len(self._sockets))
        texts = await asyncio.gather(*(self._metrics_of(number) for number in numbers))
        return merged((number, text) for number, text in zip(numbers, texts, strict=True) if text is not None)

    async def _metrics_of(self, number: int) -> bytes | None:
        if number == self._number:
            return self._own()
        connector = aiohttp.UnixConnector(str(self._sockets[number]))
        limit = aiohttp.ClientTimeout(total=PATIENCE_S)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=limit) as client,
                client.get("http://sibling/metrics", raise_for_status=True) as response,
            ):
                return await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            # Anyone can ask for metrics: this must not fill the log.
            log.debug("metrics are incomplete", extra={"missing": number, "because": type(error).__name__})
            return None


_HEAD = re.compile(rb"# (?:HELP|TYPE) (\S+)")
_SAMPLE = re.compile(rb"([^\s{]+)(\{?)")


def merged(texts: Iterable[tuple[int, bytes]]) -> bytes:
    """One text exposition of several: a family is described once, and has the samples of all.

    Source: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
    """
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for number, text in texts:
        family = b""
        # Not splitlines(): a label value may contain what else ends a line there.
        for line in text.split(b"\n"):
            if head := _HEAD.match(line):
                family = head[1]
                known = heads.setdefault(family, [])
                if line not in known:
                    known.append(line)
            elif sample := _SAMPLE.match(line):
                # `name 1` or `name{label="value"} 1`
                labels = b'{process="%d"%s' % (number, b"," if sample[2] else b"}")
                samples.setdefault(family, []).append(sample[1] + labels + line[sample.end() :])
    lines = [line for family in heads for line in (*heads[family], *samples.get(family, ()))]
    return b"\n".join((*lines, b""))
