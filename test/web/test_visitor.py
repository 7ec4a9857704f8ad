"""What a visitor notices, on pages of a few lines."""

from typing import TYPE_CHECKING

import pytest
from playwright.async_api import Browser, Error, expect
from visitor import DESK, PHONE, Visitor

if TYPE_CHECKING:
    from conftest import Pages, Visit


async def test_a_good_page_gives_no_cause_for_complaint(pages: "Pages", visit: "Visit") -> None:
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
    pages: "Pages", visit: "Visit", script: str, complaint: str
) -> None:
    visitor = await visit(pages.show(f"addEventListener('load', () => {{ {script} }})"))
    await visitor.complains(complaint)
    # One thing may be noticed in several ways, and each is a complaint.
    visitor.may_complain.append(".")


async def test_what_a_test_expects_is_no_complaint(pages: "Pages", visit: "Visit") -> None:
    visitor = await visit(pages.show("console.error('expected')"), None)
    visitor.may_complain.append("console error: expected")
    await visitor.open()


async def test_every_tab_is_watched(pages: "Pages", browser: Browser) -> None:
    visitor = await Visitor.arrive(browser, pages.show("console.error('here')"))
    await visitor.new_tab()
    (complaint,) = await visitor.leave()
    assert complaint.startswith("console error: here (")
    assert complaint.endswith("/page.js:1)")


async def test_visitors_know_nothing_of_each_other(pages: "Pages", visit: "Visit") -> None:
    one = await visit(pages.show("document.title = document.cookie || localStorage.x || 'nobody'"))
    await one.page.evaluate("() => { document.cookie = 'a=1'; localStorage.x = 'me'; }")
    other = await visit(pages)
    assert await other.page.title() == "nobody"
    tab = await one.new_tab()
    assert await tab.title() == "a=1"


async def test_a_visitor_has_a_language_colours_and_a_screen(pages: "Pages", visit: "Visit") -> None:
    facts = """() => [
      navigator.language, matchMedia("(prefers-color-scheme: dark)").matches, innerWidth, innerHeight
    ]"""
    usual = await visit(pages.show())
    assert await usual.page.evaluate(facts) == ["en", False, DESK["width"], DESK["height"]]
    other = await visit(pages, locale="zh-CN", colours="dark", viewport=PHONE)
    assert await other.page.evaluate(facts) == ["zh-CN", True, PHONE["width"], PHONE["height"]]


async def test_without_a_network_nothing_is_reached(pages: "Pages", visit: "Visit") -> None:
    visitor = await visit(pages.show())
    visitor.may_complain.append("ERR_INTERNET_DISCONNECTED")
    await visitor.lose_network()
    assert await visitor.page.evaluate("navigator.onLine") is False
    with pytest.raises(Error, match="Failed to fetch"):
        await visitor.page.evaluate("fetch('/')")
    await visitor.find_network()
    assert await visitor.page.evaluate("fetch('/').then((answer) => answer.status)") == 200


async def test_an_open_socket_falls_silent_without_a_network_and_goes_on_with_one(
    pages: "Pages", visit: "Visit"
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
