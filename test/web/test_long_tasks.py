"""How long a page was busy, on pages of a few lines."""

from typing import TYPE_CHECKING

from long_tasks import longest_task, longest_work
from playwright.async_api import expect

if TYPE_CHECKING:
    from conftest import Pages, Visit

BUTTONS = '<button id="busy">Busy</button><button id="idle">Idle</button>'
SCRIPT = """
const work = (ms) => { const until = performance.now() + ms; while (performance.now() < until); };
busy.onclick = () => { work(300); setTimeout(() => { work(100); document.title = "busy done"; }); };
idle.onclick = () => { document.title = "idle done"; };
"""


async def test_the_longest_task_of_a_block_is_told(pages: "Pages", visit: "Visit") -> None:
    page = (await visit(pages.show(SCRIPT, BUTTONS))).page
    async with longest_task(page) as first:
        await page.get_by_role("button", name="Busy").click()
        await expect(page).to_have_title("busy done")
    async with longest_task(page) as second:
        await page.get_by_role("button", name="Idle").click()
        await expect(page).to_have_title("idle done")
    assert first.ms >= 300
    assert second.ms < 300


async def test_a_page_that_opens_counts_from_its_beginning(pages: "Pages", visit: "Visit") -> None:
    visitor = await visit(pages.show(SCRIPT + "work(200);", BUTTONS), None)
    async with longest_task(visitor.page) as opening:
        await visitor.open()
    assert opening.ms >= 200


async def test_what_a_processor_spent_is_told_without_what_the_debugger_asked_for(
    pages: "Pages", visit: "Visit"
) -> None:
    page = (await visit(pages.show(SCRIPT, BUTTONS))).page
    async with longest_work(page) as working:
        await page.get_by_role("button", name="Busy").click()
        await page.evaluate(
            "() => { const until = performance.now() + 1000; while (performance.now() < until); }"
        )
        await expect(page).to_have_title("busy done")
    assert 50 < working.ms < 500
    async with longest_work(page) as resting:
        await page.get_by_role("button", name="Idle").click()
        await expect(page).to_have_title("idle done")
    assert resting.ms < 50
