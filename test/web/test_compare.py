"""One message, several models: their answers side by side."""

from typing import TYPE_CHECKING

from pages import ChatPage
from playwright.async_api import Page, expect
from scripted import Turn, Upstream

if TYPE_CHECKING:
    from conftest import Visit

    from test.conftest import Server


def texts(turn: Turn) -> list[str]:
    """What a model was told, in order."""
    return [message["content"] for message in turn.body["messages"]]


async def compare(page: Page) -> ChatPage:
    chat = ChatPage(page)
    await chat.choose("scripted", "other")
    await expect(chat.model).to_have_text("scripted, other")
    return chat


async def both(upstream: Upstream) -> tuple[Turn, Turn]:
    return await upstream.asked("scripted"), await upstream.asked("other")


async def both_answer(chat: ChatPage, upstream: Upstream, question: str, *answers: str) -> None:
    await chat.send(question)
    for turn, answer in zip(await both(upstream), answers, strict=True):
        await turn.answer(answer)
    await chat.ended()


async def test_answers_stand_side_by_side_and_one_is_gone_on_with(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = await compare(visitor.page)
    await chat.send("A number?")
    one, two = await both(upstream)
    await one.say("o")
    await two.say("t")
    await expect(chat.text_in(chat.answer_of("scripted"))).to_have_text("o")
    await expect(chat.text_in(chat.answer_of("other"))).to_have_text("t")
    left, right = [await chat.answer(n).bounding_box() for n in (1, 2)]
    assert left
    assert right
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    await two.answer("wo")
    await expect(chat.text_in(chat.answer_of("other"))).to_have_text("two")
    # While one of them runs nothing is chosen.
    await expect(chat.button("Go on with this answer")).to_have_count(0)
    await one.answer("ne")
    await expect(chat.text_in(chat.answer_of("scripted"))).to_have_text("one")
    await chat.ended()
    await expect(chat.current_answers).to_have_count(1)
    await expect(chat.current_answers.locator(".who")).to_have_text("scripted")
    await chat.go_on_with("other")
    await expect(chat.current_answers.locator(".who")).to_have_text("other")
    await visitor.page.reload()
    await expect(chat.current_answers.locator(".who")).to_have_text("other")
    await expect(chat.answers).to_have_count(2)
    await chat.send("And then?")
    one, two = await both(upstream)
    assert texts(one) == texts(two) == ["A number?", "two", "And then?"]
    await one.answer("three")
    await two.answer("four")
    await chat.ended()
    await expect(chat.current_answers.locator(".who")).to_have_text(["other", "scripted"])
    # It cannot be undone where it was gone on from.
    await expect(chat.button("Go on with this answer")).to_have_count(1)


async def test_one_is_stopped_and_the_other_goes_on(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = await compare(visitor.page)
    await chat.send("Count")
    one, two = await both(upstream)
    await one.say("one")
    await two.say("un")
    await expect(chat.text_in(chat.answer_of("other"))).to_have_text("un")
    await expect(chat.text_in(chat.answer_of("scripted"))).to_have_text("one")
    await chat.button("Stop scripted").click()
    await one.was_left()
    await expect(chat.status_in(chat.answer_of("scripted"))).to_have_text("Stopped.")
    await two.answer(" deux")
    await expect(chat.text_in(chat.answer_of("other"))).to_have_text("un deux")
    await expect(chat.status_in(chat.answer_of("other"))).to_be_hidden()
    await chat.ended()
    await visitor.page.reload()
    await expect(chat.text_in(chat.answer_of("scripted"))).to_have_text("one")
    await expect(chat.status_in(chat.answer_of("scripted"))).to_have_text("Stopped.")
    await expect(chat.text_in(chat.answer_of("other"))).to_have_text("un deux")


async def test_escape_stops_all_of_them(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server)
    chat = await compare(visitor.page)
    await chat.send("Count")
    one, two = await both(upstream)
    await one.say("one")
    await two.say("un")
    await expect(chat.text_in(chat.answers)).to_have_text(["one", "un"])
    await visitor.page.keyboard.press("Escape")
    await one.was_left()
    await two.was_left()
    for model in ("scripted", "other"):
        await expect(chat.status_in(chat.answer_of(model))).to_have_text("Stopped.")


async def test_what_is_said_at_once_goes_on_with_the_answer_that_was_chosen(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = await compare(visitor.page)
    await both_answer(chat, upstream, "A number?", "one", "two")
    gate = await visitor.hold("**/v1/batches/*")
    await chat.go_on_with("other")
    await gate.reached()
    await chat.send("Twice?")
    await expect(chat.waiting).to_have_count(1)
    gate.open()
    for turn in await both(upstream):
        assert texts(turn) == ["A number?", "two", "Twice?"]
        await turn.answer("four")
    await chat.ended()


async def test_one_fails_and_the_other_is_gone_on_with(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = await compare(visitor.page)
    await chat.send("Well?")
    one, two = await both(upstream)
    await one.refuse(503, "overloaded")
    problem = chat.answer_of("scripted").get_by_role("alert")
    await expect(problem).to_be_visible()
    await two.answer("Well.")
    await expect(chat.text_in(chat.answer_of("other"))).to_have_text("Well.")
    await expect(chat.answer_of("other").get_by_role("alert")).to_have_count(0)
    await chat.ended()
    await expect(chat.current_answers.locator(".who")).to_have_text("other")
    # What failed cannot be gone on with.
    await expect(chat.button("Go on with this answer")).to_have_count(0)
    await visitor.page.reload()
    await expect(problem).to_be_visible()
    await expect(chat.current_answers.locator(".who")).to_have_text("other")
    await chat.send("And?")
    one, two = await both(upstream)
    assert texts(one) == texts(two) == ["Well?", "Well.", "And?"]
    await one.answer("1")
    await two.answer("2")
    await chat.ended()


async def test_both_answer_again_and_both_versions_stay(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = await compare(visitor.page)
    await both_answer(chat, upstream, "A number?", "one", "two")
    await chat.answer_of("other").get_by_role("button", name="Answer again").click()
    for turn, text in zip(await both(upstream), ["three", "four"], strict=True):
        assert texts(turn) == ["A number?"]
        await turn.answer(text)
    await expect(chat.text_in(chat.answers)).to_have_text(["three", "four"])
    await chat.ended()
    await expect(chat.version).to_have_text("2 / 2")
    await chat.button("Earlier version").click()
    await expect(chat.text_in(chat.answers)).to_have_text(["one", "two"])
    await chat.go_on_with("other")
    await expect(chat.current_answers.locator(".who")).to_have_text("other")
    await chat.send("Twice?")
    one, two = await both(upstream)
    assert texts(one) == texts(two) == ["A number?", "two", "Twice?"]
    await one.answer("1")
    await two.answer("2")
    await chat.ended()
    await visitor.page.reload()
    await expect(chat.text_in(chat.answers)).to_have_text(["one", "two", "1", "2"])
    await expect(chat.version).to_have_text("1 / 2")


async def test_both_fail_and_are_tried_again(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    visitor = await visit(server)
    chat = await compare(visitor.page)
    await chat.send("Well?")
    for turn in await both(upstream):
        await turn.refuse(503, "overloaded")
    await chat.ended()
    await expect(chat.button("Try again")).to_have_count(2)
    await chat.button("Try again").first.click()
    for turn in await both(upstream):
        assert texts(turn) == ["Well?"]
        await turn.answer("Well.")
    await expect(chat.text_in(chat.answers)).to_have_text(["Well.", "Well."])
    await expect(chat.problems).to_have_count(0)


async def test_who_is_asked_is_chosen_by_the_keyboard_and_remembered(
    server: "Server", visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    keys = visitor.page.keyboard
    await expect(chat.model).to_have_text("scripted")
    await chat.tab_to(chat.model, backwards=False)
    await keys.press("Enter")
    menu = visitor.page.get_by_role("dialog", name="Choose a model")
    await expect(menu.get_by_role("button", name="scripted", exact=True)).to_be_focused()
    await chat.tab_to(menu.get_by_role("button", name="echo", exact=True))
    await keys.press("Enter")
    await expect(menu).to_have_count(0)
    await expect(chat.model).to_be_focused()
    await expect(chat.model).to_have_text("echo")
    await keys.press("Enter")
    await chat.tab_to(menu.get_by_role("checkbox", name="Ask thinker, too"))
    await keys.press("Space")
    await keys.press("Escape")
    await expect(menu).to_have_count(0)
    await expect(chat.model).to_be_focused()
    await expect(chat.model).to_have_text("echo, thinker")
    await visitor.page.reload()
    await expect(chat.model).to_have_text("echo, thinker")
    # Somebody has to be asked.
    await chat.model.click()
    for name in ("echo", "thinker"):
        await menu.get_by_role("checkbox", name=f"Ask {name}, too").click()
    await expect(menu.get_by_role("checkbox", name="Ask thinker, too")).to_be_checked()
    await expect(chat.model).to_have_text("thinker")
