"""Titles that SmolLM2 finds for conversations, in the background."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from test.e2e.conftest import RunServer, Server, Until, Visitor

pytestmark = pytest.mark.real_model

QUESTION = (
    "What is the capital of France, and which river runs through it? Please answer in one short sentence."
)
FIRST_WORDS = "What is the capital of France, and which river…"
ECHO = {"name": "echo", "generator": "echo", "options": {"interval": "2ms"}}


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    options = {"slots": 2, "context": 1024, "temperature": 0, "max_output_tokens": 30}
    smollm2 = {"name": "smollm2", "generator": "llamacpp", "options": options}
    with run_server({"models": [smollm2, ECHO]}) as server:
        yield server


class Titles:
    """What a guest's conversations are called."""

    def __init__(self, guest: "Visitor", until: "Until") -> None:
        self.guest = guest
        self._until = until

    async def of(self, conversation_id: str) -> str:
        titles = {it["session_id"]: str(it["title"]) for it in await self.guest.conversations()}
        return titles[conversation_id]

    async def changes(self, conversation_id: str, before: str) -> str:
        """Wait until it is not called `before` any more."""

        async def has_changed() -> bool:
            return await self.of(conversation_id) != before

        await self._until(has_changed)
        return await self.of(conversation_id)


@pytest.fixture
def titles(server: "Server", visitor: "type[Visitor]", until: "Until") -> Titles:
    return Titles(visitor(server), until)


async def test_a_conversation_has_a_title_after_its_first_exchange(titles: Titles) -> None:
    guest = titles.guest
    async with guest.text() as socket:
        await socket.send(QUESTION)
        await socket.recv()  # the answer has begun: it is too early for a title
        (found,) = await guest.conversations()
        conversation = found["session_id"]
        assert found["title"] == FIRST_WORDS
    title = await titles.changes(conversation, FIRST_WORDS)
    assert 0 < len(title) <= 50
    assert title == " ".join(title.split())
    assert not QUESTION.startswith(title)
    assert "…" not in title
    # It is found by its title, and keeps it.
    assert [it["title"] for it in await guest.conversations(f"?q={title.split()[0]}")] == [title]
    await guest.ask("Thank you!", session_id=conversation)
    assert await titles.of(conversation) == title
    # What is asked to find a title is nobody's conversation.
    assert len(await guest.conversations()) == 1
    assert len(await guest.history(conversation)) == 4


async def test_a_conversation_that_a_person_has_named_keeps_its_name(titles: Titles, until: "Until") -> None:
    guest = titles.guest
    async with guest.responses() as socket:
        ahead = await guest.call("POST", "/conversations", {"title": "Mine"})
        await socket.create(QUESTION, conversation=ahead.json["session_id"])
        await socket.rest()
    async with guest.text() as text:
        await text.send(QUESTION)
        await text.recv()
        renamed = next(it["session_id"] for it in await guest.conversations() if it["title"] == FIRST_WORDS)
        await guest.call("PATCH", f"/conversations/{renamed}", {"title": "Mine, too"})

    async def has_had_an_exchange() -> bool:
        return len(await guest.history(renamed)) == 2

    await until(has_had_an_exchange)
    # One that begins later has got its title: it was the others' turn before.
    later = (await guest.ask("Tell me about the moon."))["session_id"]
    await titles.changes(later, "Tell me about the moon.")
    assert await titles.of(ahead.json["session_id"]) == "Mine"
    assert await titles.of(renamed) == "Mine, too"


async def test_an_echo_has_no_words_of_its_own_for_a_title(titles: Titles) -> None:
    guest = titles.guest
    echoed = (await guest.ask("hello", model="echo"))["session_id"]
    later = (await guest.ask("Tell me about the sun."))["session_id"]
    await titles.changes(later, "Tell me about the sun.")
    assert await titles.of(echoed) == "hello"
