"""Titles: what is asked, what becomes of the answer, and what when there is none."""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from internal.biz import titles as titles_module
from internal.biz.conversations import MAX_TITLE_CHARS, checked_title, first_words
from internal.biz.errors import GenerationFailed, InvalidRequest, Unavailable
from internal.biz.generation import FinishReason
from internal.biz.titles import AT_ONCE, Titles, Untitled, cleaned

if TYPE_CHECKING:
    from test.biz.conftest import Server
    from test.conftest import Clock


class FakeStore:
    def __init__(self) -> None:
        self.untitled: list[Untitled] = []
        self.titles: dict[str, str] = {}
        self.away = 0
        self.looks = 0

    async def take_untitled(self, limit: int) -> Sequence[Untitled]:
        self.looks += 1
        if self.away:
            self.away -= 1
            raise Unavailable("the storage is away")
        taken, self.untitled = self.untitled[:limit], self.untitled[limit:]
        return taken

    async def suggest_title(self, conversation_id: str, title: str) -> None:
        self.titles[conversation_id] = title


def untitled(name: str = "conv_1", question: str = "q", answer: str = "a") -> Untitled:
    return Untitled(name, "m", question, answer)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def titles(server: "Server", store: FakeStore) -> Titles:
    return Titles(store, server.queue, ("m",))


async def test_the_model_of_the_conversation_is_asked_and_its_answer_is_the_title(
    titles: Titles, store: FakeStore, server: "Server"
) -> None:
    store.untitled = [untitled(question="Was ist die Hauptstadt?" * 100, answer="Paris." * 1000)]
    looking = asyncio.create_task(titles.look())
    run = await server.claim()
    request = run.delivery.request
    (task,) = request.messages
    assert "in the language of the conversation" in task.content
    assert "Was ist die Hauptstadt?" in task.content
    assert "Paris." in task.content
    assert len(task.content) < 2000
    assert not request.settings.store
    await run.say("Title: ", '"Die Hauptstadt"')
    await run.finish(FinishReason.LENGTH)
    assert await looking is False
    assert store.titles == {"conv_1": "Die Hauptstadt"}
    assert await server.queue.followers(run.id) == 0


async def test_an_answer_that_failed_or_says_nothing_is_no_title(
    titles: Titles, store: FakeStore, server: "Server"
) -> None:
    store.untitled = [untitled("conv_1"), untitled("conv_2")]
    looking = asyncio.create_task(titles.look())
    failing = await server.claim()
    await failing.say("half a")
    await failing.finish(FinishReason.ERROR, GenerationFailed("broke"))
    silent = await server.claim()
    await silent.say(" \n")
    await silent.finish()
    await looking
    assert store.titles == {}


async def test_as_many_as_there_may_be_at_once_means_that_there_may_be_more(
    titles: Titles, store: FakeStore, server: "Server"
) -> None:
    store.untitled = [untitled(f"conv_{n}") for n in range(AT_ONCE + 1)]
    looking = asyncio.create_task(titles.look())
    for _ in range(AT_ONCE):
        await (await server.claim()).finish()
    assert await looking is True


async def test_a_title_that_takes_too_long_is_given_up(
    titles: Titles, store: FakeStore, server: "Server", clock: "Clock"
) -> None:
    store.untitled = [untitled()]
    looking = asyncio.create_task(titles.look())
    run = await server.claim()
    await clock.advance(titles_module.DEADLINE_S + 1)
    assert await looking is False
    assert server.revoked == [run.id]


async def test_it_looks_often_while_one_is_expected_and_seldom_otherwise(
    titles: Titles, store: FakeStore, clock: "Clock", monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    store.away = 1
    running = asyncio.create_task(titles.run())
    await clock.advance(0)
    assert store.looks == 1
    await clock.advance(titles_module.LOOK_INTERVAL_S * 2)
    assert store.looks == 1
    titles.expect()
    await clock.advance(0)
    for looks in (2, 3, 4):
        assert store.looks == looks
        await clock.advance(titles_module.LOOK_INTERVAL_S)
    now = titles_module.EXPECTING_S + 1
    await clock.advance(titles_module.LOOK_INTERVAL_S)
    looks = store.looks
    await clock.advance(titles_module.LOOK_INTERVAL_S * 2)
    assert store.looks == looks
    await clock.advance(titles_module.IDLE_INTERVAL_S)
    assert store.looks == looks + 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ("Capital of France", "Capital of France"),
        ('"Capital of France."', "Capital of France"),
        ("Title: Capital of France\nIt is Paris.", "Capital of France"),
        ("**Title:** Capital of France", "Capital of France"),
        ("# Capital of France", "Capital of France"),
        ("\n\n  Capital \t of   France  ", "Capital of France"),
        ("„Hauptstadt von Frankreich“", "Hauptstadt von Frankreich"),
        ("法国的首都。", "法国的首都"),
        ("Is Paris it?", "Is Paris it?"),
        ("a " * 40, "a a a a a a a a a a a a a a a a a a a a a a a a a"),
        ("x" * 80, "x" * 50),
        ("", ""),
        ('"" .', ""),
    ],
)
def test_a_title_is_one_short_line_without_ornament(said: str, title: str) -> None:
    assert cleaned(said) == title
    assert len(title) <= MAX_TITLE_CHARS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", "hello"),
        ("  What\nis   it? ", "What is it?"),
        ("w" * 50, "w" * 50),
        ("w" * 51, "w" * 49 + "…"),
        ("one two " * 20, "one two one two one two one two one two one two…"),
        ("", ""),
    ],
)
def test_until_then_the_first_words_are_the_title(text: str, words: str) -> None:
    assert first_words(text) == words
    assert len(words) <= MAX_TITLE_CHARS


def test_no_derived_title_holds_what_cannot_be_seen() -> None:
    hidden = "\u202eevil\u202c \u200b\x1b[31mred\u2066"
    assert first_words(hidden) == "evil [31mred"
    assert cleaned(f"\u200b\n\u200e\u200fTitle: “{hidden}”.") == "evil [31mred"
    assert first_words("\u200b" * 1000) == cleaned("\u200b \n \u2066") == ""


@pytest.mark.parametrize("title", ["a\u202eb", "\u200b", "a\x07b", "a\u2066", "a \u3164", "\ufeffa"])
def test_a_person_s_title_that_holds_it_is_refused(title: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        checked_title(title)
    assert error.value.param == "title"


def test_a_person_s_title_may_hold_any_writing() -> None:
    assert checked_title("  I ❤\ufe0f\tLisbon\n👩\u200d💻 ") == "I ❤\ufe0f Lisbon 👩\u200d💻"
