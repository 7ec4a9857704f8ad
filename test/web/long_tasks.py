"""For how long a page was busy at a stretch, and could not answer whoever used it."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Page


@dataclass(slots=True)
class Longest:
    """Told when the block has ended."""

    ms: float = 0.0
    """The longest task."""
    during: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """For how many milliseconds a page was busy within each `performance.measure` of the block, by name."""


# The second one for tasks with all that belongs to them: promises, for instance.
_CATEGORIES = ["toplevel", "disabled-by-default-devtools.timeline", "blink.user_timing"]


@asynccontextmanager
async def longest_work(page: Page) -> AsyncIterator[Longest]:
    """The longest task of a page's main thread while the block runs: scripts, layout, drawing; also of a page
    that opens then. What counts is the time that a processor spent on it, so that other programs do not
    lengthen it; what a test has evaluated does not.

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
    # A task at hand ends before this answer; else nothing would be told of it.
    await page.evaluate("() => new Promise((resolve) => setTimeout(resolve))")
    await session.send("Tracing.end")
    await complete.wait()
    await session.detach()
    tasks = [*_tasks(events)]
    longest.ms = max((task["tdur"] / 1000 for task in tasks), default=0.0)
    for name, begun, ended in _measures(events):
        longest.during[name].append(sum(_spent_within(task, begun, ended) for task in tasks) / 1000)


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


def _measures(events: list[dict[str, Any]]) -> Iterator[tuple[str, int, int]]:
    """Name, begin and end of each, in microseconds of the trace."""
    begun: dict[tuple[str, str], int] = {}
    ordered = sorted((it for it in events if it.get("cat") == "blink.user_timing"), key=lambda it: it["ts"])
    for event in ordered:
        which = event["name"], str(event.get("id2", event.get("id")))
        if event["ph"] == "b":
            begun[which] = event["ts"]
        elif event["ph"] == "e":
            yield event["name"], begun.pop(which), event["ts"]


def _spent_within(task: dict[str, Any], begun: int, ended: int) -> float:
    """At most so much of a task's work, in microseconds."""
    overlap = min(task["ts"] + task["dur"], ended) - max(task["ts"], begun)
    return float(max(0, min(overlap, task["tdur"])))
