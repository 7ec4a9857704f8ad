"""Several tabs, several browsers, and logins that end: everybody sees the same, and nothing is noticed."""

import asyncio
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import yaml
from pages import ChatPage
from playwright.async_api import BrowserContext, Page, Request, Route, expect
from scenes import PASSWORD, register, talk
from scripted import Turn, Upstream

if TYPE_CHECKING:
    from conftest import RunOwn, Visit

    from test.conftest import Server

BROKEN_LINE = r"WebSocket connection to|net::ERR_|status of 503"
REFUSED = r"status of 40[14]"
LISTENERS = "JSEventListeners"


def asked_for(context: BrowserContext, path: str) -> list[str]:
    """Requests for this path from now on."""
    found: list[str] = []

    def note(request: Request) -> None:
        if request.url.endswith(path):
            found.append(request.url)

    context.on("request", note)
    return found


# ── two tabs ─────────────────────────────────────────────────────────────────────────────────────


async def test_two_tabs_show_the_same_answer_growing(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server)
    one = ChatPage(visitor.page)
    await one.send("Tell me")
    await upstream.say("One")
    await expect(one.text_of(1)).to_have_text("One")
    other = ChatPage(await visitor.new_tab(visitor.page.url.removeprefix(server.http())))
    await expect(other.text_of(1)).to_have_text("One")
    await upstream.say(" two")
    for chat in (one, other):
        await expect(chat.text_of(1)).to_have_text("One two")
    await upstream.answer(" three")
    for chat in (one, other):
        await chat.ended()
        await expect(chat.text_of(1)).to_have_text("One two three")
    await one.send("And then?")
    await upstream.say("Four")
    for chat in (one, other):
        await expect(chat.text_of(2)).to_have_text("Four")
    await other.stop()
    for chat in (one, other):
        await expect(chat.answer(2)).to_contain_text("Stopped.")
        await expect(chat.text_of(2)).to_have_text("Four")
        await expect(chat.questions).to_have_text(["Tell me", "And then?"])
    await upstream.turns[-1].was_left()
    await other.send("Go on")
    await upstream.answer("Five")
    for chat in (one, other):
        await expect(chat.text_of(3)).to_have_text("Five")
        await chat.ended()
        await expect(chat.questions).to_have_text(["Tell me", "And then?", "Go on"])
    assert [turn.question for turn in upstream.turns] == ["Tell me", "And then?", "Go on"]


async def test_what_one_tab_deletes_is_gone_in_the_other(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server)
    one = ChatPage(visitor.page)
    await one.send("Tell me")
    await upstream.answer("One")
    await one.ended()
    other = ChatPage(await visitor.new_tab(visitor.page.url.removeprefix(server.http())))
    await expect(other.text_of(1)).to_have_text("One")
    await one.delete("Tell me")
    for chat in (one, other):
        await expect(chat.chats).to_have_count(0)
        await expect(chat.answers).to_have_count(0)
        await expect(chat.page).to_have_url(server.http("/"))


# ── two browsers ─────────────────────────────────────────────────────────────────────────────────


async def test_another_browser_of_the_same_user_sees_the_answer(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    await register(server, "ada")
    desk, sofa = await visit(server), await visit(server)
    one, other = ChatPage(desk.page), ChatPage(sofa.page)
    await one.sign_in("ada", PASSWORD)
    await one.send("Tell me")
    await upstream.say("One")
    await expect(one.text_of(1)).to_have_text("One")
    await other.sign_in("ada", PASSWORD)
    await other.chats.click()
    await expect(other.text_of(1)).to_have_text("One")
    await upstream.answer(" two")
    for chat in (one, other):
        await chat.ended()
        await expect(chat.text_of(1)).to_have_text("One two")


async def test_whatever_another_program_has_said_meanwhile_is_shown(
    server: "Server", visit: "Visit", upstream: Upstream
) -> None:
    visitor = await visit(server)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await chat.send("Question 0")
    await upstream.answer("Answer 0.")
    await expect(chat.text_of(1)).to_have_text("Answer 0.")
    await chat.ended()
    bearer = {"Authorization": f"Bearer {await token_of(visitor.page)}"}
    body = {"model": "echo", "conversation": visitor.page.url.rpartition("/")[2]}
    questions = [f"Question {number}" for number in range(45)]
    for question in questions[1:]:
        reply = await server.fetch("/v1/responses", "POST", headers=bearer, body={**body, "input": question})
        assert reply.status == 200, reply.text
    await visitor.lose_network()
    await expect(chat.connection).to_be_visible()
    await visitor.find_network()
    await expect(chat.questions).to_have_text(questions)


SAY = """async ([text, replaces]) => {
  const token = JSON.parse(localStorage["sluice.identity"]).access;
  const headers = { "Authorization": `Bearer ${token}`, "Content-Type": "application/json" };
  const conversation = location.pathname.split("/")[2];
  const body = JSON.stringify({ model: "echo", input: text, conversation, replaces });
  return (await fetch("/v1/responses", { method: "POST", headers, body })).status;
}"""
"""As another program does in the chat that is shown."""
NEWS = """() => new BroadcastChannel("sluice").postMessage({
  kind: "turn", conversation: location.pathname.split("/")[2]
})"""
"""As another tab does that has said something there."""


async def test_a_chat_that_one_comes_back_to_has_what_was_said_meanwhile(
    server: "Server", visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.choose("echo")
    await chat.ask("One")
    address = visitor.page.url.removeprefix(server.http())
    await chat.new_chat()
    await chat.ask("Another")
    elsewhere = await visitor.new_tab(address)
    await expect(ChatPage(elsewhere).questions).to_have_text(["One"])
    assert await elsewhere.evaluate(SAY, ["Two", None]) == 200
    await chat.chats.filter(has_text="One").click()
    await expect(chat.questions).to_have_text(["One", "Two"])
    # And while another window lay over this one.
    assert await elsewhere.evaluate(SAY, ["Three", None]) == 200
    await visitor.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await expect(chat.questions).to_have_text(["One", "Two", "Three"])


async def test_a_chat_that_could_not_be_read_is_there_when_one_goes_on_in_it(
    server: "Server", visit: "Visit", upstream: Upstream
) -> None:
    visitor = await visit(server)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await talk(chat, upstream, "One", "Answer 1.")
    await visitor.context.route("**/turns?**", lambda route: route.abort(), times=1)
    await visitor.page.reload()
    note = visitor.page.get_by_text("The server cannot be reached.")
    await expect(note).to_be_visible()
    await chat.send("Two")
    await upstream.answer("Answer 2.")
    await expect(chat.questions).to_have_text(["One", "Two"])
    await expect(chat.text_of(2)).to_have_text("Answer 2.")
    await expect(note).to_be_hidden()


async def test_old_news_do_not_bring_back_what_was_said_otherwise_since(
    server: "Server", visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.choose("echo")
    await chat.ask("A slip")
    turns = "**/turns?**"
    gate = await visitor.hold(turns, answered=True)
    async with visitor.page.expect_request(turns) as found:
        await visitor.page.evaluate(NEWS)
    await gate.reached()
    # Another tab says it otherwise, and tells of it.
    bearer = {"Authorization": f"Bearer {await token_of(visitor.page)}"}
    listed = await server.fetch(urlsplit((await found.value).url).path, headers=bearer)
    slip = listed.json["data"][0]["id"]
    assert await visitor.page.evaluate(SAY, ["What I meant", slip]) == 200
    await visitor.page.evaluate(NEWS)
    await expect(chat.questions).to_have_text(["What I meant"])
    async with visitor.page.expect_request(turns) as asked_again:
        gate.open()
    await (await asked_again.value).response()
    await expect(chat.questions).to_have_text(["What I meant"])


async def test_what_could_not_be_read_of_what_others_have_said_is_read_later(
    server: "Server", visit: "Visit", upstream: Upstream
) -> None:
    visitor = await visit(server)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await chat.choose("echo")
    await chat.ask("Question 0")
    questions = [f"Question {number}" for number in range(25)]
    for question in questions[1:]:
        assert await visitor.page.evaluate(SAY, [question, None]) == 200
    await visitor.context.route("**/turns?**&after=**", lambda route: route.abort(), times=1)
    async with visitor.page.expect_event("requestfailed"):
        await visitor.page.evaluate(NEWS)
    await visitor.page.evaluate(NEWS)
    await expect(chat.questions).to_have_text(questions)


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────


async def token_of(page: Page) -> str:
    kept: dict[str, Any] = json.loads(await page.evaluate("() => localStorage.getItem('sluice.identity')"))
    return str(kept["access"])


async def runs_out(server: "Server", token: str) -> None:
    """Wait for the end of a token."""
    bearer = {"Authorization": f"Bearer {token}"}
    while (await server.fetch("/conversations", headers=bearer)).status != 401:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def notices_late(context: BrowserContext) -> None:
    """Its pages say that a connection is lost when it is so for ten times as long as else: where a machine
    has much to do a new one takes its time."""

    async def stretch(route: Route) -> None:
        answer = await route.fetch()
        body, count = re.subn(r"(?m)^(const BREAK_MS = \d+);$", r"\g<1>0;", await answer.text())
        assert count == 1
        await route.fulfill(response=answer, body=body)

    await context.route("**/connection.js*", stretch)


@pytest.mark.parametrize("locks", ["with locks", "without locks"])
async def test_nobody_notices_that_tokens_run_out(
    run_own: "RunOwn", visit: "Visit", upstream: Upstream, locks: str
) -> None:
    server = run_own(auth={"access_ttl": "2s"})
    await register(server, "ada")
    visitor = await visit(server, None)
    if locks == "without locks":  # as where the page comes over plain HTTP
        hide = "Object.defineProperty(Navigator.prototype, 'locks', { get: () => undefined })"
        await visitor.context.add_init_script(hide)
    visitor.may_complain.append(REFUSED)
    renewals = asked_for(visitor.context, "/auth/refresh")
    await notices_late(visitor.context)
    begun = time.monotonic()
    await visitor.open()
    one = ChatPage(visitor.page)
    await one.sign_in("ada", PASSWORD)
    other = ChatPage(await visitor.new_tab())
    await expect(other.button("Account: ada")).to_be_visible()
    for chat in (one, other):
        await chat.watch_connection()
    await runs_out(server, await token_of(visitor.page))
    await asyncio.gather(one.send("One"), other.send("Other"))
    for turn in [await upstream.asked(), await upstream.asked()]:
        await turn.answer(f"To {turn.question}.")
    for chat, who in ((one, "One"), (other, "Other")):
        await expect(chat.text_of(1)).to_have_text(f"To {who}.")
        await chat.ended()
    # In the middle of an answer, too, which is stopped then.
    await one.send("Stop me")
    turn = await upstream.asked()
    await turn.say("And")
    await expect(one.text_of(2)).to_have_text("And")
    await runs_out(server, await token_of(visitor.page))
    await one.stop()
    await turn.was_left()
    await expect(one.answer(2)).to_contain_text("Stopped.")
    for chat in (one, other):
        await expect(chat.button("Account: ada")).to_be_visible()
        await expect(chat.problems).to_have_count(0)
        assert await chat.connection_said() == []
    assert len(upstream.turns) == 3
    # A token is good for a second before it is renewed, and without locks each tab may renew it.
    assert len(renewals) < max(20, 3 * (time.monotonic() - begun))


def start_with_another_secret(server: "Server") -> None:
    server.kill()
    Path(yaml.safe_load(server.config_file.read_text())["auth"]["secret_file"]).unlink()
    server.start_again()


async def test_a_guest_whom_the_server_does_not_know_any_more_begins_anew(
    run_own: "RunOwn", visit: "Visit", upstream: Upstream
) -> None:
    server = run_own()
    visitor = await visit(server)
    visitor.may_complain += [BROKEN_LINE, REFUSED]
    one = ChatPage(visitor.page)
    await one.send("Tell me")
    await upstream.answer("One")
    await one.ended()
    other = ChatPage(await visitor.new_tab(visitor.page.url.removeprefix(server.http())))
    await expect(other.text_of(1)).to_have_text("One")
    guests, lists = (asked_for(visitor.context, path) for path in ("/auth/guest", "/conversations?limit=50"))
    await asyncio.to_thread(start_with_another_secret, server)
    for chat in (one, other):
        await expect(chat.page).to_have_url(server.http("/"))
        await expect(chat.answers).to_have_count(0)
        await expect(chat.chats).to_have_count(0)
    await one.send("Who am I?")
    await upstream.answer("Nobody")
    await expect(one.text_of(1)).to_have_text("Nobody")
    await one.ended()
    await expect(other.chats).to_have_count(1)
    assert len(guests) == 1
    assert len(lists) < 20
    await server.metric_becomes("sluice_sessions", 2)


# ── for long ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_page_that_is_used_for_long_stays_small(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    async def answer(turn: Turn) -> None:
        await turn.answer(f"To {turn.question}.")

    upstream.will(*[answer] * 32)
    await server.metric_becomes("sluice_sessions", 0)
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    browser = await visitor.context.new_cdp_session(visitor.page)
    await browser.send("Performance.enable")

    async def held(name: str) -> float:
        await browser.send("HeapProfiler.collectGarbage")
        metrics = (await browser.send("Performance.getMetrics"))["metrics"]
        return next(float(it["value"]) for it in metrics if it["name"] == name)

    async def switch(times: int) -> None:
        for _ in range(times):
            await chat.chats.filter(has_text="Another").click()
            await expect(chat.questions).to_have_text(["Another"])
            await chat.chats.filter(has_text="Question 1").click()
            await expect(chat.questions).to_have_count(30)
            await expect(chat.text_of(30)).to_have_text("To Question 30.")

    await chat.ask("Another")
    await chat.new_chat()
    for number in range(1, 31):
        await chat.ask(f"Question {number}")
    await switch(2)
    listeners, nodes = await held(LISTENERS), await held("Nodes")
    await switch(6)
    assert await held(LISTENERS) <= listeners * 1.1
    assert await held("Nodes") <= nodes * 1.1
    await expect(chat.questions).to_have_text([f"Question {number}" for number in range(1, 31)])
    for number in (1, 15):  # what is far away is not drawn
        await chat.answer(number).scroll_into_view_if_needed()
        await expect(chat.text_of(number)).to_have_text(f"To Question {number}.")
    await expect(chat.answers.locator(".body")).to_have_text([f"To Question {n}." for n in range(1, 31)])
    assert len(upstream.turns) == 31
    await server.metric_becomes("sluice_sessions", 1)
