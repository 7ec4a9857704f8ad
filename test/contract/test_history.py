"""What every history promises: chains, forks, and what may not be continued yet."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import Conflict, NotFound
from internal.biz.models import ItemKind, Message, OutputItem, Request, Response, Role, Settings, Status
from internal.biz.ports import History

if TYPE_CHECKING:
    from test.conftest import RequestFactory


def user(text: str) -> Message:
    return Message(Role.USER, text)


def assistant(text: str) -> Message:
    return Message(Role.ASSISTANT, text)


def ended(request: Request, text: str, status: Status = Status.COMPLETED, attempt: int = 1) -> Response:
    output = (OutputItem(ItemKind.REASONING, "hm"), OutputItem(ItemKind.MESSAGE, text)) if text else ()
    return Response.of(request, status, output=output, attempt=attempt)


class Dialogue:
    """Turns, each continuing the one before."""

    def __init__(self, history: History, make_request: "RequestFactory") -> None:
        self._history = history
        self._make_request = make_request
        self.last: str | None = None

    async def begin(self, question: str) -> Request:
        request = self._make_request(question, settings=Settings(previous_response_id=self.last))
        await self._history.begin(request, request.messages)
        self.last = request.response_id
        return request

    async def turn(self, question: str, answer: str, status: Status = Status.COMPLETED) -> str:
        request = await self.begin(question)
        await self._history.finish([ended(request, answer, status)])
        return request.response_id


async def said(history: History, response_id: str) -> list[str]:
    return [message.content for message in await history.messages(response_id)]


@pytest.mark.cluster
async def test_a_chain_is_the_whole_dialogue_up_to_a_response(
    history: History, make_request: "RequestFactory"
) -> None:
    dialogue = Dialogue(history, make_request)
    ids = [await dialogue.turn(f"q{n}", f"a{n}") for n in range(3)]
    whole = tuple(message for n in range(3) for message in (user(f"q{n}"), assistant(f"a{n}")))
    assert await history.messages(ids[2]) == whole
    assert await history.messages(ids[0]) == whole[:2]


async def test_a_turn_may_be_of_several_messages(history: History, make_request: "RequestFactory") -> None:
    request = make_request("not these")
    turn = (Message(Role.SYSTEM, "be brief"), user("“ä”\n\x00🙂"), assistant(""), user("q"))
    await history.begin(request, turn)
    await history.finish([ended(request, "ü")])
    assert await history.messages(request.response_id) == (*turn, assistant("ü"))


async def test_a_dialogue_can_fork(history: History, make_request: "RequestFactory") -> None:
    dialogue = Dialogue(history, make_request)
    root = await dialogue.turn("q", "a")
    left = await dialogue.turn("left", "l")
    dialogue.last = root
    right = await dialogue.turn("right", "r")
    dialogue.last = left
    deeper = await dialogue.turn("deeper", "d")
    assert await said(history, left) == ["q", "a", "left", "l"]
    assert await said(history, right) == ["q", "a", "right", "r"]
    assert await said(history, deeper) == ["q", "a", "left", "l", "deeper", "d"]


async def test_dialogues_do_not_mix(history: History, make_request: "RequestFactory") -> None:
    one, two = Dialogue(history, make_request), Dialogue(history, make_request)
    await asyncio.gather(one.turn("a0", "x"), two.turn("b0", "y"))
    first, second = await asyncio.gather(one.turn("a1", "x"), two.turn("b1", "y"))
    assert await said(history, first) == ["a0", "x", "a1", "x"]
    assert await said(history, second) == ["b0", "y", "b1", "y"]


async def test_what_still_runs_cannot_be_continued_yet(
    history: History, make_request: "RequestFactory"
) -> None:
    dialogue = Dialogue(history, make_request)
    before = await dialogue.turn("q0", "a0")
    request = await dialogue.begin("q")
    with pytest.raises(Conflict) as error:
        await history.messages(request.response_id)
    assert error.value.param == "previous_response_id"
    assert await said(history, before) == ["q0", "a0"]
    await history.finish([ended(request, "a")])
    assert await said(history, request.response_id) == ["q0", "a0", "q", "a"]


async def test_an_unknown_response_cannot_be_continued(history: History) -> None:
    for unknown in ("resp_unknown", "", "{", "a b\n", "🙂"):
        with pytest.raises(NotFound) as error:
            await history.messages(unknown)
        assert error.value.code == "previous_response_not_found"
        assert error.value.param == "previous_response_id"


async def test_who_continues_what_is_unknown_begins_anew(
    history: History, make_request: "RequestFactory"
) -> None:
    """It was forgotten between the question and the answer."""
    dialogue = Dialogue(history, make_request)
    dialogue.last = "resp_forgotten"
    first = await dialogue.turn("q0", "a0")
    assert await said(history, await dialogue.turn("q1", "a1")) == ["q0", "a0", "q1", "a1"]
    assert await said(history, first) == ["q0", "a0"]


async def test_begin_and_finish_twice_count_once(history: History, make_request: "RequestFactory") -> None:
    request = make_request("q")
    for question in ("q", "another"):
        await history.begin(request, (user(question),))
    for text in ("a", "another"):
        await history.finish([ended(request, text)])
    await history.begin(request, request.messages)
    assert await said(history, request.response_id) == ["q", "a"]


@pytest.mark.cluster
async def test_of_several_attempts_the_latest_counts(
    history: History, make_request: "RequestFactory"
) -> None:
    """Whichever is stored first: a worker that lost its delivery may be late."""
    for order in ((1, 2, 3), (3, 1, 2), (2, 3, 1)):
        request = make_request("q")
        await history.begin(request, request.messages)
        for attempt in order:
            await history.finish([ended(request, f"a{attempt}", attempt=attempt)])
        assert await said(history, request.response_id) == ["q", "a3"]


async def test_a_later_attempt_that_failed_takes_the_answer_back(
    history: History, make_request: "RequestFactory"
) -> None:
    request = make_request("q")
    await history.begin(request, request.messages)
    await history.finish([ended(request, "a", attempt=1)])
    await history.finish([ended(request, "half", Status.FAILED, attempt=2)])
    assert await said(history, request.response_id) == ["q"]


async def test_what_the_queue_lost_has_ended(history: History, make_request: "RequestFactory") -> None:
    """Nobody knows at which attempt."""
    request = make_request("q")
    await history.begin(request, request.messages)
    await history.finish([ended(request, "half", Status.FAILED, attempt=0)])
    assert await said(history, request.response_id) == ["q"]


async def test_many_end_at_once(history: History, make_request: "RequestFactory") -> None:
    requests = [make_request(f"q{n}") for n in range(20)]
    for request in requests:
        await history.begin(request, request.messages)
    never_begun = make_request("ghost")
    await history.finish([ended(request, "a") for request in (*requests, never_begun)])
    await history.finish([])
    for n, request in enumerate(requests):
        assert await said(history, request.response_id) == [f"q{n}", "a"]
    with pytest.raises(NotFound):
        await history.messages(never_begun.response_id)


@pytest.mark.parametrize(
    ("status", "text", "kept"),
    [
        (Status.COMPLETED, "a", ["q", "a"]),
        (Status.COMPLETED, "", ["q"]),
        (Status.INCOMPLETE, "half", ["q", "half"]),
        (Status.INCOMPLETE, "", ["q"]),
        (Status.FAILED, "half", ["q"]),
    ],
)
async def test_what_was_said_is_kept_unless_it_failed(
    history: History, make_request: "RequestFactory", status: Status, text: str, kept: list[str]
) -> None:
    dialogue = Dialogue(history, make_request)
    assert await said(history, await dialogue.turn("q", text, status)) == kept
    assert await said(history, await dialogue.turn("q1", "a1")) == [*kept, "q1", "a1"]
