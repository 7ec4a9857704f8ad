"""How long a page was busy, on pages of a few lines."""

from typing import TYPE_CHECKING

from long_tasks import longest_work
from playwright.async_api import expect

if TYPE_CHECKING:
    from conftest import Pages, Visit

BUTTONS = '<button id="busy">Busy</button><button id="idle">Idle</button>'
# So much work, however long that takes here: 3 are some hundred milliseconds.
SCRIPT = """
window.work = (much) => {
  let sum = 0;
  for (let times = 0; times < much * 3e7; times++) sum = (sum * 31 + times) % 1000003;
  return sum;
};
let times = 0;
busy.onclick = () => { work(3); setTimeout(() => { work(1); document.title = `busy ${times += 1}`; }); };
idle.onclick = () => { document.title = "idle"; };
"""
LEAST_MS = 50.0
"""Of what is work at all."""


async def test_what_a_processor_spent_is_told_without_what_the_debugger_asked_for(
    pages: "Pages", visit: "Visit"
) -> None:
    page = (await visit(pages.show(SCRIPT, BUTTONS))).page
    async with longest_work(page) as alone:
        await page.get_by_role("button", name="Busy").click()
        await expect(page).to_have_title("busy 1")
    async with longest_work(page) as beside:
        await page.get_by_role("button", name="Busy").click()
        await page.evaluate("work(15)")
        await expect(page).to_have_title("busy 2")
    async with longest_work(page) as resting:
        await page.get_by_role("button", name="Idle").click()
        await expect(page).to_have_title("idle")
    assert alone.ms > LEAST_MS
    assert alone.ms / 2.5 < beside.ms < alone.ms * 2.5
    assert resting.ms < alone.ms / 2


async def test_a_page_that_opens_counts_from_its_beginning(pages: "Pages", visit: "Visit") -> None:
    visitor = await visit(pages.show(SCRIPT + "work(3);", BUTTONS), None)
    async with longest_work(visitor.page) as opening:
        await visitor.open()
    assert opening.ms > LEAST_MS


async def test_it_is_told_how_long_a_page_was_busy_within_what_it_measures(
    pages: "Pages", visit: "Visit"
) -> None:
    script = """
      busy.onclick = () => {
        const start = performance.now();
        work(3);
        setTimeout(() => {
          performance.measure("work", { start });
          const end = performance.now();
          setTimeout(() => { performance.measure("rest", { start: end }); document.title = "rested"; }, 100);
        });
      };
    """
    page = (await visit(pages.show(SCRIPT + script, BUTTONS))).page
    async with longest_work(page) as working:
        await page.get_by_role("button", name="Busy").click()
        await expect(page).to_have_title("rested")
    (work,), (rest,) = working.during["work"], working.during["rest"]
    assert LEAST_MS < work < working.ms * 1.5
    assert rest < working.ms / 2
