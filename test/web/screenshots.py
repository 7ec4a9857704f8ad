"""make screenshots: pictures of the page, as PNGs in the folder `screenshots` beside this file.

Each picture is a test to pytest, which gives it a server, models that say the same every time, and a browser;
only a run that names this file finds it. What is on a picture is said in full before it is taken, and nothing
moves on it: two runs draw the same.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chromium import MISSING, find_chromium
from pages import ChatPage
from playwright.async_api import Page, expect
from scripted import Upstream
from visitor import PHONE

if TYPE_CHECKING:
    from conftest import Visit

    from test.conftest import Server

FOLDER = Path(__file__).with_name("screenshots")

TOKENS_PER_S = 80
QUESTION = "What is a sluice?"
ANSWER = """\
A **sluice** is a channel whose flow is controlled by a gate.

1. Water gathers behind the *gate*.
2. The gate is raised, and lets through as much as is wanted.
3. What was held back is not lost: it comes later.

| gate | flow |
| --- | --- |
| closed | 0 m³/s |
| half open | 1.4 m³/s |

```python
def flow(width: float, opening: float, head: float) -> float:
    return 0.6 * width * opening * (2 * 9.81 * head) ** 0.5
```
"""
OTHER_ANSWER = "A gate for water. *To sluice* is to wash with plenty of it."


@pytest.fixture(scope="session", autouse=True)
def a_browser_is_there() -> None:
    """Elsewhere one does without; here there would be no pictures."""
    if find_chromium() is None:
        pytest.fail(MISSING)


async def draw(page: Page, name: str) -> None:
    """All of it is rendered, and stands still."""
    FOLDER.mkdir(exist_ok=True)
    await expect(page.locator(".growing, .running")).to_have_count(0)
    await page.screenshot(path=FOLDER / f"{name}.png", animations="disabled", caret="hide")


async def ask(page: Page, upstream: Upstream) -> None:
    """A question, and the whole of its answer."""
    chat = ChatPage(page)
    await chat.send(QUESTION)
    await upstream.stream(ANSWER, TOKENS_PER_S)
    await upstream.finish()
    await expect(chat.answer(1)).to_contain_text("return 0.6")


async def test_light(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server)
    await ask(visitor.page, upstream)
    await draw(visitor.page, "light")


async def test_dark(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server, colours="dark")
    await ask(visitor.page, upstream)
    await draw(visitor.page, "dark")


async def test_phone(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server, viewport=PHONE)
    await ask(visitor.page, upstream)
    await draw(visitor.page, "phone")


async def test_side_by_side(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.choose("scripted", "other")
    await chat.send(QUESTION)
    first, second = [await upstream.asked(model) for model in ("scripted", "other")]
    await first.stream(ANSWER, TOKENS_PER_S)
    await second.stream(OTHER_ANSWER, TOKENS_PER_S)
    await first.finish()
    await second.finish()
    await expect(chat.answers).to_have_count(2)
    await expect(chat.answer(1)).to_contain_text("return 0.6")
    await expect(chat.answer(2)).to_contain_text("plenty of it")
    await draw(visitor.page, "side-by-side")
