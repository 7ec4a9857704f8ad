"""The chats of a person: found, named, kept and left, one beside another."""

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pages import ChatPage
from playwright.async_api import expect
from scenes import talk
from scripted import Upstream

if TYPE_CHECKING:
    from conftest import Visit

    from test.conftest import RunServer, Server


@pytest.fixture(scope="module")
def naming_server(run_server: "RunServer", all_upstream: Upstream) -> Iterator["Server"]:
    """Has a model find titles."""
    with run_server({"models": [all_upstream.model("scripted")]}) as server:
        yield server


async def begin(chat: ChatPage, upstream: Upstream, question: str, answer: str = "Yes.") -> None:
    """A chat with one turn."""
    await chat.new_chat()
    await chat.send(question)
    turn = await upstream.asked()
    assert turn.question == question
    await turn.answer(answer)
    await expect(chat.answers).to_have_count(1)
    await chat.ended()


async def test_chats_are_listed_by_day(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await expect(chat.nothing_listed).to_have_text("No chats yet.")
    await begin(chat, upstream, "today's")
    await expect(chat.days).to_have_text(["Today"])
    noon = datetime.datetime.now().replace(hour=12)
    # Of the same year a month has no number.
    is_same_year = (noon + datetime.timedelta(300)).year == noon.year
    month = f"{noon:%B}" if is_same_year else f"{noon:%B %Y}"
    for days, name in [(1, "Yesterday"), (5, "Last 7 days"), (300, month)]:
        await visitor.page.clock.set_fixed_time(noon + datetime.timedelta(days))
        await visitor.page.reload()
        await expect(chat.days).to_have_text([name])
    await begin(chat, upstream, "another one")
    await expect(chat.chats).to_have_text(["another one", "today's"])


async def test_a_model_names_the_chat(naming_server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(naming_server)
    chat = ChatPage(visitor.page)
    await begin(chat, upstream, "What holds the water back?")
    await (await upstream.asked()).answer("Gates")
    await expect(chat.chats).to_have_text(["Gates"])
    await expect(chat.title).to_have_text("Gates")
    await expect(visitor.page).to_have_title("Gates – Sluice")


async def test_a_search_finds_what_was_said(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await begin(chat, upstream, "About water", "It flows.")
    await begin(chat, upstream, "About sand", "It flows as well.")
    await visitor.page.keyboard.press("Control+k")
    await expect(chat.search).to_be_focused()
    await visitor.page.keyboard.type("water")
    await expect(chat.chats).to_have_text(["About water"])
    # The chat that is shown keeps its name, whether it was found or not.
    await talk(chat, upstream, "More", "More sand.")
    await expect(chat.title).to_have_text("About sand")
    await expect(visitor.page).to_have_title("About sand – Sluice")
    await chat.search.fill("flows WELL")
    await expect(chat.chats).to_have_text(["About sand"])
    await chat.search.fill("fire")
    await expect(chat.chats).to_have_count(0)
    await expect(chat.nothing_listed).to_have_text("Nothing found.")
    await visitor.page.keyboard.press("Escape")
    await expect(chat.search).to_have_value("")
    await expect(chat.chats).to_have_text(["About sand", "About water"])
    await chat.search.fill("water")
    await expect(chat.chats).to_have_text(["About water"])
    await visitor.page.keyboard.press("Tab")
    await expect(chat.chats.first).to_be_focused()
    await visitor.page.keyboard.press("Enter")
    await expect(chat.text_of(1)).to_have_text("It flows.")
    await expect(chat.title).to_have_text("About water")


async def test_escape_that_empties_the_search_stops_no_answer(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.send("Count")
    await upstream.say("one")
    await expect(chat.text_of(1)).to_have_text("one")
    await visitor.page.keyboard.press("Control+k")
    await visitor.page.keyboard.type("x")
    await visitor.page.keyboard.press("Escape")
    await expect(chat.search).to_have_value("")
    await upstream.say(" two")
    await expect(chat.text_of(1)).to_have_text("one two")
    await visitor.page.keyboard.press("Escape")
    await expect(chat.status_of(1)).to_have_text("Stopped.")


async def test_a_chat_is_renamed_everywhere(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await begin(chat, upstream, "an old name")
    other = ChatPage(await visitor.new_tab())
    await expect(other.chats).to_have_text(["an old name"])
    await chat.more("an old name", "Rename")
    name = visitor.page.get_by_role("dialog", name="Rename").get_by_label("New name")
    await expect(name).to_be_focused()
    await expect(name).to_have_value("an old name")
    await name.fill('  <b>"new"</b> ')
    await visitor.page.keyboard.press("Enter")
    await expect(chat.chats).to_have_text(['<b>"new"</b>'])
    await expect(chat.title).to_have_text('<b>"new"</b>')
    await expect(visitor.page).to_have_title('<b>"new"</b> – Sluice')
    await expect(other.chats).to_have_text(['<b>"new"</b>'])
    await expect(chat.button('More for <b>"new"</b>')).to_be_focused()
    await visitor.page.reload()
    await expect(chat.title).to_have_text('<b>"new"</b>')


async def test_a_chat_is_deleted_after_a_question(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await begin(chat, upstream, "kept")
    await begin(chat, upstream, "not kept")
    address = visitor.page.url
    await chat.more("not kept", "Delete")
    question = visitor.page.get_by_role("dialog", name="Delete “not kept”?")
    # What harms nothing is at hand.
    await expect(question.get_by_role("button", name="Cancel")).to_be_focused()
    await visitor.page.keyboard.press("Enter")
    await expect(question).to_have_count(0)
    await expect(chat.button("More for not kept")).to_be_focused()
    await expect(chat.chats).to_have_text(["not kept", "kept"])
    await chat.more("not kept", "Delete")
    await question.get_by_role("button", name="Delete").click()
    await expect(chat.chats).to_have_text(["kept"])
    await expect(chat.answers).to_have_count(0)
    assert visitor.page.url == server.http("/")
    visitor.may_complain.append("404")
    await visitor.page.goto(address)
    await expect(visitor.page.get_by_text("This chat does not exist, or is somebody else's.")).to_be_visible()


async def test_a_chat_is_exported(
    server: "Server", upstream: Upstream, visit: "Visit", tmp_path: Path
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await begin(chat, upstream, "What is a <sluice>?", "A *gate*.\n\n    code\n")
    async with visitor.page.expect_download() as download:
        await chat.more("What is a <sluice>?", "Export as Markdown")
    file = await download.value
    assert file.suggested_filename == "what-is-a-sluice.md"
    await file.save_as(tmp_path / "a.md")
    text = (tmp_path / "a.md").read_text()
    assert text.startswith("# What is a <sluice>?\n\n## User\n\n")
    assert "\n\nWhat is a <sluice>?\n\n## Assistant\n\n" in text
    assert text.endswith(", scripted*\n\nA *gate*.\n\n    code\n\n")
    async with visitor.page.expect_download() as download:
        await chat.more("What is a <sluice>?", "Export as JSON")
    file = await download.value
    assert file.suggested_filename == "what-is-a-sluice.json"
    await file.save_as(tmp_path / "a.json")
    said = json.loads((tmp_path / "a.json").read_text())["messages"]
    assert [(it["role"], it["content"]) for it in said] == [
        ("user", "What is a <sluice>?"),
        ("assistant", "A *gate*.\n\n    code\n"),
    ]


async def test_a_menu_takes_no_mouse_and_gives_the_keyboard_back(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    keys = visitor.page.keyboard
    await begin(chat, upstream, "one")
    await chat.chats.first.focus()
    await keys.press("Tab")
    await expect(chat.button("More for one")).to_be_focused()
    await keys.press("Enter")
    entries = visitor.page.get_by_role("menuitem")
    await expect(entries).to_have_text(["Rename", "Export as Markdown", "Export as JSON", "Delete"])
    for key, at in [("", 0), ("ArrowDown", 1), ("End", 3), ("ArrowDown", 0), ("ArrowUp", 3), ("Home", 0)]:
        if key:
            await keys.press(key)
        await expect(entries.nth(at)).to_be_focused()
    await keys.press("Escape")
    await expect(entries).to_have_count(0)
    await expect(chat.button("More for one")).to_be_focused()
    await keys.press("Enter")
    await keys.press("Enter")
    dialog = visitor.page.get_by_role("dialog", name="Rename")
    await expect(dialog.get_by_role("textbox")).to_be_focused()
    # It stays within.
    for _ in range(6):
        await keys.press("Tab")
        assert await visitor.page.evaluate(
            "document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
        )
    await keys.press("Escape")
    await expect(dialog).to_have_count(0)
    await expect(chat.button("More for one")).to_be_focused()


async def test_a_menu_stays_while_the_list_changes(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await begin(chat, upstream, "one")
    other = ChatPage(await visitor.new_tab())
    await visitor.page.bring_to_front()
    await chat.button("More for one").click()
    entries = visitor.page.get_by_role("menuitem")
    await begin(other, upstream, "two")
    await expect(other.chats).to_have_text(["two", "one"])
    await other.more("one", "Rename")
    await other.page.get_by_role("dialog").get_by_role("textbox").fill("the first")
    await other.page.keyboard.press("Enter")
    # The name is another one already, and nothing has moved.
    await expect(chat.chats).to_have_text(["the first"])
    await expect(entries).to_have_count(4)
    await visitor.page.keyboard.press("Escape")
    await expect(chat.chats).to_have_text(["two", "the first"])
    await expect(chat.button("More for the first")).to_be_focused()


async def test_the_address_says_which_chat_is_shown(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    page = visitor.page
    chat = ChatPage(page)
    await begin(chat, upstream, "one", "First.")
    one = page.url
    await begin(chat, upstream, "two", "Second.")
    two = page.url
    assert len({one, two, server.http("/")}) == 3
    await page.go_back()
    await expect(chat.text_of(1)).to_have_text("First.")
    assert page.url == one
    await page.go_forward()
    await expect(chat.text_of(1)).to_have_text("Second.")
    await page.keyboard.press("Control+Shift+O")
    await expect(chat.answers).to_have_count(0)
    await expect(chat.message).to_be_focused()
    assert page.url == server.http("/")
    await expect(page).to_have_title("Sluice")
    await page.go_back()
    await expect(chat.text_of(1)).to_have_text("Second.")
    await expect(chat.chats.first).to_have_attribute("aria-current", "page")
    await expect(chat.chats.last).not_to_have_attribute("aria-current", "page")
    # In another tab of its own, by the browser's own means.
    async with visitor.context.expect_page() as opened:
        await chat.chats.last.click(modifiers=["ControlOrMeta"])
    other = ChatPage(await opened.value)
    await expect(other.text_of(1)).to_have_text("First.")
    await expect(chat.text_of(1)).to_have_text("Second.")
    assert page.url == two


async def test_two_chats_answer_at_the_same_time(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.send("one")
    first = await upstream.asked()
    await first.say("First")
    await expect(chat.text_of(1)).to_have_text("First")
    await chat.new_chat()
    await expect(chat.button("Stop")).to_be_hidden()
    await chat.send("two")
    second = await upstream.asked()
    await second.say("Second")
    await expect(chat.text_of(1)).to_have_text("Second")
    await expect(chat.running_chats).to_have_text(["two", "one"])
    await first.answer(" is done.")
    await expect(chat.running_chats).to_have_text(["two"])
    await expect(chat.text_of(1)).to_have_text("Second")
    await chat.chats.filter(has_text="one").click()
    await expect(chat.text_of(1)).to_have_text("First is done.")
    await second.answer(" is done.")
    await expect(chat.running_chats).to_have_count(0)
    await chat.chats.filter(has_text="two").click()
    await expect(chat.text_of(1)).to_have_text("Second is done.")
    await chat.ended()


async def test_who_leaves_a_chat_before_it_is_begun_finds_its_answer(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    page = visitor.page
    chat = ChatPage(page)
    await begin(chat, upstream, "one", "First.")
    await chat.new_chat()
    gate = await visitor.hold("**/v1/conversations")
    await chat.send("two")
    await gate.reached()
    await chat.chats.filter(has_text="one").click()
    await expect(chat.text_of(1)).to_have_text("First.")
    gate.open()
    second = await upstream.asked()
    await second.say("Second")
    await chat.chats.filter(has_text="two").click()
    await expect(chat.text_of(1)).to_have_text("Second")
    await second.answer(", and more.")
    await expect(chat.text_of(1)).to_have_text("Second, and more.")
    await chat.ended()


async def test_what_is_being_written_stays_in_its_chat(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await begin(chat, upstream, "one", "First.")
    await chat.message.fill("for the first")
    await chat.new_chat()
    await expect(chat.message).to_have_value("")
    await chat.message.fill("for a new one")
    await chat.chats.first.click()
    await expect(chat.message).to_have_value("for the first")
    await chat.new_chat()
    await expect(chat.message).to_have_value("for a new one")
    await visitor.page.keyboard.press("Enter")
    turn = await upstream.asked()
    assert turn.question == "for a new one"
    await turn.answer("Second.")
    await expect(chat.text_of(1)).to_have_text("Second.")
    await visitor.page.go_back()
    await expect(chat.message).to_have_value("for the first")


async def test_many_chats_are_read_as_one_scrolls(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.choose("echo")
    await chat.ask("the oldest")
    made = """async (count) => {
      const headers = {
        "Authorization": `Bearer ${JSON.parse(localStorage["sluice.identity"]).access}`,
        "Content-Type": "application/json",
      };
      for (let n = 1; n <= count; n += 1) {
        const items = [{type: "message", role: "user", content: [{type: "input_text", text: `chat ${n}`}]}];
        await fetch("/v1/conversations", {method: "POST", headers, body: JSON.stringify({items})});
      }
    }"""
    await visitor.page.evaluate(made, 70)
    await visitor.page.reload()
    await expect(chat.chats).to_have_count(50)
    await expect(chat.title).to_have_text("the oldest")
    await chat.chats.last.scroll_into_view_if_needed()
    await expect(chat.chats).to_have_count(71)
    assert await chat.chats.all_inner_texts() == [*(f"chat {n}" for n in range(70, 0, -1)), "the oldest"]
    # They stay when the list changes.
    await chat.ask("not the oldest any more")
    await expect(chat.chats.first).to_have_text("the oldest")
    await expect(chat.chats).to_have_count(71)
    # Where there is room for more than a page, more is read at once.
    await visitor.page.set_viewport_size({"width": 1280, "height": 4000})
    await visitor.page.reload()
    await expect(chat.chats).to_have_count(71)
