"""What is written without a connection is kept, and sent once, whatever gets lost and whenever."""

import re
from typing import TYPE_CHECKING

import pytest
from cable import Cable, Way
from pages import ChatPage
from playwright.async_api import expect
from scenes import PASSWORD, register, talk
from scripted import Upstream

if TYPE_CHECKING:
    from conftest import Visit

    from test.conftest import Server

BROKEN_LINE = r"WebSocket connection to|net::ERR_"
ASK_MUCH = """async () => {
  for (let times = 0; times < 20; times++) await fetch("/");
  return (await fetch("/")).status;
}"""
"""Takes longer than to connect and to send."""
IS_NONE_KEPT = "() => !Object.keys(localStorage).some((place) => place.startsWith('sluice.outbox.'))"
WAITS = "Is sent when the connection is back."


async def answered(chat: ChatPage, upstream: Upstream, *questions: str) -> None:
    """Each is asked in turn, answered, and shown with its answer, once."""
    for number, question in enumerate(questions, 1):
        turn = await upstream.asked()
        assert turn.question == question
        await turn.answer(f"Answer {number}.")
    await expect(chat.answers).to_have_count(len(questions))
    await chat.ended()
    await expect(chat.questions).to_have_text(questions)
    for number in range(1, len(questions) + 1):
        await expect(chat.text_of(number)).to_have_text(f"Answer {number}.")
    assert [turn.question for turn in upstream.turns] == [*questions]


async def test_what_is_written_without_a_connection_is_sent_once_in_order(
    cable: Cable, visit: "Visit", upstream: Upstream
) -> None:
    visitor = await visit(cable)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await talk(chat, upstream, "One", "Answer 0.")
    upstream.turns.clear()
    cable.cut()
    await expect(chat.connection).to_be_visible()
    for text in ("Two", "Three", "Four"):
        await chat.send(text)
    await expect(chat.waiting.locator(".bubble")).to_have_text(["Two", "Three", "Four"])
    await expect(chat.waiting.get_by_text(WAITS)).to_have_count(3)
    await chat.waiting.nth(1).get_by_role("button", name="Discard").click()
    await expect(chat.waiting.locator(".bubble")).to_have_text(["Two", "Four"])
    await cable.mend()
    for number, text in enumerate(("Two", "Four"), 1):
        turn = await upstream.asked()
        assert turn.question == text
        if number == 1:
            await expect(chat.waiting).to_contain_text(["Is sent when the answer above is complete."])
        await turn.answer(f"Answer {number}.")
    await expect(chat.answers).to_have_count(3)
    await chat.ended()
    await expect(chat.questions).to_have_text(["One", "Two", "Four"])
    assert [turn.question for turn in upstream.turns] == ["Two", "Four"]


async def test_a_new_chat_begun_without_a_connection_survives_reloads(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await expect(chat.model).to_contain_text("scripted")
    await visitor.lose_network()
    await expect(chat.connection).to_have_text(
        "Not connected. What you write is kept, and sent when the connection is back."
    )
    for text in ("One", "Two"):
        await chat.send(text)
    await expect(chat.waiting.get_by_text(WAITS)).to_have_count(2)
    await visitor.find_network()
    await expect(chat.waiting).to_have_count(1)
    turn = await upstream.asked()
    # The second one waits for the answer to the first. It is not sent, and neither is the first again.
    for _ in range(3):
        await visitor.page.reload()
        await expect(chat.questions).to_have_text(["One"])
        await expect(chat.waiting.locator(".bubble")).to_have_text(["Two"])
    await turn.answer("Answer 1.")
    second = await upstream.asked()
    assert second.question == "Two"
    await second.answer("Answer 2.")
    await expect(chat.answers).to_have_count(2)
    await chat.ended()
    await expect(chat.questions).to_have_text(["One", "Two"])
    assert [turn.question for turn in upstream.turns] == ["One", "Two"]
    await expect(chat.chats).to_have_count(1)


MOMENTS = {
    "the message is lost": (Way.UP, "response.create", False),
    "the message arrives, nothing comes back": (Way.UP, "response.create", True),
    "its acceptance is lost": (Way.DOWN, "response.queued", False),
    "its acceptance is the last that comes": (Way.DOWN, "response.queued", True),
    "the first word is lost": (Way.DOWN, "response.output_text.delta", False),
    "the end is lost": (Way.DOWN, "response.completed", False),
    "the request for a new chat is lost": (Way.UP, "POST /v1/conversations", False),
    "the new chat is lost": (Way.DOWN, '"object":"conversation"', False),
    "the new chat is the last that comes": (Way.DOWN, '"object":"conversation"', True),
}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_cut_sends_nothing_twice_and_loses_nothing(
    cable: Cable, visit: "Visit", upstream: Upstream, moment: str
) -> None:
    visitor = await visit(cable)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await expect(chat.model).to_contain_text("scripted")
    way, words, arrives = MOMENTS[moment]
    cut = cable.cut_when(way, words, arrives=arrives)
    await chat.send("Tell me")
    if words in ("response.output_text.delta", "response.completed"):
        await upstream.answer("Answer 1.")
        await cut.comes()
        await cable.mend()
        await expect(chat.text_of(1)).to_have_text("Answer 1.")
        upstream_had = [turn.question for turn in upstream.turns]
        await chat.ended()
        await expect(chat.questions).to_have_text(["Tell me"])
        assert upstream_had == ["Tell me"]
        return
    await cut.comes()
    await expect(chat.connection).to_be_visible()
    await cable.mend()
    await answered(chat, upstream, "Tell me")
    await expect(chat.problems).to_have_count(0)
    await expect(chat.chats).to_have_count(1)


@pytest.mark.parametrize("arrives", [False, True])
async def test_a_reload_between_sent_and_accepted_sends_once(
    cable: Cable, visit: "Visit", upstream: Upstream, arrives: bool
) -> None:
    visitor = await visit(cable)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await talk(chat, upstream, "One", "Answer 0.")
    upstream.turns.clear()
    cut = cable.cut_when(Way.UP, "response.create", arrives=arrives)
    await chat.send("Two")
    await cut.comes()
    await cable.mend()
    await visitor.page.reload()
    turn = await upstream.asked()
    await expect(chat.questions).to_have_text(["One", "Two"])
    await turn.answer("Answer 1.")
    await expect(chat.text_of(2)).to_have_text("Answer 1.")
    await chat.ended()
    await expect(chat.questions).to_have_text(["One", "Two"])
    assert [turn.question for turn in upstream.turns] == ["Two"]


async def test_a_line_that_is_dead_without_a_word_is_noticed(
    cable: Cable, visit: "Visit", upstream: Upstream
) -> None:
    visitor = await visit(cable, None)
    await visitor.page.clock.install()
    await visitor.open()
    chat = ChatPage(visitor.page)
    await talk(chat, upstream, "One", "Answer 0.")
    upstream.turns.clear()
    cable.silence()
    await chat.send("Two")
    await expect(chat.waiting).to_contain_text(["Sending…"])
    await visitor.page.clock.run_for(16_000)
    turn = await upstream.asked()
    await turn.answer("Answer 1.")
    await expect(chat.text_of(2)).to_have_text("Answer 1.")
    await expect(chat.questions).to_have_text(["One", "Two"])
    assert [turn.question for turn in upstream.turns] == ["Two"]


async def test_a_line_that_dies_in_mid_answer_without_a_word_is_noticed(
    cable: Cable, visit: "Visit", upstream: Upstream
) -> None:
    visitor = await visit(cable, None)
    await visitor.page.clock.install()
    await visitor.open()
    chat = ChatPage(visitor.page)
    await chat.send("One")
    turn = await upstream.asked()
    await turn.say("What was")
    await expect(chat.text_of(1)).to_have_text("What was")
    cable.silence()
    await turn.answer(" not heard.")
    await visitor.page.clock.run_for(26_000)
    await expect(chat.text_of(1)).to_have_text("What was not heard.")
    await chat.ended()


NEWS = """() => new BroadcastChannel("sluice").postMessage({
  kind: "turn", conversation: location.pathname.split("/")[2]
})"""
"""What another tab says when it has sent something in the same chat: then this one looks for what is new."""


async def test_an_answer_that_is_found_before_it_is_told_of_is_shown_once(
    cable: Cable, visit: "Visit", upstream: Upstream
) -> None:
    visitor = await visit(cable)
    chat = ChatPage(visitor.page)
    await talk(chat, upstream, "One", "Answer 0.")
    cable.hold()
    await chat.send("Two")
    turn = await upstream.asked()
    await visitor.page.evaluate(NEWS)
    await expect(chat.questions).to_have_text(["One", "Two"])
    await expect(chat.waiting).to_have_count(0)
    await turn.say("Answer")
    cable.let_go()
    await expect(chat.text_of(2)).to_have_text("Answer")
    await turn.answer(" 1.")
    await expect(chat.text_of(2)).to_have_text("Answer 1.")
    await chat.ended()
    await expect(chat.answers).to_have_count(2)


async def test_words_that_come_behind_the_end_are_not_shown_twice(
    cable: Cable, visit: "Visit", upstream: Upstream
) -> None:
    visitor = await visit(cable)
    chat = ChatPage(visitor.page)
    await chat.send("One")
    turn = await upstream.asked()
    await turn.say("This")
    await expect(chat.text_of(1)).to_have_text("This")
    cable.hold()
    await turn.answer(" is", " it.")
    async with visitor.page.expect_response("**/turns?**") as found:
        await visitor.page.evaluate(NEWS)
    while (await (await found.value).json())["data"][0]["response"]["status"] != "completed":
        async with visitor.page.expect_response("**/turns?**") as found:
            await visitor.page.evaluate(NEWS)
    await expect(chat.text_of(1)).to_have_text("This is it.")
    cable.let_go()
    await chat.send("Two")
    await upstream.answer("Answer 1.")
    await expect(chat.text_of(2)).to_have_text("Answer 1.")
    await expect(chat.text_of(1)).to_have_text("This is it.")


async def test_a_stop_is_not_lost_with_the_connection(
    cable: Cable, visit: "Visit", upstream: Upstream
) -> None:
    visitor = await visit(cable)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await chat.send("Tell me")
    turn = await upstream.asked()
    await turn.say("One")
    await expect(chat.text_of(1)).to_have_text("One")
    cut = cable.cut_when(Way.UP, "response.cancel", arrives=False)
    await chat.stop()
    await cut.comes()
    await cable.mend()
    await turn.was_left()
    await expect(chat.answer(1)).to_contain_text("Stopped.")
    await expect(chat.text_of(1)).to_have_text("One")


async def test_what_is_discarded_while_its_chat_is_begun_is_not_sent(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await expect(chat.model).to_contain_text("scripted")
    gate = await visitor.hold("**/v1/conversations")
    await chat.send("A slip")
    await gate.reached()
    await chat.waiting.get_by_role("button", name="Discard").click()
    await expect(chat.waiting).to_have_count(0)
    async with visitor.page.expect_response("**/v1/conversations"):
        gate.open()
    await chat.send("What I meant")
    await answered(chat, upstream, "What I meant")
    await expect(chat.page).to_have_url(re.compile("/c/conv_"))
    await expect(chat.chats).to_have_count(1)


async def test_what_waits_behind_a_discarded_message_is_sent(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    chat = ChatPage((await visit(server)).page)
    await chat.page.evaluate("localStorage['sluice.settings'] = JSON.stringify({temperature: 99})")
    await chat.send("Too hot")
    await expect(chat.refusal).to_be_visible()
    await chat.page.evaluate("localStorage.removeItem('sluice.settings')")
    await chat.send("Just right")
    await expect(chat.waiting).to_have_count(2)
    await chat.waiting.first.get_by_role("button", name="Discard").click()
    await answered(chat, upstream, "Just right")


async def test_what_may_have_arrived_is_looked_for_before_it_is_tried_again(
    server: "Server", cable: Cable, visit: "Visit", upstream: Upstream
) -> None:
    visitor = await visit(cable)
    visitor.may_complain.append(BROKEN_LINE + "|status of 500")
    chat = ChatPage(visitor.page)
    await talk(chat, upstream, "One", "Answer 0.")
    upstream.turns.clear()
    cut = cable.cut_when(Way.DOWN, "response.queued", arrives=False)
    await chat.send("Two")
    await cut.comes()
    # Nobody can say whether it has arrived.
    wrong = {"status": 500, "json": {"error": {"message": "a bug", "code": "internal_error"}}}
    await visitor.context.route("**/turns?**", lambda route: route.fulfill(**wrong))
    await cable.mend()
    await expect(chat.refusal).to_be_visible()
    await visitor.context.unroute("**/turns?**")
    await upstream.answer("Answer 1.")
    await server.metric_becomes("sluice_queue_running", 0, model="scripted")
    await chat.button("Try again").click()
    await expect(chat.text_of(2)).to_have_text("Answer 1.")
    await chat.ended()
    await expect(chat.questions).to_have_text(["One", "Two"])
    assert [turn.question for turn in upstream.turns] == ["Two"]


async def test_a_message_of_a_closed_tab_is_sent_by_the_next_one(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await expect(chat.model).to_contain_text("scripted")
    empty = await visitor.context.new_page()
    await visitor.lose_network()
    await chat.send("Tell me")
    await expect(chat.waiting.get_by_text(WAITS)).to_have_count(1)
    await visitor.page.close()
    await visitor.find_network()
    await empty.goto(server.http())
    await answered(ChatPage(empty), upstream, "Tell me")


async def test_a_message_of_a_closed_tab_is_sent_by_one_that_stays(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await expect(chat.model).to_contain_text("scripted")
    others = [ChatPage(await visitor.new_tab()) for _ in range(2)]
    for other in others:
        await expect(other.model).to_contain_text("scripted")
    await visitor.lose_network()
    await chat.send("Tell me")
    await expect(chat.waiting.get_by_text(WAITS)).to_have_count(1)
    await visitor.page.close()
    await visitor.find_network()
    turn = await upstream.asked()
    for other in others:
        await expect(other.chats).to_have_count(1)
        await other.chats.click()
        await expect(other.questions).to_have_text(["Tell me"])
    await turn.answer("Answer 1.")
    for other in others:
        await expect(other.text_of(1)).to_have_text("Answer 1.")
        await other.ended()
    assert [turn.question for turn in upstream.turns] == ["Tell me"]


async def test_what_waits_in_a_chat_is_deleted_with_it(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server)
    visitor.may_complain.append("status of 404")
    chat = ChatPage(visitor.page)
    await chat.send("One")
    await upstream.say("Answer")
    await expect(chat.text_of(1)).to_have_text("Answer")
    other = ChatPage(await visitor.new_tab(visitor.page.url.removeprefix(server.http())))
    await expect(other.text_of(1)).to_have_text("Answer")
    for tab, text in ((chat, "Two"), (other, "Three")):
        await tab.send(text)
        await expect(tab.waiting).to_have_count(1)
    await chat.delete("One")
    await expect(other.page).to_have_url(server.http("/"))
    await expect(chat.page).to_have_url(server.http("/"))
    assert await chat.page.evaluate(IS_NONE_KEPT)
    assert len(upstream.turns) == 1


async def test_of_two_tabs_one_sends(visit: "Visit", server: "Server", upstream: Upstream) -> None:
    visitor = await visit(server)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await expect(chat.model).to_contain_text("scripted")
    others = [await visitor.new_tab() for _ in range(2)]
    async with visitor.context.expect_page() as opened:
        await visitor.page.evaluate("open(location.href)")  # a copy, with what the tab keeps for itself
    copied = await opened.value
    await expect(ChatPage(copied).model).to_contain_text("scripted")
    await visitor.lose_network()
    await chat.send("Tell me")
    await expect(chat.waiting).to_have_count(1)
    await visitor.page.close()
    await visitor.find_network()
    for tab in (*others, copied):
        await tab.reload()
    turn = await upstream.asked()
    await turn.answer("Answer 1.")
    await expect(ChatPage(copied).chats).to_have_count(1)
    await ChatPage(copied).chats.click()
    await expect(ChatPage(copied).text_of(1)).to_have_text("Answer 1.")
    await copied.wait_for_function(IS_NONE_KEPT)
    assert [turn.question for turn in upstream.turns] == ["Tell me"]


async def test_what_a_user_has_written_nobody_else_sends(
    server: "Server", visit: "Visit", upstream: Upstream
) -> None:
    visitor = await visit(server)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await register(server, "grace")
    await chat.sign_in("grace", PASSWORD)
    await expect(chat.model).to_contain_text("scripted")
    await visitor.lose_network()
    await chat.send("A secret")
    await expect(chat.waiting).to_have_count(1)
    # The page begins anew, and cannot yet: the old one is still there when the network is found.
    await visitor.context.route(server.http("/"), lambda route: route.fulfill(status=204), times=1)
    async with visitor.page.expect_request(server.http("/")):
        await chat.sign_out()
    await visitor.find_network()
    assert await visitor.page.evaluate(ASK_MUCH) == 200
    await visitor.open()
    await chat.send("From a guest")
    await upstream.answer("Answer 1.")
    await expect(chat.text_of(1)).to_have_text("Answer 1.")
    await expect(chat.waiting).to_have_count(0)
    assert [turn.question for turn in upstream.turns] == ["From a guest"]
    await chat.sign_in("grace", PASSWORD)
    await upstream.answer("Answer 2.")
    await expect(chat.chats).to_have_text(["A secret", "From a guest"])
    assert [turn.question for turn in upstream.turns] == ["From a guest", "A secret"]
