"""What a person does in one chat: ask, stop, ask again, say it otherwise, and see how it stands."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest
from pages import ChatPage
from playwright.async_api import expect
from scenes import talk
from scripted import Turn, Upstream

if TYPE_CHECKING:
    from conftest import Visit

    from test.conftest import RunServer, Server

JSON = dict[str, Any]


AHEAD = ["…", "1 message is ahead of yours", "2 messages are ahead of yours"]


def served(run_server: "RunServer", models: list[JSON], **sections: JSON) -> AbstractContextManager["Server"]:
    """A server of a test's own, without titles, whose questions a scripted model would hear."""
    return run_server({"models": models, "storage": {"titles": False}, **sections})


@pytest.fixture
def server_of_one(run_server: "RunServer", all_upstream: Upstream) -> Iterator["Server"]:
    """Its model answers one message at a time."""
    with served(run_server, [all_upstream.model("scripted", slots=1)]) as server:
        yield server


@pytest.fixture
def endless_server(run_server: "RunServer") -> Iterator["Server"]:
    """Its model says more than a test has time for."""
    options = {"chunks": 10_000, "interval": "50ms"}
    with served(run_server, [{"name": "slow", "generator": "echo", "options": options}]) as server:
        yield server


@pytest.fixture
def small_server(run_server: "RunServer", all_upstream: Upstream) -> Iterator["Server"]:
    session = {"max_message_bytes": 65536}
    with served(run_server, [all_upstream.model("scripted")], session=session) as server:
        yield server


@pytest.fixture
def changing_server(run_server: "RunServer", all_upstream: Upstream) -> Iterator["Server"]:
    with served(run_server, [all_upstream.model(name) for name in ("scripted", "other")]) as server:
        yield server


@pytest.fixture
def strict_server(run_server: "RunServer", all_upstream: Upstream) -> Iterator["Server"]:
    """It takes three requests a minute: a guest, a chat and a message."""
    limits = {"user": {"requests": 3}}
    with served(run_server, [all_upstream.model("scripted")], limits=limits) as server:
        yield server


def said(turn: Turn) -> list[tuple[str, str]]:
    """What a model was told, in order."""
    return [(message["role"], message["content"]) for message in turn.body["messages"]]


# ── a real model ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.real_model
async def test_a_guest_asks_a_real_model_and_finds_the_answer_again(
    real_server: "Server", visit: "Visit"
) -> None:
    visitor = await visit(real_server)
    chat = ChatPage(visitor.page)
    await expect(chat.model).to_have_text("smollm2")
    await chat.ask("What is the capital of France?")
    await expect(chat.text_of(1)).to_contain_text("Paris")
    await expect(chat.who_answered(1)).to_have_text("smollm2")
    await expect(chat.facts_of(1)).to_have_text(re.compile(r"^\d+ tokens( · [\d.,]+ tokens/s)?$"))
    await expect(chat.chats).to_have_text(["What is the capital of France?"])
    await expect(visitor.page).to_have_title("What is the capital of France? – Sluice")
    text = await chat.text_of(1).inner_text()
    await visitor.page.reload()
    await expect(chat.text_of(1)).to_have_text(text)
    await expect(chat.questions).to_have_text(["What is the capital of France?"])
    await expect(chat.chats).to_have_text(["What is the capital of France?"])


# ── thoughts ─────────────────────────────────────────────────────────────────────────────────────


async def test_thoughts_are_open_while_they_come_and_one_line_afterwards(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.send("What is a sluice?")
    await upstream.think("They ask")
    await expect(chat.thinking).to_have_attribute("open", "")
    await expect(chat.thoughts_line).to_have_text("Thinking…")
    await expect(chat.thoughts).to_have_text("They ask")
    await upstream.think(" of water.\n\n", "Or of gates?")
    await expect(chat.thoughts).to_have_text("They ask of water.\n\nOr of gates?", use_inner_text=True)
    await upstream.say("A gate.")
    await expect(chat.thinking).not_to_have_attribute("open", "")
    await expect(chat.thoughts_line).to_have_text(re.compile(r"^Thought for \d+ s$"))
    await expect(chat.thoughts).not_to_be_visible()
    # Whoever opens them keeps them open, whatever comes.
    await chat.thoughts_line.focus()
    await visitor.page.keyboard.press("Enter")
    await expect(chat.thoughts).to_be_visible()
    await upstream.say(" For water.")
    await upstream.finish()
    await chat.ended()
    await expect(chat.text_of(1)).to_have_text("A gate. For water.")
    await expect(chat.thoughts).to_be_visible()
    await visitor.page.keyboard.press("Enter")
    await expect(chat.thoughts).not_to_be_visible()
    await visitor.page.reload()
    await expect(chat.text_of(1)).to_have_text("A gate. For water.")
    await expect(chat.thoughts_line).to_have_text("Thoughts")
    await expect(chat.thoughts).not_to_be_visible()
    await chat.thoughts_line.click()
    await expect(chat.thoughts).to_have_text("They ask of water.\n\nOr of gates?", use_inner_text=True)


async def test_thoughts_without_an_answer_are_folded_at_the_end(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    chat = ChatPage((await visit(server)).page)
    await chat.send("hm")
    await upstream.think("I wonder")
    await expect(chat.thoughts).to_have_text("I wonder")
    await upstream.finish("length")
    await expect(chat.status_of(1)).to_have_text("It ended at its longest length.")
    await expect(chat.thoughts).not_to_be_visible()


async def test_an_echo_thinks_and_answers(server: "Server", visit: "Visit") -> None:
    chat = ChatPage((await visit(server)).page)
    await chat.choose("thinker")
    await chat.ask("hello")
    await expect(chat.text_of(1)).to_have_text("".join(f"chunk {n}: hello" for n in range(1, 6)))
    await chat.thoughts_line.click()
    await expect(chat.thoughts).to_have_text("".join(f"thought {n}: hello" for n in range(1, 4)))


# ── stop ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["button", "key"])
async def test_a_stopped_answer_stays_as_far_as_it_came(
    server: "Server", upstream: Upstream, visit: "Visit", way: str
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.send("Count")
    await upstream.say("one", " two", " three")
    await expect(chat.text_of(1)).to_have_text("one two three")
    if way == "button":
        await chat.stop()
    else:
        await visitor.page.keyboard.press("Escape")
    await (await upstream.asked()).was_left()
    await chat.ended()
    await expect(chat.text_of(1)).to_have_text("one two three")
    await expect(chat.status_of(1)).to_have_text("Stopped.")
    await expect(chat.button("Stop")).to_be_hidden()
    await chat.send("Go on")
    turn = await upstream.asked()
    assert said(turn) == [("user", "Count"), ("assistant", "one two three"), ("user", "Go on")]
    await turn.answer("four")
    await expect(chat.text_of(2)).to_have_text("four")
    await visitor.page.reload()
    await expect(chat.text_of(1)).to_have_text("one two three")
    await expect(chat.status_of(1)).to_have_text("Stopped.")
    await expect(chat.text_of(2)).to_have_text("four")


async def test_a_stop_before_the_first_word(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    chat = ChatPage((await visit(server)).page)
    await chat.send("Count")
    turn = await upstream.asked()
    await chat.stop()
    await turn.was_left()
    await expect(chat.status_of(1)).to_have_text("Stopped.")
    await chat.send("Then not")
    await upstream.answer("Well.")
    await expect(chat.text_of(2)).to_have_text("Well.")


async def test_escape_in_the_middle_of_a_composition_stops_nothing(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    """There it is the input method's."""
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.send("Count")
    await upstream.say("one")
    await expect(chat.text_of(1)).to_have_text("one")
    await chat.message.dispatch_event("keydown", {"key": "Escape", "isComposing": True, "bubbles": True})
    await upstream.say(" two")
    await upstream.finish()
    await chat.ended()
    await expect(chat.text_of(1)).to_have_text("one two")
    await expect(chat.status_of(1)).to_be_hidden()


async def test_what_is_said_meanwhile_waits_for_the_end(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    chat = ChatPage((await visit(server)).page)
    await chat.send("First")
    turn = await upstream.asked()
    await turn.say("one")
    await expect(chat.text_of(1)).to_have_text("one")
    await chat.send("Second")
    await expect(chat.waiting).to_contain_text("Is sent when the answer above is complete.")
    await turn.finish()
    second = await upstream.asked()
    assert said(second) == [("user", "First"), ("assistant", "one"), ("user", "Second")]
    await second.answer("two")
    await expect(chat.text_of(2)).to_have_text("two")
    await expect(chat.waiting).to_have_count(0)


# ── versions ─────────────────────────────────────────────────────────────────────────────────────


async def test_another_answer_stands_beside_the_first(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await talk(chat, upstream, "A number?", "one")
    await chat.button("Answer again").click()
    again = await upstream.asked()
    assert said(again) == [("user", "A number?")]
    await again.answer("two")
    await expect(chat.answers).to_have_count(1)
    await expect(chat.text_of(1)).to_have_text("two")
    await expect(chat.version).to_have_text("2 / 2")
    await expect(chat.button("Next version")).to_be_disabled()
    # The next turn continues the version that is shown.
    await chat.button("Earlier version").click()
    await expect(chat.text_of(1)).to_have_text("one")
    await expect(chat.version).to_have_text("1 / 2")
    await expect(chat.button("Earlier version")).to_be_disabled()
    await chat.send("And now?")
    turn = await upstream.asked()
    assert said(turn) == [("user", "A number?"), ("assistant", "one"), ("user", "And now?")]
    await turn.answer("behind one")
    await expect(chat.text_of(2)).to_have_text("behind one")
    await chat.ended()
    await chat.button("Next version").click()
    await expect(chat.answers).to_have_count(1)
    await expect(chat.text_of(1)).to_have_text("two")
    await visitor.page.reload()
    await expect(chat.text_of(1)).to_have_text("two")
    await expect(chat.answers).to_have_count(1)
    await expect(chat.version).to_have_text("2 / 2")
    await chat.button("Earlier version").click()
    await expect(chat.answers).to_have_count(2)
    await expect(chat.text_of(1)).to_have_text("one")
    await expect(chat.text_of(2)).to_have_text("behind one")
    await visitor.page.reload()
    await expect(chat.text_of(2)).to_have_text("behind one")
    await expect(chat.text_of(1)).to_have_text("one")


async def test_news_of_before_do_not_lead_back_to_the_version_of_before(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    turns = "**/turns?limit=10"
    await chat.send("A number?")
    # The news of the first answer are not those that are held.
    async with visitor.page.expect_response(turns):
        await (await upstream.asked()).answer("one")
    await chat.ended()
    await chat.button("Answer again").click()
    again = await upstream.asked()
    await again.say("two")
    await expect(chat.text_of(1)).to_have_text("two")
    gate = await visitor.hold(turns, answered=True)
    await again.finish()
    await gate.reached()
    await chat.button("Earlier version").click()
    await expect(chat.text_of(1)).to_have_text("one")
    # What it tells is of no use: it is asked for again.
    async with visitor.page.expect_request(turns) as asked_again:
        gate.open()
    await (await asked_again.value).response()
    await expect(chat.text_of(1)).to_have_text("one")
    await chat.send("And now?")
    turn = await upstream.asked()
    assert said(turn) == [("user", "A number?"), ("assistant", "one"), ("user", "And now?")]
    await turn.answer("behind one")
    await chat.ended()
    await expect(chat.text_of(1)).to_have_text("one")
    await expect(chat.text_of(2)).to_have_text("behind one")


async def test_a_message_is_edited_in_the_middle_of_a_chat(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    for question, answer in [("a", "A"), ("b", "B"), ("c", "C")]:
        await talk(chat, upstream, question, answer)
    await chat.edit(2, "b, but better")
    turn = await upstream.asked()
    assert said(turn) == [("user", "a"), ("assistant", "A"), ("user", "b, but better")]
    await turn.answer("B+")
    await expect(chat.text_of(2)).to_have_text("B+")
    await expect(chat.questions).to_have_text(["a", "b, but better"])
    await expect(chat.version).to_have_text("2 / 2")
    await chat.ended()
    await chat.send("d")
    turn = await upstream.asked()
    assert [text for _, text in said(turn)] == ["a", "A", "b, but better", "B+", "d"]
    await turn.answer("D")
    await chat.ended()
    # Back to what was said first, and to all that followed it.
    await chat.button("Earlier version").click()
    await expect(chat.questions).to_have_text(["a", "b", "c"])
    await expect(chat.text_of(3)).to_have_text("C")
    await chat.send("e")
    turn = await upstream.asked()
    assert [text for _, text in said(turn)] == ["a", "A", "b", "B", "c", "C", "e"]
    await turn.answer("E")
    await chat.ended()
    await visitor.page.reload()
    await expect(chat.questions).to_have_text(["a", "b", "c", "e"])
    await expect(chat.version).to_have_text("1 / 2")


async def test_an_edit_that_is_given_up_changes_nothing(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await talk(chat, upstream, "a", "A")
    await chat.questions.first.hover()
    await chat.button("Edit the message").click()
    await expect(chat.edited).to_be_focused()
    await expect(chat.edited).to_have_value("a")
    await visitor.page.keyboard.type("bc")
    await visitor.page.keyboard.press("Escape")
    await expect(chat.questions).to_have_text(["a"])
    await expect(chat.button("Edit the message")).to_be_focused()
    assert len(upstream.turns) == 1


# ── how it stands ────────────────────────────────────────────────────────────────────────────────


async def test_who_waits_sees_how_many_are_ahead(
    server_of_one: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    texts = ["one", "two", "three", "four"]
    chats = [ChatPage((await visit(server_of_one)).page) for _ in texts]
    await chats[0].send(texts[0])
    first = await upstream.asked()
    for ahead, chat, text in zip(AHEAD, chats[1:], texts[1:], strict=True):
        await chat.send(text)
        await expect(chat.status_of(1)).to_have_text(ahead)
    await chats[3].page.reload()
    await expect(chats[3].status_of(1)).to_have_text(AHEAD[2])
    await first.answer("1")
    second = await upstream.asked()
    assert second.question == "two"
    await expect(chats[2].status_of(1)).to_have_text(AHEAD[0])
    await expect(chats[3].status_of(1)).to_have_text(AHEAD[1])
    await second.say("2")
    await expect(chats[1].text_of(1)).to_have_text("2")
    await expect(chats[1].status_of(1)).to_be_hidden()
    # Who does not want to wait stops, and those behind move up.
    await chats[2].stop()
    await expect(chats[2].status_of(1)).to_have_text("Stopped.")
    await expect(chats[3].status_of(1)).to_have_text(AHEAD[0])
    await second.finish()
    last = await upstream.asked()
    assert last.question == "four"
    await last.answer("4")
    await expect(chats[3].text_of(1)).to_have_text("4")
    await expect(chats[3].status_of(1)).to_be_hidden()


@pytest.mark.real_model
async def test_who_waits_sees_how_far_the_model_has_read(real_server: "Server", visit: "Visit") -> None:
    visitor = await visit(real_server)
    chat = ChatPage(visitor.page)
    await chat.send("Remember these words: " + " ".join(f"gate{n}" for n in range(350)))
    await expect(chat.status_of(1)).to_have_text(re.compile(r"^Reading… \d{1,2} %$"))
    await chat.stop()
    await expect(chat.status_of(1)).to_have_text("Stopped.")


async def test_an_answer_says_how_long_and_how_fast_it_was(endless_server: "Server", visit: "Visit") -> None:
    visitor = await visit(endless_server)
    chat = ChatPage(visitor.page)
    await chat.send("hello")
    await expect(chat.facts_of(1)).to_have_text(re.compile(r"^[\d.]+ tokens/s$"))
    await chat.stop()
    await expect(chat.facts_of(1)).to_have_text(re.compile(r"^\d+ tokens · [\d.]+ tokens/s$"))
    await expect(chat.who_answered(1)).to_have_text("slow")
    facts = await chat.facts_of(1).inner_text()
    await visitor.page.reload()
    await expect(chat.facts_of(1)).to_have_text(re.compile(r"^\d+ tokens · [\d.]+ tokens/s$"))
    assert (await chat.facts_of(1).inner_text()).split(" · ")[0] == facts.split(" · ")[0]


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


async def test_settings_open_once_however_often_one_clicks(server: "Server", visit: "Visit") -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    gate = await visitor.hold("**/api/config")
    await chat.button("Settings").click()
    await gate.reached()
    await chat.button("Settings").click()
    gate.open()
    await expect(visitor.page.get_by_role("dialog")).to_be_visible()
    await visitor.page.keyboard.press("Escape")
    await expect(visitor.page.get_by_role("dialog")).to_have_count(0)
    await chat.button("Settings").click()
    await expect(visitor.page.get_by_role("dialog")).to_be_visible()


async def test_settings_reach_the_model_and_survive_a_reload(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.send("as it is")
    plain = await upstream.asked()
    await plain.answer("yes")
    assert said(plain) == [("user", "as it is")]
    await chat.set(temperature="0.25", longest="77", system="  Be brief.\nBe kind. ")
    await visitor.page.reload()
    await chat.send("as I want it")
    turn = await upstream.asked()
    await turn.answer("yes")
    assert turn.body["temperature"] == 0.25
    assert 77 in (turn.body.get("max_tokens"), turn.body.get("max_completion_tokens"))
    assert turn.body["messages"][0] == {"role": "system", "content": "Be brief.\nBe kind."}
    assert said(turn)[1:] == [("user", "as it is"), ("assistant", "yes"), ("user", "as I want it")]
    await chat.ended()
    await chat.button("Settings").click()
    await expect(chat.setting("Temperature")).to_have_value("0.25")
    await expect(chat.setting("Longest answer, in tokens")).to_have_value("77")
    await visitor.page.keyboard.press("Escape")
    await expect(chat.button("Settings")).to_be_focused()
    await chat.set(temperature="", longest="", system="")
    await chat.send("as it was")
    last = await upstream.asked()
    await last.answer("yes")
    assert {**last.body, "messages": plain.body["messages"]} == plain.body
    assert said(last)[0] == ("user", "as it is")


async def test_a_setting_that_cannot_be_is_not_kept(server: "Server", visit: "Visit") -> None:
    chat = ChatPage((await visit(server)).page)
    await chat.button("Settings").click()
    await chat.setting("Temperature").fill("7")
    await chat.button("Save").click()
    # The browser says why, at the field.
    assert await chat.setting("Temperature").evaluate("(field) => field.validity.rangeOverflow")
    await expect(chat.setting("Temperature")).to_be_focused()
    await chat.page.keyboard.press("Escape")
    assert await chat.page.evaluate("localStorage.getItem('sluice.settings')") is None


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_turn_takes_no_mouse(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    keys = visitor.page.keyboard
    await expect(chat.message).to_be_focused()
    await keys.type("Two")
    await keys.press("Shift+Enter")
    await keys.type("lines")
    assert upstream.turns == []
    await keys.press("Enter")
    turn = await upstream.asked()
    assert turn.question == "Two\nlines"
    await expect(chat.message).to_have_value("")
    await expect(chat.message).to_be_focused()
    await turn.answer("Yes.")
    await expect(chat.text_of(1)).to_have_text("Yes.")
    await chat.ended()
    # Back through what was said, to the button that answers again.
    await chat.tab_to(chat.button("Answer again"), backwards=True)
    await keys.press("Enter")
    again = await upstream.asked()
    assert again.question == "Two\nlines"
    await again.answer("No.")
    await expect(chat.text_of(1)).to_have_text("No.")
    await chat.ended()
    await chat.message.focus()
    await chat.tab_to(chat.button("Earlier version"), backwards=True)
    await keys.press("Enter")
    await expect(chat.text_of(1)).to_have_text("Yes.")
    # One goes on where one was: at the only arrow that leads anywhere now.
    await expect(chat.button("Next version")).to_be_focused()
    await keys.press("Enter")
    await expect(chat.text_of(1)).to_have_text("No.")
    await expect(chat.button("Earlier version")).to_be_focused()


async def test_an_input_method_chooses_with_enter_and_does_not_send(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server, locale="zh-CN")
    message = visitor.page.get_by_role("textbox", name="消息", exact=True)
    method = await visitor.context.new_cdp_session(visitor.page)
    await message.focus()
    await method.send("Input.imeSetComposition", {"text": "ni hao", "selectionStart": 6, "selectionEnd": 6})
    await expect(message).to_have_value("ni hao")
    await method.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", "key": "Enter", "code": "Enter"})
    await method.send("Input.insertText", {"text": "你好"})
    # As Safari has it: the composition is over, the key is not.
    await message.dispatch_event("keydown", {"key": "Enter", "keyCode": 229, "bubbles": True})
    await expect(message).to_have_value("你好")
    await expect(visitor.page.get_by_role("group", name="你")).to_have_count(0)
    await visitor.page.keyboard.press("Enter")
    turn = await upstream.asked()
    assert said(turn) == [("user", "你好")]
    await turn.answer("你好！")
    assert len(upstream.turns) == 1


async def test_an_input_method_chooses_with_enter_in_an_edit_too(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    chat = ChatPage((await visit(server)).page)
    await talk(chat, upstream, "ni hao", "Well.")
    await chat.questions.hover()
    await chat.button("Edit the message").click()
    await chat.edited.fill("你好")
    await chat.edited.dispatch_event("keydown", {"key": "Enter", "keyCode": 229, "bubbles": True})
    await chat.edited.dispatch_event("keydown", {"key": "Escape", "keyCode": 229, "bubbles": True})
    await expect(chat.edited).to_have_value("你好")
    await chat.edited.press("Enter")
    turn = await upstream.asked()
    assert said(turn) == [("user", "你好")]
    await turn.answer("你好！")
    await chat.ended()


async def test_nothing_is_sent_where_nothing_is_written(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    chat = ChatPage((await visit(server)).page)
    await expect(chat.button("Send")).to_be_disabled()
    await chat.message.fill("  \n ")
    await expect(chat.button("Send")).to_be_disabled()
    await chat.page.keyboard.press("Enter")
    await chat.send(" a word ")
    turn = await upstream.asked()
    assert turn.question == "a word"
    await turn.answer("yes")
    assert len(upstream.turns) == 1


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────


async def test_an_answer_that_failed_is_tried_again(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.send("Well?")
    turn = await upstream.asked()
    await turn.say("So far")
    await expect(chat.text_of(1)).to_have_text("So far")
    await turn.fail("out of memory")
    problem = chat.answer(1).get_by_role("alert").get_by_role("paragraph")
    await expect(problem).to_have_text("The model's server failed: out of memory.")
    await chat.ended()
    await visitor.page.reload()
    await expect(problem).to_have_text("The model's server failed: out of memory.")
    await chat.answer(1).get_by_role("button", name="Try again").click()
    again = await upstream.asked()
    assert said(again) == [("user", "Well?")]
    await again.answer("Well.")
    await expect(chat.text_of(1)).to_have_text("Well.")
    await expect(chat.answers).to_have_count(1)
    await expect(chat.problems).to_have_count(0)
    await chat.ended()
    await chat.send("And?")
    turn = await upstream.asked()
    assert said(turn) == [("user", "Well?"), ("assistant", "Well."), ("user", "And?")]
    await turn.answer("That is all.")
    await expect(chat.text_of(2)).to_have_text("That is all.")


async def test_a_chat_goes_on_behind_an_answer_that_failed(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    chat = ChatPage((await visit(server)).page)
    await chat.send("Well?")
    await (await upstream.asked()).refuse(503, "overloaded")
    await expect(chat.answer(1).get_by_role("alert")).to_be_visible()
    await chat.ended()
    await chat.send("Once more")
    turn = await upstream.asked()
    assert turn.question == "Once more"
    await turn.answer("Here I am.")
    await expect(chat.answers.last.locator(".body")).to_have_text("Here I am.")


async def test_a_message_that_is_too_long_says_so_and_is_not_lost(
    small_server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    chat = ChatPage((await visit(small_server)).page)
    text = "水" * 30_000
    await chat.send(text)
    await expect(chat.refusal).to_have_text("The message is too long: shorten it, or attach it as a file.")
    await chat.button("Discard").click()
    await expect(chat.message).to_have_value(text)
    await expect(chat.waiting).to_have_count(0)
    # It fits with less of it, in the same chat.
    await chat.send(text[:20_000])
    turn = await upstream.asked()
    assert turn.question == text[:20_000]
    await turn.answer("Good.")
    await expect(chat.text_of(1)).to_have_text("Good.")


async def test_a_model_that_is_gone_after_a_restart_says_so_and_another_one_answers(
    changing_server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    server = changing_server
    visitor = await visit(server)
    visitor.may_complain.append("ERR_CONNECTION_REFUSED|WebSocket connection|status of 503")
    chat = ChatPage(visitor.page)
    await chat.choose("other")
    await talk(chat, upstream, "Who?", "Other.")
    server.signal()
    await server.exit_status()
    await expect(chat.connection).to_have_text("Connecting again…")
    config = server.config_file.read_text()
    server.config_file.write_text(config.replace("name: other", "name: another"))
    await chat.send("Who now?")
    await asyncio.to_thread(server.start_again)
    await expect(chat.refusal).to_have_text("There is no model 'other'; this server has: scripted, another.")
    await expect(chat.model).to_have_text("scripted")
    await chat.button("Try again").click()
    turn = await upstream.asked("scripted")
    assert said(turn) == [("user", "Who?"), ("assistant", "Other."), ("user", "Who now?")]
    await turn.answer("Scripted.")
    await expect(chat.text_of(2)).to_have_text("Scripted.")


async def test_too_many_messages_a_minute_say_so_where_they_are(
    strict_server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    chat = ChatPage((await visit(strict_server)).page)
    await talk(chat, upstream, "one", "1")
    await chat.send("two")
    await expect(chat.refusal).to_have_text(
        re.compile(r"^You may have 3 requests a minute; try again in \d+ s\.$")
    )
    await expect(chat.button("Try again")).to_be_visible()
