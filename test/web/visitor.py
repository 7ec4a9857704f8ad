"""Somebody with a browser, and all that their browser complains of. Knows nothing of what the page shows."""

import asyncio
import re
from typing import Literal, Protocol
from urllib.parse import urlsplit

from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Error,
    Page,
    Route,
    ViewportSize,
    WebError,
)

PATIENCE_MS = 20_000.0
"""How long a visitor waits for what must happen. Never reached by a test that passes."""

PHONE = ViewportSize(width=320, height=640)
DESK = ViewportSize(width=1280, height=800)

Locale = Literal["en", "zh-CN"]
Colours = Literal["light", "dark"]

# Runs in every document before anything of its own does.
WATCH = """
addEventListener("securitypolicyviolation", (event) =>
  sluiceViolation(`${event.effectiveDirective} forbids ${event.blockedURI} ${event.sample}`.trim()));
"""


class Site(Protocol):
    """Where the page is: a server."""

    def http(self, path: str = "") -> str: ...


class Gate:
    """A request stands before it until it is opened."""

    def __init__(self, answered: bool) -> None:
        self._answered = answered
        self._is_reached = asyncio.Event()
        self._is_open = asyncio.Event()

    async def pass_one(self, route: Route) -> None:
        answer = await route.fetch() if self._answered else None
        self._is_reached.set()
        await self._is_open.wait()
        if answer is None:
            await route.continue_()
        else:
            await route.fulfill(response=answer)

    async def reached(self) -> None:
        async with asyncio.timeout(PATIENCE_MS / 1000):
            await self._is_reached.wait()

    def open(self) -> None:
        self._is_open.set()


class Visitor:
    """A browser of their own: cookies, storage, tabs. `page` is the first tab.

    `complaints` is what a page would keep to itself: errors and warnings on the console, errors that nobody
    caught, violations of the content security policy, requests to anybody but the server, dialogs, crashes.
    A test ends well without any, or with those that `may_complain` matches.
    """

    def __init__(self, site: Site, context: BrowserContext, page: Page) -> None:
        self.site = site
        self.context = context
        self.page = page
        self.complaints: list[str] = []
        self.may_complain: list[str] = []
        """Patterns of what is to be expected in this test."""
        self._news = asyncio.Event()

    @classmethod
    async def arrive(
        cls,
        browser: Browser,
        site: Site,
        *,
        locale: Locale = "en",
        colours: Colours = "light",
        viewport: ViewportSize = DESK,
    ) -> "Visitor":
        """With an empty tab."""
        context = await browser.new_context(locale=locale, color_scheme=colours, viewport=viewport)
        context.set_default_timeout(PATIENCE_MS)
        page = await context.new_page()
        visitor = cls(site, context, page)
        await visitor._listen()
        return visitor

    async def _listen(self) -> None:
        context = self.context
        context.on("console", self._on_console)
        context.on("weberror", self._on_error)
        context.on("dialog", self._on_dialog)
        context.on("request", lambda request: self._on_address(request.url))
        context.on("page", self._on_page)
        self._on_page(self.page)
        await context.expose_function("sluiceViolation", self._on_violation)
        await context.add_init_script(WATCH)

    # ── what they do ─────────────────────────────────────────────────────────────────────────────

    async def open(self, path: str = "/") -> None:
        """In the first tab."""
        await self.page.goto(self.site.http(path))

    async def new_tab(self, path: str = "/") -> Page:
        page = await self.context.new_page()
        await page.goto(self.site.http(path))
        return page

    async def lose_network(self) -> None:
        """Nothing can be reached from now on. Sockets stay open, and silent: what is said on them arrives
        when the network is found again."""
        await self.context.set_offline(True)

    async def hold(self, pattern: str, *, answered: bool = False) -> "Gate":
        """Keep what is asked for next, at an address of this pattern, from the server; or `answered`, its
        answer from the page."""
        gate = Gate(answered)
        await self.context.route(pattern, gate.pass_one, times=1)
        return gate

    async def find_network(self) -> None:
        await self.context.set_offline(False)

    async def complains(self, pattern: str) -> None:
        """Wait for a complaint, which is expected then."""
        self.may_complain.append(pattern)
        try:
            async with asyncio.timeout(PATIENCE_MS / 1000):
                while not any(re.search(pattern, complaint) for complaint in self.complaints):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"no complaint of {pattern!r}, but: {self.complaints}") from None

    async def leave(self) -> list[str]:
        """Close the browser. Returns the complaints that nobody expected."""
        for page in self.context.pages:
            try:
                # What it has to say comes before this answer.
                await page.evaluate("() => new Promise((resolve) => setTimeout(resolve))")
            except Error as error:
                self._complain(f"a tab does not answer: {error.message}")
        await self.context.close()
        return [it for it in self.complaints if not any(re.search(may, it) for may in self.may_complain)]

    # ── what they notice ─────────────────────────────────────────────────────────────────────────

    def _complain(self, complaint: str) -> None:
        self.complaints.append(complaint)
        self._news.set()

    def _on_page(self, page: Page) -> None:
        page.on("crash", lambda _: self._complain("a tab has crashed"))
        page.on("websocket", lambda socket: self._on_address(socket.url))

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            place = message.location
            where = f"{place['url']}:{place['lineNumber'] + 1}"
            self._complain(f"console {message.type}: {message.text} ({where})")

    def _on_error(self, error: WebError) -> None:
        self._complain(f"uncaught: {error.error.stack or error.error.message}")

    def _on_violation(self, violation: str) -> None:
        self._complain(f"content security policy: {violation}")

    def _on_address(self, url: str) -> None:
        """It is asked for."""
        address = urlsplit(url)
        # data: and blob: have none.
        if address.netloc and address.netloc != urlsplit(self.site.http()).netloc:
            self._complain(f"request to somebody else: {url}")

    async def _on_dialog(self, dialog: Dialog) -> None:
        self._complain(f"dialog {dialog.type}: {dialog.message}")
        await dialog.dismiss()
