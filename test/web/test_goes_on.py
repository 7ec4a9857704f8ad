"""An answer goes on whatever happens: reloads, crashes, restarts, a laptop that is closed. To the letter."""

import asyncio
from typing import TYPE_CHECKING

from pages import ChatPage
from playwright.async_api import Locator, WebSocket, expect
from scripted import Upstream, prose

if TYPE_CHECKING:
    from conftest import RunOwn, Stack, Visit

    from test.conftest import Server

BROKEN_LINE = r"WebSocket connection to|net::ERR_|status of 503"
SLOW = "".join(f"chunk {n}: hello" for n in range(1, 61))
"""What the model `slow` says to `hello`, in three seconds."""


async def grown(place: Locator, chars: int = 1) -> None:
    """Wait until it says more than so much."""
    handle = await place.element_handle()
    assert handle is not None
    await place.page.wait_for_function("([it, chars]) => it.textContent.length > chars", arg=[handle, chars])


async def tries(chat: ChatPage, count: int) -> None:
    """Wait until the page has tried to connect so often from now on."""
    tried: asyncio.Queue[WebSocket] = asyncio.Queue()
    chat.page.on("websocket", tried.put_nowait)
    for _ in range(count):
        await tried.get()


async def whole(chat: ChatPage, *texts: str) -> None:
    """The chat has ended, and the answers are exactly these."""
    await chat.ended()
    await expect(chat.answers).to_have_count(len(texts))
    for number, text in enumerate(texts, 1):
        await expect(chat.text_of(number)).to_have_text(text)


# ── reload ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_reload_in_the_text_goes_on_with_the_next_token(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.send("Tell me")
    await upstream.say("One", " two")
    await expect(chat.text_of(1)).to_have_text("One two")
    await visitor.page.reload()
    await expect(chat.text_of(1)).to_have_text("One two")
    await upstream.say(" three", " four")
    await expect(chat.text_of(1)).to_have_text("One two three four")
    await upstream.answer(" five")
    await whole(chat, "One two three four five")
    await visitor.page.reload()
    await whole(chat, "One two three four five")
    await expect(chat.questions).to_have_text(["Tell me"])
    assert len(upstream.turns) == 1


async def test_a_reload_in_the_thoughts_goes_on_in_them(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.send("Tell me")
    await upstream.think("Let", " me")
    await expect(chat.thoughts).to_have_text("Let me")
    await visitor.page.reload()
    await expect(chat.thoughts).to_have_text("Let me")
    await upstream.think(" see.")
    await expect(chat.thoughts).to_have_text("Let me see.")
    await upstream.answer("So", " it is.")
    await whole(chat, "So it is.")
    await expect(chat.thoughts).to_have_text("Let me see.")


async def test_a_reload_before_the_first_token_misses_none(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.send("Tell me")
    turn = await upstream.asked()
    await visitor.page.reload()
    await expect(chat.answers).to_have_count(1)
    await turn.answer("Here", " it is.")
    await whole(chat, "Here it is.")


async def test_a_reload_in_the_queue_keeps_the_place(
    run_own: "RunOwn", visit: "Visit", all_upstream: Upstream, upstream: Upstream
) -> None:
    server = run_own(models=[all_upstream.model("scripted", slots=1)])
    visitors = [await visit(server) for _ in range(4)]
    for number, visitor in enumerate(visitors, 1):
        await ChatPage(visitor.page).send(f"Question {number}")
        await expect(ChatPage(visitor.page).answers).to_have_count(1)
    page = visitors[-1].page
    chat = ChatPage(page)
    await expect(chat.answer(1)).to_contain_text("2 messages are ahead of yours")
    await page.reload()
    await expect(chat.answer(1)).to_contain_text("2 messages are ahead of yours")
    await upstream.answer("First.")
    await expect(chat.answer(1)).to_contain_text("1 message is ahead of yours")
    await page.reload()
    await expect(chat.answer(1)).to_contain_text("1 message is ahead of yours")
    for number in (2, 3):
        await upstream.answer(f"To {number}.")
    await upstream.answer("Now", " you.")
    await whole(chat, "Now you.")
    assert [turn.question for turn in upstream.turns] == [f"Question {n}" for n in range(1, 5)]


async def test_a_reload_with_several_models_goes_on_in_each(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.choose("scripted", "other")
    await chat.send("Tell me")
    one, other = await upstream.asked("scripted"), await upstream.asked("other")
    await one.say("One")
    await other.say("Other")
    await expect(chat.text_of(1)).to_have_text("One")
    await expect(chat.text_of(2)).to_have_text("Other")
    await visitor.page.reload()
    await one.say(" goes")
    await other.answer(" ends.")
    await expect(chat.text_of(1)).to_have_text("One goes")
    await one.answer(" on.")
    await whole(chat, "One goes on.", "Other ends.")
    assert len(upstream.turns) == 2


async def test_fifty_reloads_in_a_row_lose_nothing(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server)
    visitor.may_complain.append(BROKEN_LINE)  # it leaves while it loads
    chat = ChatPage(visitor.page)
    await chat.send("Tell me")
    turn = await upstream.asked()
    text = prose(90)
    async with asyncio.TaskGroup() as group:
        group.create_task(turn.stream(text, per_second=30))
        await expect(chat.answers).to_have_count(1)
        await visitor.page.wait_for_url("**/c/*")
        for _ in range(50):
            await visitor.page.goto(visitor.page.url, wait_until="commit")
    await turn.finish()
    await whole(chat, text)
    assert len(upstream.turns) == 1
    await server.metric_becomes("sluice_sessions", 1)


# ── the server dies ──────────────────────────────────────────────────────────────────────────────


async def test_a_killed_server_is_waited_for(stack: "Stack", visit: "Visit") -> None:
    visitor = await visit(stack)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await chat.choose("slow")
    await chat.send("hello")
    await grown(chat.text_of(1))
    await stack.kill_server()
    await expect(chat.connection).to_have_text("Connecting again…")
    await tries(chat, 2)
    await chat.watch_connection()
    await stack.start_server()
    await chat.connection_has_said("Connected again.")
    await whole(chat, SLOW)
    await expect(chat.questions).to_have_text(["hello"])
    await expect(chat.connection).to_be_hidden()
    await expect(chat.problems).to_have_count(0)


async def test_a_server_and_a_worker_killed_at_once_go_on(stack: "Stack", visit: "Visit") -> None:
    visitor = await visit(stack)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await chat.choose("slow")
    await chat.send("hello")
    await grown(chat.text_of(1))
    await asyncio.gather(stack.kill_server(), stack.kill_worker())
    await expect(chat.connection).to_have_text("Connecting again…")
    await stack.start_server()
    await stack.start_worker()
    await whole(chat, SLOW)


async def test_what_a_dead_server_had_in_memory_can_be_asked_again(
    own_server: "Server", visit: "Visit", upstream: Upstream
) -> None:
    visitor = await visit(own_server)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await chat.send("Tell me")
    await upstream.say("One", " two")
    await expect(chat.text_of(1)).to_have_text("One two")
    await asyncio.to_thread(own_server.kill)
    await expect(chat.connection).to_have_text("Connecting again…")
    await asyncio.to_thread(own_server.start_again)
    await expect(chat.answer(1).get_by_role("alert")).to_contain_text(
        "The server stopped before this answer was complete; ask again."
    )
    await expect(chat.text_of(1)).to_have_text("One two")
    await chat.button("Try again").click()
    again = await upstream.asked()
    while again.over.is_set():
        again = await upstream.asked()
    await again.answer("One", " two", " three")
    await whole(chat, "One two three")
    await expect(chat.questions).to_have_text(["Tell me"])
    await expect(chat.problems).to_have_count(0)


async def test_a_restart_waits_for_what_runs(run_own: "RunOwn", visit: "Visit", upstream: Upstream) -> None:
    server = run_own(shutdown={"timeout": "60s"})
    visitor = await visit(server)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await chat.send("Tell me")
    await upstream.say("One")
    await expect(chat.text_of(1)).to_have_text("One")
    server.signal()
    await upstream.answer(" two")
    await whole(chat, "One two")
    assert await server.exit_status() == 0
    await expect(chat.connection).to_have_text("Connecting again…")
    await chat.watch_connection()
    await asyncio.to_thread(server.start_again)
    await chat.connection_has_said("Connected again.")
    await whole(chat, "One two")
    await expect(chat.problems).to_have_count(0)


async def test_a_restart_that_cannot_wait_keeps_what_was_said(
    run_own: "RunOwn", visit: "Visit", upstream: Upstream
) -> None:
    server = run_own(shutdown={"timeout": "100ms"})
    visitor = await visit(server)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await chat.send("Tell me")
    await upstream.say("One", " two")
    await expect(chat.text_of(1)).to_have_text("One two")
    server.signal()
    assert await server.exit_status() == 0
    await expect(chat.connection).to_have_text("Connecting again…")
    await asyncio.to_thread(server.start_again)
    await chat.ended()
    for _ in range(2):
        await expect(chat.text_of(1)).to_have_text("One two")
        await expect(chat.answer(1)).to_contain_text("Stopped.")
        await visitor.page.reload()
    await chat.button("Answer again").click()
    await upstream.answer("One two three")
    await whole(chat, "One two three")


async def test_a_restart_in_front_of_workers_goes_on_with_the_next_token(
    stack: "Stack", visit: "Visit"
) -> None:
    visitor = await visit(stack)
    visitor.may_complain.append(BROKEN_LINE)
    chat = ChatPage(visitor.page)
    await chat.choose("slow")
    await chat.send("hello")
    await grown(chat.text_of(1))
    stack.server.signal()
    assert await stack.server.exit_status() == 0
    await stack.start_server()
    await whole(chat, SLOW)


# ── nobody looks ─────────────────────────────────────────────────────────────────────────────────


async def test_a_closed_tab_finds_the_answer_complete(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.send("Tell me")
    await upstream.say("One")
    await expect(chat.text_of(1)).to_have_text("One")
    address = visitor.page.url
    nobody = await visitor.context.new_page()
    await visitor.page.close()
    await upstream.answer(" two")
    await nobody.goto(address)
    await whole(ChatPage(nobody), "One two")


async def test_a_laptop_that_was_closed_connects_anew(
    visit: "Visit", server: "Server", upstream: Upstream
) -> None:
    visitor = await visit(server, None)
    await visitor.page.clock.install()
    sockets: list[str] = []
    visitor.page.on("websocket", lambda socket: sockets.append(socket.url))
    await visitor.open()
    chat = ChatPage(visitor.page)
    await chat.send("Tell me")
    await upstream.say("One")
    await expect(chat.text_of(1)).to_have_text("One")
    await visitor.page.clock.fast_forward("01:00:00")
    await upstream.answer(" two")
    await whole(chat, "One two")
    assert len(sockets) == 2
    await server.metric_becomes("sluice_sessions", 1)


async def test_a_frozen_page_catches_up(visit: "Visit", server: "Server", upstream: Upstream) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.send("Tell me")
    await upstream.say("One")
    await expect(chat.text_of(1)).to_have_text("One")
    browser = await visitor.context.new_cdp_session(visitor.page)
    await browser.send("Page.setWebLifecycleState", {"state": "frozen"})
    await upstream.answer(*(f" {n}" for n in range(100)))
    await browser.send("Page.setWebLifecycleState", {"state": "active"})
    await whole(chat, "One" + "".join(f" {n}" for n in range(100)))
