"""Who a person is on the page: a guest, a user, and nobody else."""

import asyncio
from typing import TYPE_CHECKING

from pages import ChatPage, SignInForm
from playwright.async_api import expect
from scenes import PASSWORD, register, talk
from scripted import Upstream

if TYPE_CHECKING:
    from conftest import Visit

    from test.conftest import Server

REFRESH = "/api/v1/auth/refresh"
PATIENCE_S = 10.0
"""Never reached by a test that passes."""
PUT_ASIDE_AND_TAKE_OUT = """() => {
  // A page that a browser has put aside hears nothing of what happens meanwhile.
  localStorage.removeItem("sluice.identity");
  dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true }));
}"""


async def test_a_closed_server_lets_in_who_signs_up(
    closed_server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(closed_server)
    visitor.may_complain.append("status of (401|400|409)")
    page = visitor.page
    form, chat = SignInForm(page), ChatPage(page)
    await expect(form.name).to_be_focused()
    await expect(chat.message).to_have_count(0)
    await expect(form.hint).to_be_hidden()
    await form.switch_to_sign_up()
    await form.fill("ada", "short", email="ada@example.org")
    await form.go("Sign up")
    await expect(form.problem).to_have_text("A password has 8 to 1024 characters.")
    await expect(form.password).to_be_focused()
    await form.fill("ada", PASSWORD, email="ada@example.org")
    await form.go("Sign up")
    await expect(chat.message).to_be_focused()
    await talk(chat, upstream, "Hello?", "Hello.")
    await expect(chat.chats).to_have_text(["Hello?"])
    address = page.url
    await chat.sign_out()
    await expect(form.name).to_be_visible()
    await expect(page.get_by_text("Hello")).to_have_count(0)
    # Somebody else may have the same browser, and sees nothing of it.
    await form.switch_to_sign_up()
    await form.fill("bob", PASSWORD, email="bob@example.org")
    await form.go("Sign up")
    await expect(chat.nothing_listed).to_have_text("No chats yet.")
    visitor.may_complain.append("404")
    await page.goto(address)
    await expect(page.get_by_text("This chat does not exist, or is somebody else's.")).to_be_visible()
    await chat.sign_out()
    await form.fill("ada", "not her password")
    await form.go("Sign in")
    await expect(form.problem).to_have_text("The name or the password is wrong.")
    await expect(form.name).to_have_value("ada")
    await form.fill("ada", PASSWORD)
    await form.go("Sign in")
    await expect(chat.chats).to_have_text(["Hello?"])
    await chat.chats.click()
    await expect(chat.text_of(1)).to_have_text("Hello.")


async def test_a_name_that_is_taken_is_said_where_it_stands(closed_server: "Server", visit: "Visit") -> None:
    await register(closed_server, "eve")
    visitor = await visit(closed_server)
    visitor.may_complain.append("status of 409")
    form = SignInForm(visitor.page)
    await form.switch_to_sign_up()
    await form.fill("Eve", PASSWORD, email="another@example.org")
    await form.go("Sign up")
    await expect(form.problem).to_have_text(
        "This name is taken. Choose another one, or sign in if it is yours."
    )
    await expect(form.name).to_be_focused()
    await form.name.fill("eve2")
    await visitor.page.keyboard.press("Enter")
    await expect(ChatPage(visitor.page).account("eve2")).to_be_visible()


async def test_guests_keep_their_chats_and_their_place_when_they_sign_up(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    page = visitor.page
    form, chat = SignInForm(page), ChatPage(page)
    await talk(chat, upstream, "As a guest", "Welcome.")
    await chat.message.fill("what I was about to say")
    other = ChatPage(await visitor.new_tab())
    await expect(other.chats).to_have_text(["As a guest"])
    await page.bring_to_front()
    address = page.url
    await chat.button("Sign in").click()
    await expect(form.hint).to_have_text("What you said as a guest is kept.")
    await form.switch_to_sign_up()
    await form.fill("carol", PASSWORD, email="carol@example.org")
    await form.go("Sign up")
    await expect(chat.account("carol")).to_be_visible()
    await expect(chat.chats).to_have_text(["As a guest"])
    await expect(chat.text_of(1)).to_have_text("Welcome.")
    await expect(chat.message).to_have_value("what I was about to say")
    assert page.url == address
    # All tabs are the same person.
    await expect(other.account("carol")).to_be_visible()
    await chat.sign_out()
    await expect(chat.button("Sign in")).to_be_visible()
    await expect(chat.nothing_listed).to_have_text("No chats yet.")
    await expect(chat.message).to_have_value("")
    await expect(other.nothing_listed).to_have_text("No chats yet.")


async def test_who_signs_out_is_out_at_the_server_too(server: "Server", visit: "Visit") -> None:
    await register(server, "ivy")
    visitor = await visit(server)
    page, chat = visitor.page, ChatPage(visitor.page)
    await chat.sign_in("ivy", PASSWORD)
    refresh = await page.evaluate("JSON.parse(localStorage.getItem('sluice.identity')).refresh")
    await chat.sign_out()
    await expect(chat.button("Sign in")).to_be_visible()
    # The page has not waited for the server, which hears of it soon.
    async with asyncio.timeout(PATIENCE_S):
        while (reply := await server.fetch(REFRESH, "POST", None, {"refresh_token": refresh})).status == 200:
            refresh = reply.json["refresh_token"]
    assert reply.status == 401, reply.text


async def test_a_page_that_one_comes_back_to_shows_nothing_of_somebody_else(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    await register(server, "kim")
    visitor = await visit(server)
    page, chat = visitor.page, ChatPage(visitor.page)
    visitor.may_complain.append("status of 404")
    await chat.sign_in("kim", PASSWORD)
    await talk(chat, upstream, "Hello?", "Hello.")
    await page.evaluate(PUT_ASIDE_AND_TAKE_OUT)
    await expect(chat.button("Sign in")).to_be_visible()
    await expect(page.get_by_text("Hello")).to_have_count(0)


async def test_who_clears_the_browser_is_nobody_any_more(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    await register(server, "lea")
    visitor = await visit(server)
    page, chat = visitor.page, ChatPage(visitor.page)
    await chat.sign_in("lea", PASSWORD)
    await talk(chat, upstream, "Hello?", "Hello.")
    other = await visitor.new_tab()
    await other.evaluate("localStorage.clear()")
    await expect(chat.button("Sign in")).to_be_visible()
    await expect(page.get_by_text("Hello")).to_have_count(0)
    await talk(chat, upstream, "Who am I?", "Nobody.")


async def test_a_tab_that_was_nobody_yet_is_who_signs_in(server: "Server", visit: "Visit") -> None:
    await register(server, "max")
    visitor = await visit(server, None)
    gate = await visitor.hold("**/auth/guest")
    await visitor.open()
    await gate.reached()
    other = ChatPage(await visitor.new_tab())
    await other.sign_in("max", PASSWORD)
    gate.open()
    await expect(ChatPage(visitor.page).account("max")).to_be_visible()


async def test_a_name_is_the_same_however_it_is_written(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    await register(server, "Nora")
    visitor = await visit(server)
    visitor.may_complain.append("ERR_|WebSocket")
    chat = ChatPage(visitor.page)
    await chat.sign_in("Nora", PASSWORD)
    await expect(chat.connection).to_be_hidden()
    await visitor.lose_network()
    await chat.send("mine")
    await expect(chat.waiting).to_contain_text("mine")
    await visitor.page.evaluate("localStorage.removeItem('sluice.identity')")
    await visitor.find_network()
    await visitor.open()
    await chat.sign_in("nora", PASSWORD)
    await upstream.answer("Here.")
    await expect(chat.chats).to_have_text(["mine"])


async def test_nobody_is_answered_by_the_settings_of_somebody_else(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    for name in ("olga", "paul"):
        await register(server, name)
    chat = ChatPage((await visit(server)).page)
    await chat.set(temperature="0.5", longest="", system="I am a guest.")

    async def asked_with() -> tuple[float | None, str | None]:
        await chat.new_chat()
        await chat.send("Who am I?")
        turn = await upstream.asked()
        await turn.answer("You.")
        await chat.ended()
        first = turn.body["messages"][0]
        return turn.body.get("temperature"), first["content"] if first["role"] == "system" else None

    plain = (None, None)
    # What a guest has set goes along.
    await chat.sign_in("olga", PASSWORD)
    assert await asked_with() == (0.5, "I am a guest.")
    await chat.set(temperature="0.25", longest="", system="I am Olga, and ill.")
    assert await asked_with() == (0.25, "I am Olga, and ill.")
    await chat.sign_out()
    await expect(chat.button("Sign in")).to_be_visible()
    assert await asked_with() == plain
    await chat.button("Settings").click()
    await expect(chat.setting("System prompt")).to_have_value("")
    await chat.page.keyboard.press("Escape")
    await chat.sign_in("paul", PASSWORD)
    assert await asked_with() == plain
    await chat.set(temperature="1", longest="", system="I am Paul.")
    await chat.sign_out()
    await expect(chat.button("Sign in")).to_be_visible()
    await chat.sign_in("olga", PASSWORD)
    assert await asked_with() == (0.25, "I am Olga, and ill.")


async def test_a_login_that_is_ended_elsewhere_leads_to_the_sign_in_and_back(
    closed_server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    await register(closed_server, "dora")
    account = {"username": "dora", "password": PASSWORD}
    tokens = (await closed_server.fetch("/api/v1/auth/login", "POST", body=account)).json
    visitor = await visit(closed_server)
    visitor.may_complain.append("status of 401|WebSocket")
    page = visitor.page
    form, chat = SignInForm(page), ChatPage(page)
    await form.fill("dora", PASSWORD)
    await form.go("Sign in")
    await expect(chat.account("dora")).to_be_visible()
    await talk(chat, upstream, "Hello?", "Hello.")
    address = page.url
    await chat.message.fill("what I was about to say")
    change = {"current_password": PASSWORD, "new_password": PASSWORD + "!"}
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    reply = await closed_server.fetch("/api/v1/auth/password", "POST", headers, change)
    assert reply.status < 300, reply.text
    await expect(form.name).to_be_visible()
    await expect(page.get_by_text("Hello")).to_have_count(0)
    await form.fill("dora", PASSWORD + "!")
    await form.go("Sign in")
    await expect(chat.text_of(1)).to_have_text("Hello.")
    await expect(chat.message).to_have_value("what I was about to say")
    assert page.url == address
    await page.keyboard.press("Control+Shift+O")
    await page.reload()
    await expect(chat.message).to_have_value("")


async def test_nobody_finds_what_somebody_else_has_left_in_the_browser(
    closed_server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    for name in ("gina", "hugo"):
        await register(closed_server, name)
    visitor = await visit(closed_server)
    visitor.may_complain.append("ERR_|WebSocket|401")
    page = visitor.page
    form, chat = SignInForm(page), ChatPage(page)
    await form.fill("gina", PASSWORD)
    await form.go("Sign in")
    await expect(chat.account("gina")).to_be_visible()
    await expect(chat.connection).to_be_hidden()
    await visitor.lose_network()
    await chat.send("mine")
    await expect(chat.waiting).to_contain_text("mine")
    await chat.message.fill("mine, too")
    await visitor.page.evaluate("localStorage.removeItem('sluice.identity')")
    await visitor.find_network()
    await page.goto(closed_server.http("/"))
    await form.fill("hugo", PASSWORD)
    await form.go("Sign in")
    await expect(chat.account("hugo")).to_be_visible()
    await expect(chat.nothing_listed).to_have_text("No chats yet.")
    await talk(chat, upstream, "his", "Yes.")
    await expect(chat.questions).to_have_text(["his"])
    await expect(chat.waiting).to_have_count(0)
    await chat.sign_out()
    await form.fill("gina", PASSWORD)
    await form.go("Sign in")
    await expect(chat.account("gina")).to_be_visible()
    turn = await upstream.asked()
    assert turn.question == "mine"
    await turn.answer("Here.")
    await expect(chat.chats).to_have_text(["mine"])
