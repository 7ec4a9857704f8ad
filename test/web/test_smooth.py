"""The page stays quick however long an answer or a chat is: what it does at a stretch is short, whoever reads
at the end stays there, and whoever reads above is not moved.

Times are those that a processor spent, so that other programs on it do not count.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest
from long_tasks import longest_work
from pages import ChatPage
from playwright.async_api import Page, Route, expect
from scripted import Turn, pieces, prose

if TYPE_CHECKING:
    from conftest import Visit
    from scripted import Upstream

    from test.conftest import Server

LONGEST_MS = 100.0
AT_ONCE = 18_000
PER_SECOND = 100
STREAMED_S = 2
"""Of each part of a test; that it goes on for ever so is what the first 18,000 are for."""
MAX_LAG_S = 0.1
"""Of the server's event loop, on average."""
MAX_HEAP_MB = 30.0
KEYS = "quick"

KINDS = {
    "paragraphs": prose(AT_ONCE + 10 * PER_SECOND),
    "a paragraph": " ".join(f"word{n}" for n in range(AT_ONCE + 10 * PER_SECOND)),
    "code": "```python\n"
    + "".join(f"word{n} =" + ("\n" if n % 8 == 0 else " ") for n in range(AT_ONCE // 2 + 5 * PER_SECOND)),
}

_AT_END = """() => {
  const thread = document.querySelector(".thread");
  return thread.scrollHeight - thread.scrollTop - thread.clientHeight < 2;
}"""
# From each key to the frame that shows it.
_KEYS = """(area) => {
  area.addEventListener("keydown", ({ timeStamp }) => {
    requestAnimationFrame(() => setTimeout(() => performance.measure("key", { start: timeStamp })));
  });
}"""
_WAIT_FOR_SCROLL = """(thread) => {
  window.scrolled = new Promise((resolve) => thread.addEventListener("scrollend", resolve, { once: true }));
}"""

# Up by more than a window at each frame, until there is nothing older.
_TO_THE_TOP = """() => new Promise((resolve) => {
  const thread = document.querySelector(".thread");
  const up = () => {
    thread.scrollTop -= 1200;
    const hasOlder = !document.querySelector(".older").hidden;
    if (hasOlder || thread.scrollTop > 0) setTimeout(() => requestAnimationFrame(up));
    else resolve();
  };
  up();
})"""


async def memory(page: Page) -> tuple[float, float]:
    """What scripts have taken and not given back, in MB, and how many nodes there are."""
    session = await page.context.new_cdp_session(page)
    await session.send("HeapProfiler.collectGarbage")
    await session.send("Performance.enable")
    metrics = (await session.send("Performance.getMetrics"))["metrics"]
    await session.detach()
    found = {it["name"]: it["value"] for it in metrics}
    return found["JSHeapUsedSize"] / 1e6, found["Nodes"]


@asynccontextmanager
async def quick_server(server: "Server") -> AsyncIterator[None]:
    """Its event loop waits for nothing meanwhile, but for a processor."""
    name = "sluice_event_loop_lag_seconds"
    before, waits = await server.metrics(), server.waits()
    yield
    after, waited_s = await server.metrics(), waits.seconds
    count, total = (after.value(f"{name}_{it}") - before.value(f"{name}_{it}") for it in ("count", "sum"))
    assert count
    assert (total - waited_s) / count < MAX_LAG_S, f"{total:.2f} s, {waited_s:.2f} s for a processor; {count}"


@pytest.mark.parametrize("text", KINDS.values(), ids=KINDS)
async def test_a_long_answer_grows_smoothly(
    server: "Server", upstream: "Upstream", visit: "Visit", text: str
) -> None:
    page = (await visit(server)).page
    chat, thread = ChatPage(page), page.locator(".thread")
    parts = pieces(text)
    streamed = PER_SECOND * STREAMED_S

    def part(number: int) -> str:
        return "".join(parts[AT_ONCE + number * streamed : AT_ONCE + (number + 1) * streamed])

    await chat.send("Go on")
    await upstream.stream("".join(parts[:AT_ONCE]), PER_SECOND, at_once=AT_ONCE)
    await expect(chat.text_of(1)).to_contain_text(parts[AT_ONCE - 1].strip())
    async with quick_server(server), longest_work(page) as at_end:
        await upstream.stream(part(0), PER_SECOND)
    await expect(chat.text_of(1)).to_contain_text(parts[AT_ONCE + streamed - 1].strip())
    # All but the last block is complete, and rendered.
    await expect(chat.text_of(1).locator(".growing")).to_have_count(1)
    await page.wait_for_function(_AT_END)
    # Whoever has scrolled up reads on.
    await thread.hover()
    await thread.evaluate(_WAIT_FOR_SCROLL)
    await page.mouse.wheel(0, -2000)
    await page.evaluate("scrolled")
    await expect(page.locator(".thread.at-end")).to_have_count(0)
    before = await thread.evaluate("(thread) => thread.scrollTop")
    await chat.message.evaluate(_KEYS)
    await chat.message.focus()
    async with longest_work(page) as above:
        typing = asyncio.create_task(page.keyboard.type(KEYS, delay=150))
        await upstream.stream(part(1), PER_SECOND)
        await typing
    assert await thread.evaluate("(thread) => thread.scrollTop") == before
    assert await chat.message.input_value() == KEYS
    async with longest_work(page) as ending:
        await upstream.finish()
        await chat.ended()
        await expect(chat.text_of(1).locator(".growing")).to_have_count(0)
    waits = sorted(above.during["key"])
    heap_mb, nodes = await memory(page)
    figures = (
        f"{at_end.ms:.0f}, {above.ms:.0f}, {ending.ms:.0f} ms; {waits}; {heap_mb:.1f} MB, {nodes:.0f} nodes"
    )
    assert len(waits) == len(KEYS), figures
    assert max(at_end.ms, above.ms) < LONGEST_MS, figures
    assert ending.ms < 2 * LONGEST_MS, figures  # all of it is laid out anew, as what it has become
    assert waits[len(waits) // 2] < LONGEST_MS, figures
    assert heap_mb < MAX_HEAP_MB, figures


TURNS = 500
ANSWER = """\
Answer {n} is *here*, with `code` and **words** that go on for a while, so that it takes some lines.

1. one
2. two

| a | b |
| --- | --- |
| {n} | 2 |

```python
def f(x: int) -> int:
    return x * {n}
```

The end of {n}."""


async def long_chat(server: "Server", upstream: "Upstream", page: Page) -> str:
    """Of the person whose page it is. Its id."""
    numbers = iter(range(1, TURNS + 1))

    async def answer(turn: Turn) -> None:
        await turn.answer(ANSWER.format(n=next(numbers)))

    await expect(ChatPage(page).model).to_have_text("scripted")  # now they are somebody
    identity = json.loads(await page.evaluate("localStorage.getItem('sluice.identity')"))
    headers = {"Authorization": f"Bearer {identity['access']}"}
    async with aiohttp.ClientSession(server.http(), headers=headers) as client:
        async with client.post("/v1/conversations", json={}) as response:
            conversation: str = (await response.json())["id"]
        for n in range(1, TURNS + 1):
            upstream.will(answer)
            ask = {"model": "scripted", "input": f"Question {n}", "conversation": conversation}
            async with client.post("/v1/responses", json=ask) as response:
                assert response.status == 200, await response.text()
    return conversation


async def reads_on_while_older_messages_come(page: Page) -> None:
    thread = page.locator(".thread")
    asked, answered = asyncio.Event(), asyncio.Event()

    async def later(route: Route) -> None:
        asked.set()
        await answered.wait()
        await route.continue_()

    await page.route("**/turns?*after=*", later)
    await thread.evaluate("(thread) => { thread.scrollTop = 1000; }")
    await asked.wait()
    shown = await page.locator(".turn").count()
    await thread.evaluate(
        "(thread) => { thread.scrollTop = 500; window.seen = document.querySelector('.turn'); }"
    )
    before = await page.evaluate("seen.getBoundingClientRect().top")
    answered.set()
    await expect(page.locator(".turn")).not_to_have_count(shown)
    # What has come above is laid out within some frames, and the browser makes up for it.
    await page.wait_for_function("(top) => Math.abs(seen.getBoundingClientRect().top - top) < 2", arg=before)
    await page.unroute("**/turns?*after=*")


async def test_a_chat_of_a_thousand_messages_is_read_and_goes_on_smoothly(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    visitor = await visit(server)
    page = visitor.page
    chat = ChatPage(page)
    conversation = await long_chat(server, upstream, page)
    async with longest_work(page) as opening:
        await visitor.open(f"/c/{conversation}")
        await expect(chat.answers.last).to_contain_text(f"The end of {TURNS}.")
        await expect(chat.text_of(-1).locator(".growing")).to_have_count(0)
    await page.wait_for_function(_AT_END)
    await reads_on_while_older_messages_come(page)
    async with longest_work(page) as reading:
        await page.evaluate(_TO_THE_TOP)
    assert await page.evaluate("document.querySelectorAll('.turn').length") == TURNS
    await expect(page.locator(".turn").first).to_contain_text("The end of 1.")
    async with longest_work(page) as going_on:
        await chat.send("And now?")
        await upstream.stream(prose(3 * PER_SECOND), PER_SECOND)
        await upstream.finish()
        await chat.ended()
    await page.wait_for_function(_AT_END)
    heap_mb, nodes = await memory(page)
    figures = f"{opening.ms:.0f}, {reading.ms:.0f}, {going_on.ms:.0f} ms; {heap_mb:.0f} MB, {nodes:.0f} nodes"
    assert max(opening.ms, reading.ms, going_on.ms) < LONGEST_MS, figures
    assert heap_mb < MAX_HEAP_MB, figures
