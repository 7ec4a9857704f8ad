"""What axe-core finds wrong with a page for those who do not see it, or not well, or use no mouse."""

from functools import cache
from importlib.resources import files
from typing import TypedDict

from playwright.async_api import Page

IMPACTS = ("serious", "critical")
_RUN = "async (within) => (await axe.run(within ?? document, {resultTypes: ['violations']})).violations"


class Node(TypedDict):
    target: list[str]
    failureSummary: str


class Violation(TypedDict):
    id: str
    impact: str | None
    help: str
    helpUrl: str
    nodes: list[Node]


@cache
def _axe() -> str:
    return (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


async def accessible(page: Page, within: str | None = None) -> None:
    """Fail when axe finds something serious or critical on the page, or below the element `within` (a CSS
    selector).

    A <script> of ours would be stopped by the page's policy, rightly. What the debugger evaluates is not the
    page's doing, and no policy is asked: so the page is examined with its policy in force.
    """
    await page.evaluate(_axe())
    violations: list[Violation] = await page.evaluate(_RUN, within)
    found = [line for it in violations if it["impact"] in IMPACTS for line in _lines(it)]
    assert not found, "\n".join(["the page is not accessible:", *found])


def _lines(violation: Violation) -> list[str]:
    lines = [f"{violation['impact']}: {violation['help']} ({violation['id']}, {violation['helpUrl']})"]
    for node in violation["nodes"]:
        summary = node["failureSummary"].replace("\n", "\n        ")
        lines.append(f"    {' '.join(node['target'])}\n        {summary}")
    return lines
