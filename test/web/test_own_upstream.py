"""A person's own upstream: set on the page, asked by the model that is for it."""

from typing import TYPE_CHECKING, Any

import pytest
from pages import ChatPage
from playwright.async_api import expect
from scripted import Upstream

if TYPE_CHECKING:
    from conftest import RunOwn, Visit


@pytest.fixture
def own(models: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of a server that lets people have upstreams, also on this machine."""
    options = {"addresses": "any"}
    return {"models": [*models, {"name": "own", "generator": "own", "options": options}]}


async def test_a_person_sets_an_upstream_and_asks_it(
    run_own: "RunOwn", own: dict[str, Any], upstream: Upstream, visit: "Visit"
) -> None:
    server = run_own(**own)
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.choose("own")
    await chat.send("Who are you?")
    await expect(chat.problems).to_contain_text("which upstream is yours")

    settings = await chat.open_settings()
    await settings.get_by_label("Address").fill(upstream.url)
    await settings.get_by_label("API key").fill("sk-mine-0123456789abcdef")
    await settings.get_by_label("Name of the model there").fill("theirs")
    await settings.get_by_role("button", name="Save").click()
    await expect(settings).to_have_count(0)

    await chat.button("Try again").click()
    turn = await upstream.asked("theirs")
    assert turn.question == "Who are you?"
    await turn.answer("One of **yours**.")
    await expect(chat.text_of(1)).to_have_text("One of yours.")

    settings = await chat.open_settings()
    await expect(settings.get_by_label("Address")).to_have_value(upstream.url)
    await expect(settings.get_by_label("API key")).to_have_value("")
    await expect(settings.get_by_label("API key")).to_have_attribute("placeholder", "********cdef")
    await settings.get_by_label("Address").fill("")
    await settings.get_by_role("button", name="Save").click()
    await expect(settings).to_have_count(0)
    await chat.send("And now?")
    await expect(chat.problems).to_contain_text("which upstream is yours")


async def test_where_nobody_may_have_one_nothing_of_it_is_shown(server: Any, visit: "Visit") -> None:
    visitor = await visit(server)
    settings = await ChatPage(visitor.page).open_settings()
    await expect(settings.get_by_label("System prompt")).to_be_visible()
    await expect(settings.get_by_label("Address")).to_have_count(0)
