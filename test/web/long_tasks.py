"""For how long a page was busy at a stretch, and could not answer whoever used it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from playwright.async_api import Page

# Runs in every document before anything of its own does. Bound: a task of 50 ms or more each.
OBSERVE = """
window.sluiceTasks = {
  all: [],
  since: 0,
  observer: new PerformanceObserver((list) => window.sluiceTasks.all.push(...list.getEntries())),
};
window.sluiceTasks.observer.observe({type: "longtask", buffered: true});
"""
# An empty tab has none.
_BEGIN = "() => { if (window.sluiceTasks) window.sluiceTasks.since = performance.now(); }"
_LONGEST = """async () => {
  const tasks = window.sluiceTasks;
  await new Promise((resolve) => setTimeout(resolve));  // the task at hand ends, and is told of
  tasks.all.push(...tasks.observer.takeRecords());
  const ended = tasks.all.filter((task) => task.startTime + task.duration > tasks.since);
  return Math.max(0, ...ended.map((task) => task.duration));
}"""


@dataclass(slots=True)
class Longest:
    """`ms` is told when the block has ended. 0: no task took 50 ms, and shorter ones are not told of."""

    ms: float = 0.0


@asynccontextmanager
async def longest_task(page: Page) -> AsyncIterator[Longest]:
    """The longest task of the page's main thread while the block runs: scripts, layout, drawing. It is by the
    clock, so other programs on the processor lengthen it. What a test has evaluated does not count.

    A block may open another page: then only tasks of that one count. Source: W3C Long Tasks API
    """
    longest = Longest()
    await page.evaluate(_BEGIN)
    yield longest
    longest.ms = await page.evaluate(_LONGEST)
