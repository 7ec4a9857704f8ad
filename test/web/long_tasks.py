"""For how long a page was busy at a stretch, and could not answer whoever used it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

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


# The second one for tasks with all that belongs to them: promises, for instance.
_CATEGORIES = ["toplevel", "disabled-by-default-devtools.timeline"]


@asynccontextmanager
async def longest_work(page: Page) -> AsyncIterator[Longest]:
    """As `longest_task`, of all pages; but what counts is the time that a processor spent on a task, so that
    other programs do not lengthen it.

    Source: https://chromedevtools.github.io/devtools-protocol/tot/Tracing/
    """
    longest = Longest()
    session = await page.context.new_cdp_session(page)
    events: list[dict[str, Any]] = []
    complete = asyncio.Event()
    session.on("Tracing.dataCollected", lambda data: events.extend(data["value"]))
    session.on("Tracing.tracingComplete", lambda _: complete.set())
    config = {"includedCategories": _CATEGORIES, "excludedCategories": ["*"]}
    await session.send("Tracing.start", {"transferMode": "ReportEvents", "traceConfig": config})
    yield longest
    await session.send("Tracing.end")
    await complete.wait()
    await session.detach()
    longest.ms = max((task["tdur"] / 1000 for task in _tasks(events)), default=0.0)


def _tasks(events: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Those of pages' main threads, without what the debugger has asked for."""
    names = {(it["pid"], it["tid"]): it["args"]["name"] for it in events if it["name"] == "thread_name"}
    asked = [event for event in events if "DevToolsSession" in _message(event)]
    for event in events:
        is_task = event["name"] == "RunTask" and "tdur" in event
        if not is_task or names.get((event["pid"], event["tid"])) != "CrRendererMain":
            continue
        if not any(_is_within(it, event) for it in asked):
            yield event


def _message(event: dict[str, Any]) -> str:
    """Of which kind it is, where it is one from another process."""
    info = event.get("args", {}).get("chrome_mojo_event_info", {})
    return str(info.get("mojo_interface_tag", ""))


def _is_within(event: dict[str, Any], task: dict[str, Any]) -> bool:
    if (event["pid"], event["tid"]) != (task["pid"], task["tid"]):
        return False
    return bool(task["ts"] <= event["ts"] <= task["ts"] + task["dur"])
