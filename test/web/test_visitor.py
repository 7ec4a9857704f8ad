"""What a visitor notices, on pages of a few lines."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Error, expect
from visitor import DESK, PHONE, Visitor

if TYPE_CHECKING:
    from conftest import Visit

STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


class Pages:
    """A server of pages with a strict policy. Implements Site."""

    def __init__(self) -> None:
        self.script = ""
        self.body = ""
        self.port = 0

    def http(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def show(self, script: str = "", body: str = "<h1>Here</h1>") -> "Pages":
        self.script, self.body = script, body
        return self

    async def answer(self, request: web.Request) -> web.StreamResponse:
        match request.path:
            case "/":
                html = (
                    '<!doctype html><html lang="en"><title>A page</title><link rel="icon" href="data:,">'
                    f'<script type="module" src="/page.js"></script><main>{self.body}</main></html>'
                )
                headers = {"Content-Security-Policy": STRICT}
                return web.Response(text=html, content_type="text/html", headers=headers)
            case "/page.js":
                return web.Response(text=self.script, content_type="text/javascript")
            case "/socket":
                socket = web.WebSocketResponse()
                await socket.prepare(request)
                async for message in socket:
                    await socket.send_str(f"heard {message.data}")
                return socket
        raise web.HTTPNotFound


@pytest_asyncio.fixture(loop_scope="session")
async def pages() -> AsyncIterator[Pages]:
    pages = Pages()
    application = web.Application()
    application.router.add_get("/{path:.*}", pages.answer)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    pages.port = runner.addresses[0][1]
    yield pages
    await runner.cleanup()


async def test_a_good_page_gives_no_cause_for_complaint(pages: Pages, visit: "Visit") -> None:
    visitor = await visit(pages.show("console.log('hello'); fetch('/page.js'); new Image().src = 'data:,';"))
    await expect(visitor.page.get_by_role("heading", name="Here")).to_be_visible()
    assert await visitor.page.evaluate("document.title") == "A page"


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("console.error('oh', 7)", "console error: oh 7"),
        ("console.warn('hm')", "console warning: hm"),
        ("console.assert(false, 'no')", "console assert: no"),
        ("fetch('/missing')", "console error: Failed to load resource.*404"),
        ("throw new TypeError('uncaught')", "uncaught: TypeError: uncaught"),
        ("Promise.reject(new Error('unhandled'))", "uncaught: Error: unhandled"),
        (
            "document.body.setAttribute('style', 'color: red')",
            "policy: style-src-attr forbids inline",
        ),
        ("eval('1')", "policy: require-trusted-types-for forbids"),
        ("document.body.innerHTML = '<b>x</b>'", "policy: require-trusted-types-for forbids"),
        (
            "new Image().src = 'http://example.org/x.png'",
            "policy: img-src forbids http://example.org",
        ),
        ("alert('you')", "dialog alert: you"),
        ("confirm('sure?')", "dialog confirm: sure?"),
        ("location = 'http://example.org/'", "request to somebody else: http://example.org/"),
        ("open('http://example.org/')", "request to somebody else: http://example.org/"),
    ],
)
async def test_what_a_page_would_keep_to_itself_is_noticed(
    pages: Pages, visit: "Visit", script: str, complaint: str
) -> None:
    visitor = await visit(pages.show(f"addEventListener('load', () => {{ {script} }})"))
    await visitor.complains(complaint)
    # One thing may be noticed in several ways, and each is a complaint.
    visitor.may_complain.append(".")


async def test_what_a_test_expects_is_no_complaint(pages: Pages, visit: "Visit") -> None:
    visitor = await visit(pages.show("console.error('expected')"), None)
    visitor.may_complain.append("console error: expected")
    await visitor.open()


async def test_every_tab_is_watched(pages: Pages, browser: Browser) -> None:
    visitor = await Visitor.arrive(browser, pages.show("console.error('here')"))
    await visitor.new_tab()
    (complaint,) = await visitor.leave()
    assert complaint.startswith("console error: here (")
    assert complaint.endswith("/page.js:1)")


async def test_visitors_know_nothing_of_each_other(pages: Pages, visit: "Visit") -> None:
    one = await visit(pages.show("document.title = document.cookie || localStorage.x || 'nobody'"))
    await one.page.evaluate("() => { document.cookie = 'a=1'; localStorage.x = 'me'; }")
    other = await visit(pages)
    assert await other.page.title() == "nobody"
    tab = await one.new_tab()
    assert await tab.title() == "a=1"


async def test_a_visitor_has_a_language_colours_and_a_screen(pages: Pages, visit: "Visit") -> None:
    facts = """() => [
      navigator.language, matchMedia("(prefers-color-scheme: dark)").matches, innerWidth, innerHeight
    ]"""
    usual = await visit(pages.show())
    assert await usual.page.evaluate(facts) == ["en", False, DESK["width"], DESK["height"]]
    other = await visit(pages, locale="zh-CN", colours="dark", viewport=PHONE)
    assert await other.page.evaluate(facts) == ["zh-CN", True, PHONE["width"], PHONE["height"]]


async def test_without_a_network_nothing_is_reached(pages: Pages, visit: "Visit") -> None:
    visitor = await visit(pages.show())
    visitor.may_complain.append("ERR_INTERNET_DISCONNECTED")
    await visitor.lose_network()
    assert await visitor.page.evaluate("navigator.onLine") is False
    with pytest.raises(Error, match="Failed to fetch"):
        await visitor.page.evaluate("fetch('/')")
    await visitor.find_network()
    assert await visitor.page.evaluate("fetch('/').then((answer) => answer.status)") == 200


async def test_an_open_socket_falls_silent_without_a_network_and_goes_on_with_one(
    pages: Pages, visit: "Visit"
) -> None:
    """So it is not by losing the network that a test sees a socket break."""
    script = """
      const socket = new WebSocket(`ws://${location.host}/socket`);
      socket.onmessage = (message) => { document.title = message.data; };
      socket.onclose = (end) => { document.title = `closed with ${end.code}`; };
      socket.onopen = () => socket.send("hello");
      window.socket = socket;
    """
    visitor = await visit(pages.show(script))
    await expect(visitor.page).to_have_title("heard hello")
    await visitor.lose_network()
    await visitor.page.evaluate("socket.send('hello again')")
    with pytest.raises(AssertionError):
        await expect(visitor.page).to_have_title("heard hello again", timeout=300)
    await visitor.find_network()
    await expect(visitor.page).to_have_title("heard hello again")
