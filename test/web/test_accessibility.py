"""The page for those who do not see it, or not well, or use no mouse. What axe finds, first on pages of a few
lines; and what it cannot know."""

import re
from typing import TYPE_CHECKING

import pytest
from accessibility import accessible
from pages import ChatPage
from playwright.async_api import Page, ViewportSize, expect
from scenes import talk
from visitor import DESK, PHONE, Colours

if TYPE_CHECKING:
    from conftest import Pages, Visit
    from scripted import Upstream

    from test.conftest import Server

ANSWER = """\
A **sluice** is a `gate`, see [there](https://example.org/a).

| gate | flow |
| --- | --- |
| open | 1.4 m³/s |

```python
@cache
def flow(width: float) -> float:
    # Of water.
    return 0.6 * width  # m³/s
```

> Quoted

- [x] done
"""


async def test_a_good_page_is_accessible(pages: "Pages", visit: "Visit") -> None:
    visitor = await visit(pages.show(body="<h1>Here</h1><button>Send</button>"))
    await accessible(visitor.page)


async def test_what_is_wrong_is_listed(pages: "Pages", visit: "Visit") -> None:
    body = '<h1>Here</h1><button id="mute"></button><nav><input id="nameless"></nav>'
    visitor = await visit(pages.show(body=body))
    with pytest.raises(AssertionError) as told:
        await accessible(visitor.page)
    assert "critical: Buttons must have discernible text (button-name, https://" in str(told.value)
    assert "#mute\n        Fix any of the following:" in str(told.value)
    assert "#nameless" in str(told.value)
    with pytest.raises(AssertionError) as told:
        await accessible(visitor.page, "nav")
    assert "#mute" not in str(told.value)


async def test_colours_that_nobody_can_read_are_told(pages: "Pages", visit: "Visit") -> None:
    visitor = await visit(pages.show("document.querySelector('h1').style.color = '#eee'"))
    with pytest.raises(AssertionError, match="color-contrast"):
        await accessible(visitor.page)


_FAINTEST = """() => {
  for (const animation of document.getAnimations()) {
    animation.pause();
    animation.currentTime = animation.effect.getTiming().duration;
  }
}"""
"""What comes and goes is at its faintest."""


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


async def ask(page: Page, upstream: "Upstream") -> ChatPage:
    """A question, thoughts, and an answer with all there is in Markdown. Returns when all of it is shown."""
    chat = ChatPage(page)
    await expect(chat.model).to_have_text("scripted")
    await chat.send("What is a sluice?")
    await upstream.think("Hm. ", "Water?")
    await upstream.answer(ANSWER)
    await chat.ended()
    await expect(chat.text_of(-1).locator("code .k").first).to_be_attached()
    await expect(chat.text_of(-1).locator(".growing")).to_have_count(0)
    return chat


@pytest.mark.parametrize("colours", ["light", "dark"])
async def test_a_chat_is_accessible_at_every_step(
    server: "Server", upstream: "Upstream", visit: "Visit", colours: Colours
) -> None:
    page = (await visit(server, colours=colours)).page
    chat = ChatPage(page)
    await expect(chat.model).to_have_text("scripted")
    await accessible(page)
    await chat.send("What is a sluice?")
    await page.evaluate(_FAINTEST)
    await accessible(page)
    await upstream.think("Hm. ", "Water?")
    await expect(chat.thinking).to_contain_text("Water?")
    await page.evaluate(_FAINTEST)
    await accessible(page)
    await upstream.say(ANSWER, "And so")
    await expect(chat.text_of(1)).to_contain_text("And so")
    await accessible(page)
    await upstream.finish()
    await chat.ended()
    await expect(chat.text_of(1).locator("code .k").first).to_be_attached()
    await accessible(page)
    await chat.thinking.locator("summary").click()
    await accessible(page)
    await chat.send("Fail")
    await upstream.refuse(500, "out of order")
    await expect(chat.problems).to_have_count(1)
    await accessible(page)
    await chat.send("Stop")
    await upstream.say("so far")
    await expect(chat.answers.last).to_contain_text("so far")
    await chat.send("Wait")
    await expect(chat.waiting).to_have_count(1)
    await accessible(page)


@pytest.mark.parametrize("colours", ["light", "dark"])
async def test_what_opens_over_the_page_is_accessible(
    server: "Server", upstream: "Upstream", visit: "Visit", colours: Colours
) -> None:
    page = (await visit(server, colours=colours)).page
    chat = await ask(page, upstream)
    title = await chat.chats.first.inner_text()
    await chat.model.click()
    await expect(page.get_by_role("dialog", name="Choose a model")).to_be_visible()
    await accessible(page)
    await page.keyboard.press("Escape")
    await page.get_by_role("link", name=title).hover()
    await chat.button(f"More for {title}").click()
    await expect(page.get_by_role("menu")).to_be_visible()
    await accessible(page)
    await page.get_by_role("menuitem", name="Delete").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    await accessible(page)
    await page.keyboard.press("Escape")
    await chat.more(title, "Rename")
    await accessible(page)
    await page.keyboard.press("Escape")
    await chat.button("Settings").click()
    await expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
    await accessible(page)
    await page.keyboard.press("Escape")
    await chat.button("Sign in").click()
    await accessible(page)
    await page.get_by_role("button", name="No account yet? Sign up").click()
    await accessible(page)
    await page.keyboard.press("Escape")
    await chat.questions.last.hover()
    await chat.button("Edit the message").click()
    await accessible(page)


async def test_answers_side_by_side_are_accessible(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    page = (await visit(server)).page
    chat = ChatPage(page)
    await chat.choose("scripted", "other")
    await chat.send("What is a sluice?")
    await (await upstream.asked("scripted")).answer(ANSWER)
    other = await upstream.asked("other")
    await other.say("A gate")
    await expect(chat.answers).to_have_count(2)
    await accessible(page)
    await other.finish()
    await chat.ended()
    await accessible(page)


@pytest.mark.parametrize("colours", ["light", "dark"])
async def test_a_phone_is_accessible(
    server: "Server", upstream: "Upstream", visit: "Visit", colours: Colours
) -> None:
    page = (await visit(server, colours=colours, viewport=PHONE)).page
    chat = await ask(page, upstream)
    await accessible(page)
    await chat.open_menu()
    await expect(chat.chats).to_be_visible()
    await accessible(page)


@pytest.mark.parametrize("colours", ["light", "dark"])
async def test_signing_in_is_accessible(closed_server: "Server", visit: "Visit", colours: Colours) -> None:
    visitor = await visit(closed_server, colours=colours)
    visitor.may_complain.append("status of 401")
    page = visitor.page
    await accessible(page)
    await page.get_by_label("User name").fill("nobody")
    await page.get_by_label("Password").fill("a password that is wrong")
    await page.get_by_role("button", name="Sign in", exact=True).click()
    await expect(page.get_by_role("alert")).to_be_visible()
    await accessible(page)


# ── what axe cannot know ─────────────────────────────────────────────────────────────────────────


_FOCUS = """() => {
  const at = document.activeElement;
  if (at === document.body) return null;
  const { outlineStyle, outlineWidth } = getComputedStyle(at);
  const around = at.closest(".composer, .search");
  const seen = (outlineStyle !== "none" && outlineWidth !== "0px") || around?.matches(":focus-within");
  const box = at.getBoundingClientRect();
  const isInside = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  const name = at.getAttribute("aria-label") || at.labels?.[0]?.textContent || at.textContent.trim();
  return { name, seen: Boolean(seen) && isInside };
}"""


async def tab_through(page: Page) -> list[str]:
    """What the Tab key comes to, in order. Each has a name, and is seen to have the focus."""
    names: list[str] = []
    await page.get_by_role("link", name="New chat").focus()
    await page.keyboard.press("Shift+Tab")
    while (focus := await page.evaluate(_FOCUS)) is not None:
        assert focus["name"], await page.evaluate("document.activeElement.outerHTML")
        assert focus["seen"], focus["name"]
        names.append(focus["name"])
        assert len(names) < 100, names
        await page.keyboard.press("Tab")
    return names


async def test_every_control_is_reached_by_keyboard_in_the_order_of_reading(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    page = (await visit(server)).page
    title = "What is a sluice?"
    chat = await ask(page, upstream)
    await expect(chat.chats).to_have_text([title])
    names = await tab_through(page)
    table, code = next(it for it in names if "flow" in it), next(it for it in names if "@cache" in it)
    thoughts = next(it for it in names if re.fullmatch(r"Thought for \d+ s", it))
    assert names == [
        *("To the message field", "New chat", "Search chats", title, f"More for {title}", "Sign in"),
        *("Edit the message", thoughts, "there", table, "Copy the code", code),
        *("Copy the answer", "Answer again"),
        *("Message", "Attach a file", "Settings", "Choose a model: scripted"),
    ]


async def test_focus_is_never_lost(server: "Server", upstream: "Upstream", visit: "Visit") -> None:
    page = (await visit(server)).page
    chat = await ask(page, upstream)
    title = await chat.chats.first.inner_text()
    for opener, name in ((chat.button("Settings"), "Settings"), (chat.button("Sign in"), "Sign in")):
        await opener.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog", name=name)).to_be_visible()
        assert await page.evaluate("document.activeElement.closest('dialog') !== null")
        await page.keyboard.press("Escape")
        await expect(opener).to_be_focused()
    more = chat.button(f"More for {title}")
    await more.focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("menuitem", name="Rename")).to_be_focused()
    await page.keyboard.press("ArrowUp")
    await expect(page.get_by_role("menuitem", name="Delete")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(more).to_be_focused()
    for entry in ("Rename", "Delete"):
        await more.focus()
        await page.keyboard.press("Enter")
        await page.get_by_role("menuitem", name=entry).press("Enter")
        await expect(page.get_by_role("dialog")).to_be_visible()
        assert await page.evaluate("document.activeElement.closest('dialog') !== null")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(more).to_be_focused()
    # A chat that is deleted takes its button along.
    await page.keyboard.press("Enter")
    await page.get_by_role("menuitem", name="Delete").press("Enter")
    await page.get_by_role("button", name="Delete", exact=True).press("Enter")
    await expect(chat.chats).to_have_count(0)
    await expect(chat.message).to_be_focused()


async def test_focus_stays_at_the_buttons_of_an_answer(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    page = (await visit(server)).page
    chat = ChatPage(page)
    await chat.send("What is a sluice?")
    await upstream.say("A gate")
    await expect(chat.text_of(1)).to_have_text("A gate")
    await page.get_by_role("button", name="Stop scripted").focus()
    await page.keyboard.press("Enter")
    await chat.ended()
    await expect(chat.button("Copy the answer")).to_be_focused()
    await chat.button("Edit the message").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("textbox", name="Edit the message")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(chat.button("Edit the message")).to_be_focused()
    await chat.button("Answer again").focus()
    await page.keyboard.press("Enter")
    await upstream.answer("A gate for water")
    await chat.ended()
    # Tab goes on from there.
    await expect(page.locator(".turn:focus")).to_have_count(1)
    await page.keyboard.press("Tab")
    await expect(chat.button("Edit the message")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("End")
    await page.keyboard.type(" Say!")
    await page.keyboard.press("Enter")
    await upstream.answer("A gate for water!")
    await chat.ended()
    await expect(page.locator(".turn:focus")).to_have_count(1)


async def test_focus_is_in_the_field_after_sending_and_after_stopping(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    page = (await visit(server)).page
    chat = ChatPage(page)
    await chat.message.fill("What is a sluice?")
    await chat.button("Send").focus()
    await page.keyboard.press("Enter")
    await expect(chat.message).to_be_focused()
    await upstream.say("A gate")
    await expect(chat.text_of(1)).to_have_text("A gate")
    await chat.button("Stop").focus()
    await page.keyboard.press("Enter")
    await chat.ended()
    await expect(chat.message).to_be_focused()


_HEARD = """() => {
  window.heard = [];
  const isLive = (node) => (node.nodeType === 1 ? node : node.parentElement)
    ?.closest("[aria-live], [role=status], [role=alert], [role=log]");
  new MutationObserver((records) => {
    for (const { target } of records) {
      const live = isLive(target);
      if (live && live.textContent.trim()) window.heard.push(live.textContent.trim());
    }
  }).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


async def test_it_is_said_that_an_answer_is_complete_and_not_each_word_of_it(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    page = (await visit(server)).page
    chat = ChatPage(page)
    await expect(chat.message).to_be_visible()
    await page.evaluate(_HEARD)
    await chat.send("What is a sluice?")
    for word in ("A ", "gate ", "for ", "water"):
        await upstream.say(word)
        await expect(chat.text_of(1)).to_contain_text(word.strip())
    await upstream.finish()
    await chat.ended()
    heard = await page.evaluate("window.heard")
    assert not [words for words in heard if "gate" in words]
    assert heard[-1] == "The answer is complete."
    # Two that are complete are said to be, one after the other.
    await page.evaluate("window.heard = []")
    await talk(chat, upstream, "And again?", "The same")
    assert "The answer is complete." in await page.evaluate("window.heard")


async def test_nothing_is_cut_off_at_twice_the_size(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    half = ViewportSize(width=DESK["width"] // 2, height=DESK["height"] // 2)
    page = (await visit(server, viewport=half)).page
    chat = await ask(page, upstream)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await expect(chat.message).to_be_in_viewport(ratio=1)
    await expect(chat.button("Send")).to_be_in_viewport(ratio=1)
    await chat.button("Settings").click()
    save = page.get_by_role("button", name="Save")
    await save.scroll_into_view_if_needed()
    await expect(save).to_be_in_viewport(ratio=1)
    await page.keyboard.press("Escape")
    await chat.open_menu()
    await expect(chat.chats.first).to_be_in_viewport()
    await expect(chat.button("Sign in")).to_be_in_viewport(ratio=1)


async def test_who_wants_nothing_to_move_sees_nothing_move(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    page = (await visit(server, viewport=PHONE)).page
    await page.emulate_media(reduced_motion="reduce")
    chat = ChatPage(page)
    await chat.send("What is a sluice?")
    await upstream.think("Hm. ")
    await expect(chat.thinking).to_contain_text("Hm.")
    await chat.open_menu()
    assert await page.evaluate("document.getAnimations().length") == 0
    await page.emulate_media(reduced_motion="no-preference")
    assert await page.evaluate("document.getAnimations().length") > 0
