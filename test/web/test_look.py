"""How the page looks on a phone, on a wide screen, in the dark, in Chinese, and without a storage."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from accessibility import accessible
from pages import ChatPage
from playwright.async_api import Locator, Page, ViewportSize, expect
from scenes import talk
from scripted import Upstream
from visitor import PHONE, Colours

if TYPE_CHECKING:
    from conftest import Visit

    from test.conftest import RunServer, Server

WIDE = ViewportSize(width=2560, height=1300)
LONG_WORD = "x" * 300
BROAD = f"""\
{LONG_WORD} and `{LONG_WORD}` and https://example.org/{LONG_WORD}

| {" | ".join(f"column {n}" for n in range(20))} |
|{"---|" * 20}
| {" | ".join(LONG_WORD for _ in range(20))} |

```
{LONG_WORD} {LONG_WORD}
```

> - {LONG_WORD}
"""

_FITS = """() => document.documentElement.scrollWidth <= innerWidth
  && [...document.querySelectorAll(".chat, .thread, .turn, .composer, .bottom, .top")].every((it) =>
    it.getBoundingClientRect().right <= innerWidth + 0.5 && it.scrollWidth <= innerWidth)"""
_WORDS = """() => {
  const shown = [...document.querySelectorAll("body *")].filter((it) => it.checkVisibility());
  const named = ["aria-label", "title", "placeholder", "alt"];
  const names = shown.flatMap((it) => named.map((name) => it.getAttribute(name)));
  const texts = shown.flatMap((it) => [...it.childNodes]).filter((it) => it.nodeType === 3);
  return [...names, ...texts.map((it) => it.data)].filter(Boolean);
}"""


@pytest.fixture(scope="module")
def forgetful_server(run_server: "RunServer") -> Iterator["Server"]:
    models = [{"name": "echo", "generator": "echo", "options": {"interval": "0"}}]
    with run_server({"models": models, "storage": {"url": ""}}) as server:
        yield server


async def boxes(places: Locator) -> list[dict[str, float]]:
    """Where they are, all at the same moment."""
    found: list[dict[str, float]] = await places.evaluate_all(
        "(all) => all.map((it) => it.getBoundingClientRect().toJSON())"
    )
    return found


async def fits(page: Page) -> bool:
    """Nothing of the page lies beside the window."""
    return bool(await page.evaluate(_FITS))


async def test_nothing_is_too_broad_for_a_phone(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server, viewport=PHONE)
    chat = ChatPage(visitor.page)
    await expect(chat.model).to_have_text("scripted")
    assert await fits(visitor.page)
    await chat.message.fill(LONG_WORD * 20)
    assert await fits(visitor.page)
    await chat.button("Send").click()
    turn = await upstream.asked()
    await turn.say(BROAD)
    await expect(chat.text_of(1)).to_contain_text("column 19")
    assert await fits(visitor.page)
    await turn.finish()
    await chat.ended()
    await expect(chat.text_of(1).get_by_role("table")).to_be_visible()
    await expect(chat.text_of(1).locator(".growing")).to_have_count(0)
    assert await fits(visitor.page)
    await chat.choose("scripted", "other")
    await chat.send("Both?")
    for model in ("scripted", "other"):
        await (await upstream.asked(model)).answer("Yes.")
    await expect(chat.answers).to_have_count(3)
    await chat.ended()
    assert await fits(visitor.page)
    # One sees that there is another answer, and can get there.
    await expect(chat.answer_of("other")).to_be_in_viewport()
    await chat.answer_of("other").scroll_into_view_if_needed()
    await expect(chat.text_in(chat.answer_of("other"))).to_be_in_viewport(ratio=1)
    await accessible(visitor.page)
    # What one writes with stays in sight, with a keyboard on half of the screen, too.
    await visitor.page.set_viewport_size({"width": 320, "height": 320})
    await chat.message.fill("line\n" * 30)
    await expect(chat.button("Send")).to_be_in_viewport(ratio=1)
    assert await fits(visitor.page)


async def test_the_menu_of_a_phone_opens_and_closes(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server, viewport=PHONE)
    page = visitor.page
    chat = ChatPage(page)
    await talk(chat, upstream, "one", "First.")
    await expect(chat.chats).to_have_count(0)
    await expect(chat.button("Menu")).to_have_attribute("aria-expanded", "false")
    await chat.open_menu()
    await expect(chat.button("Menu")).to_have_attribute("aria-expanded", "true")
    await expect(chat.chats).to_have_text(["one"])
    await expect(chat.button("Close the menu")).to_be_focused()
    assert await fits(page)
    await accessible(page)
    await page.keyboard.press("Escape")
    await expect(chat.chats).to_have_count(0)
    await expect(chat.button("Menu")).to_be_focused()
    await chat.open_menu()
    await chat.button("Close the menu").click()
    await expect(chat.chats).to_have_count(0)
    # Beside it, it is closed, too.
    await chat.open_menu()
    await expect(chat.chats).to_have_count(1)
    await page.mouse.click(310, 400)
    await expect(chat.chats).to_have_count(0)
    await chat.open_menu()
    await page.get_by_role("link", name="New chat").click()
    await expect(chat.chats).to_have_count(0)
    await expect(chat.answers).to_have_count(0)
    await page.keyboard.press("Control+k")
    await expect(chat.search).to_be_focused()
    await chat.chats.click()
    await expect(chat.chats).to_have_count(0)
    await expect(chat.text_of(1)).to_have_text("First.")


async def test_dialogs_and_menus_fit_on_a_phone(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server, viewport=PHONE)
    page = visitor.page
    chat = ChatPage(page)
    await talk(chat, upstream, "a question", "Yes.")
    await chat.button("Settings").click()
    await expect(chat.setting("Temperature")).to_be_in_viewport(ratio=1)
    await expect(chat.button("Save")).to_be_in_viewport(ratio=1)
    assert await fits(page)
    await page.keyboard.press("Escape")
    await chat.model.click()
    rows = page.get_by_role("dialog", name="Choose a model").get_by_role("checkbox")
    await expect(rows).to_have_count(5)
    for row in await rows.all():
        await expect(row).to_be_in_viewport(ratio=1)
    await page.keyboard.press("Escape")
    await expect(rows).to_have_count(0)
    await chat.open_menu()
    await chat.button("More for a question").click()
    await expect(page.get_by_role("menuitem")).to_have_count(4)
    for entry in await page.get_by_role("menuitem").all():
        await expect(entry).to_be_in_viewport(ratio=1)
    await page.get_by_role("menuitem", name="Delete").click()
    await expect(page.get_by_role("dialog").get_by_role("button", name="Delete")).to_be_in_viewport(ratio=1)
    assert await fits(page)


async def test_a_wide_screen_keeps_lines_short(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server, viewport=WIDE)
    chat = ChatPage(visitor.page)
    await talk(chat, upstream, "a question", "word " * 500)
    await expect(chat.text_of(1).locator(".growing")).to_have_count(0)
    (composer,) = await boxes(visitor.page.locator(".composer"))
    (answer,) = await boxes(chat.text_of(1))
    assert answer["width"] < 800
    # One stands over the other, in the middle of what the list of chats leaves.
    assert abs(answer["x"] - composer["x"]) < 2
    middle = (272 + WIDE["width"]) / 2
    assert abs(answer["x"] + answer["width"] / 2 - middle) < 20
    await chat.choose("scripted", "other")
    await chat.send("Both?")
    for model in ("scripted", "other"):
        await (await upstream.asked(model)).answer("word " * 500)
    await chat.ended()
    await expect(chat.text_in(chat.answers).locator(".growing")).to_have_count(0)
    _, left, right = await boxes(chat.answers)
    assert left["y"] == right["y"]
    assert min(left["width"], right["width"]) > 600
    assert await fits(visitor.page)


@pytest.mark.parametrize("colours", ["light", "dark"])
async def test_it_can_be_read_in_the_light_and_in_the_dark(
    server: "Server", upstream: Upstream, visit: "Visit", colours: Colours
) -> None:
    visitor = await visit(server, colours=colours)
    page = visitor.page
    chat = ChatPage(page)
    await expect(chat.model).to_have_text("scripted")
    await accessible(page)
    brightness = """() => {
      const numbers = (name) => getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3).map(Number);
      return ["backgroundColor", "color"].map((name) => numbers(name).reduce((sum, it) => sum + it) / 765);
    }"""
    paper, ink = await page.evaluate(brightness)
    assert (paper > 0.8 and ink < 0.2) if colours == "light" else (paper < 0.2 and ink > 0.8)
    await chat.choose("scripted", "other")
    await chat.send("a question")
    one, two = await upstream.asked("scripted"), await upstream.asked("other")
    await one.think("Hm.")
    await one.say("A `word`, [a link](https://example.org), ~~not this~~.\n\n```python\nx = 'y'  # so\n```\n")
    await expect(chat.text_of(1)).to_contain_text("x =")
    await two.refuse(503, "overloaded")
    await expect(chat.answer_of("other").get_by_role("alert")).to_be_visible()
    await accessible(page)
    await one.finish()
    await chat.ended()
    await chat.answer(1).get_by_role("group").locator("summary").click()
    await expect(chat.text_of(1).locator(".growing")).to_have_count(0)
    await accessible(page)
    await chat.button("Settings").click()
    await expect(chat.setting("Temperature")).to_be_visible()
    await accessible(page)
    await page.keyboard.press("Escape")
    await chat.model.click()
    await expect(page.get_by_role("dialog", name="Choose a model")).to_be_visible()
    await accessible(page)
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await chat.button("Sign in").click()
    await expect(page.get_by_label("Password")).to_be_visible()
    await accessible(page)


async def test_in_chinese_all_of_it_is_chinese(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server, locale="zh-CN")
    page = visitor.page
    await expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    await expect(page.get_by_role("heading", name="有什么可以帮你？")).to_be_visible()
    assert await english(page) == []
    message = page.get_by_role("textbox", name="消息", exact=True)
    await message.fill("你好")
    await page.keyboard.press("Enter")
    turn = await upstream.asked()
    await turn.think("想")
    await expect(page.locator("summary")).to_have_text("正在思考…")
    assert await english(page) == []
    await turn.say("好")
    await expect(page.locator("summary")).to_have_text(re.compile(r"^思考了 \d+ 秒$"))
    await page.keyboard.press("Escape")
    await expect(page.get_by_text("已停止。")).to_be_visible()
    await page.get_by_role("button", name="重新回答").click()
    await (await upstream.asked()).fail("坏了")
    problem = page.get_by_role("article").get_by_role("alert")
    await expect(problem).to_be_visible()
    assert await english(page) == []
    await page.get_by_role("button", name="设置", exact=True).click()
    await expect(page.get_by_role("dialog", name="设置")).to_be_visible()
    assert await english(page) == []
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="选择模型").click()
    await expect(page.get_by_role("dialog", name="选择模型")).to_be_visible()
    assert await english(page) == []
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await page.get_by_role("button", name="登录", exact=True).click()
    await page.get_by_role("button", name="还没有账户？注册").click()
    assert await english(page) == []


async def english(page: Page) -> list[str]:
    """What is not Chinese of what is shown, and of what is said of buttons and fields."""
    words: list[str] = await page.evaluate(_WORDS)
    known = r"Sluice|scripted|other|echo|thinker|slow|token|Enter|Shift|Esc|Ctrl.K|API"
    return [word for word in words if re.search("[A-Za-z]", re.sub(known, "", word))]


async def test_a_server_that_keeps_nothing_says_so(forgetful_server: "Server", visit: "Visit") -> None:
    visitor = await visit(forgetful_server, None)
    visitor.may_complain.append("status of 404.*/api/v1/auth")
    await visitor.open()
    await expect(visitor.page.get_by_role("main").get_by_role("paragraph")).to_have_text(
        "This server keeps nothing, and this page needs what was said. "
        "Set storage.url, or talk to /ws with wscat."
    )
    await accessible(visitor.page)
