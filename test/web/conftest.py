"""A real browser, and servers for it. One Chromium for all tests, a context of its own for each visitor.

Everything here runs in one event loop, which lives as long as the browser: Playwright cannot change it. Async
fixtures say so with `loop_scope`. The modules beside this file can be imported by their names.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ViewportSize, async_playwright, expect
from pytest_asyncio import is_async_test

HERE = Path(__file__).parent

sys.path.insert(0, str(HERE))

from chromium import MISSING, find_chromium, launch  # noqa: E402
from visitor import DESK, PATIENCE_MS, Colours, Locale, Site, Visitor  # noqa: E402

expect.set_options(timeout=PATIENCE_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(loop_scope="session")
async def clients_loop() -> AsyncIterator[None]:
    """Also the loop of the tests before: only what this one has left counts."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - before if not _is_playwrights(task)}
    left -= {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


def _is_playwrights(task: asyncio.Task[object]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and "playwright" in Path(code.co_filename).parts


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    if (program := find_chromium()) is None:
        pytest.skip(MISSING)
    async with async_playwright() as playwright:
        browser = await launch(playwright, program)
        yield browser
        await browser.close()


class Visit(Protocol):
    async def __call__(
        self,
        site: Site,
        path: str | None = "/",
        *,
        locale: Locale = "en",
        colours: Colours = "light",
        viewport: ViewportSize = DESK,
    ) -> Visitor:
        """Somebody new comes, and opens `path` (None: an empty tab). They leave when the test ends, and must
        not have had anything to complain of."""


@pytest_asyncio.fixture(loop_scope="session")
async def visit(browser: Browser) -> AsyncIterator[Visit]:
    visitors: list[Visitor] = []

    async def visit(
        site: Site,
        path: str | None = "/",
        *,
        locale: Locale = "en",
        colours: Colours = "light",
        viewport: ViewportSize = DESK,
    ) -> Visitor:
        visitor = await Visitor.arrive(browser, site, locale=locale, colours=colours, viewport=viewport)
        visitors.append(visitor)
        if path is not None:
            await visitor.open(path)
        return visitor

    yield visit
    complaints = [complaint for visitor in visitors for complaint in await visitor.leave()]
    assert not complaints, "\n".join(["the browser complains:", *complaints])
