"""The course of a load test: ramp up, let every connection talk, hold them all, release them together."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import aiohttp

from cmd.loadtest.client import Connection
from cmd.loadtest.dialects import make_dialect
from cmd.loadtest.options import Options
from cmd.loadtest.stats import Tally

MAX_OPENING = 200
"""Handshakes at one time: more would only wait in the server's accept queue, or overflow it."""
SAMPLE_EVERY_S = 0.25


class LoadTest:
    """One run. Connections that are done stay open until all are: the server holds all of them at once."""

    def __init__(self, options: Options, sources: tuple[str | None, ...], tally: Tally) -> None:
        self._options = options
        self._sources = sources
        self._tally = tally
        self._opening = asyncio.Semaphore(MAX_OPENING)
        self._talking = options.connections
        self._all_have_talked = asyncio.Event()

    async def run(self, observe: Callable[[Tally], None]) -> None:
        """Returns when every connection is closed; calls `observe` every SAMPLE_EVERY_S.

        Cancelling drops all connections; the tally then holds what was measured so far.
        """
        self._tally.started_at = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(observe))
                await self._connect_all()
                watching.cancel()
        finally:
            self._tally.ended_at = time.perf_counter()
            self._sample(last=True)

    async def _connect_all(self) -> None:
        dialect = make_dialect(self._options)
        connections: list[Connection] = []
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            sessions = [await stack.enter_async_context(_session(source)) for source in self._sources]
            started = time.perf_counter()
            for number in range(self._options.connections):
                await self._wait_for_turn(number, started)
                connection = Connection(self._options, dialect, self._tally)
                connections.append(connection)
                group.create_task(self._drive(connection, sessions[number % len(sessions)]))
            await self._all_have_talked.wait()
            for connection in connections:
                await connection.release()

    async def _drive(self, connection: Connection, session: aiohttp.ClientSession) -> None:
        try:
            if await self._talk(connection, session):
                await connection.hold()
            await connection.close()
        except asyncio.CancelledError:
            await connection.drop()
            raise

    async def _talk(self, connection: Connection, session: aiohttp.ClientSession) -> bool:
        try:
            async with self._opening:
                opened = await connection.open(session)
            return opened and await connection.converse()
        finally:
            self._talking -= 1
            if not self._talking:
                self._all_have_talked.set()

    async def _wait_for_turn(self, number: int, started: float) -> None:
        if not self._options.ramp_per_s:
            await asyncio.sleep(0)
            return
        wait_s = started + number / self._options.ramp_per_s - time.perf_counter()
        # Also when late: the connections that are open have to be served.
        await asyncio.sleep(max(0.0, wait_s))

    async def _watch(self, observe: Callable[[Tally], None]) -> None:
        while True:
            self._sample()
            observe(self._tally)
            due = time.perf_counter() + SAMPLE_EVERY_S
            await asyncio.sleep(SAMPLE_EVERY_S)
            self._tally.own_delay_s = max(self._tally.own_delay_s, time.perf_counter() - due)

    def _sample(self, *, last: bool = False) -> None:
        tally = self._tally
        tally.timeline.sample(time.perf_counter() - tally.started_at, tally.frames, tally.open_now, last=last)


def _session(source: str | None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, local_addr=(source, 0) if source else None),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
