"""Waits for news, but not for ever."""

import asyncio
import contextlib


async def pause(news: asyncio.Event, at_most_s: float) -> None:
    """Return when `news` is set, and after `at_most_s` at the latest."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(at_most_s):
            await news.wait()
