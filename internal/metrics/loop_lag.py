"""Measures how late the event loop is: what every user feels when something blocks it."""

import asyncio
from typing import Protocol

INTERVAL_S = 0.1


class _Observer(Protocol):
    def observe(self, amount: float) -> None: ...


async def watch_loop_lag(histogram: _Observer) -> None:
    """Observe the lag of a timer every INTERVAL_S, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        histogram.observe(max(0.0, loop.time() - due))
