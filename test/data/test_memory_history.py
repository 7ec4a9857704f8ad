"""Dialogues in memory: chains, bounds, and what may not be continued yet."""

from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import Conflict, NotFound
from internal.biz.models import ItemKind, Message, OutputItem, Request, Response, Role, Settings, Status
from internal.data.memory_history import MemoryHistory

if TYPE_CHECKING:
    from test.conftest import RequestFactory


def user(text: str) -> Message:
    return Message(Role.USER, text)


def assistant(text: str) -> Message:
    return Message(Role.ASSISTANT, text)


def ended(request: Request, text: str, status: Status = Status.COMPLETED) -> Response:
    output = (OutputItem(ItemKind.REASONING, "hm"), OutputItem(ItemKind.MESSAGE, text)) if text else ()
    return Response.of(request, status, output=output)


class Dialogue:
    """Turns, each continuing the one before."""

    def __init__(self, history: MemoryHistory, make_request: "RequestFactory") -> None:
        self._history = history
        self._make_request = make_request
        self.last: str | None = None

    async def turn(self, question: str, answer: str, status: Status = Status.COMPLETED) -> str:
        request = self._make_request(question, settings=Settings(previous_response_id=self.last))
        await self._history.begin(request, request.messages)
        await self._history.finish([ended(request, answer, status)])
        self.last = request.response_id
        return request.response_id


async def test_a_chain_is_the_whole_dialogue_up_to_a_response(make_request: "RequestFactory") -> None:
    history = MemoryHistory()
    dialogue = Dialogue(history, make_request)
    ids = [await dialogue.turn(f"q{n}", f"a{n}") for n in range(3)]
    whole = tuple(message for n in range(3) for message in (user(f"q{n}"), assistant(f"a{n}")))
    assert await history.messages(ids[2]) == whole
    assert await history.messages(ids[0]) == whole[:2]


async def test_a_dialogue_can_fork(make_request: "RequestFactory") -> None:
    history = MemoryHistory()
    dialogue = Dialogue(history, make_request)
    root = await dialogue.turn("q", "a")
    left = await dialogue.turn("left", "l")
    dialogue.last = root
    right = await dialogue.turn("right", "r")
    assert [message.content for message in await history.messages(left)] == ["q", "a", "left", "l"]
    assert [message.content for message in await history.messages(right)] == ["q", "a", "right", "r"]


async def test_what_still_runs_cannot_be_continued_yet(make_request: "RequestFactory") -> None:
    history, request = MemoryHistory(), make_request()
    await history.begin(request, request.messages)
    with pytest.raises(Conflict) as error:
        await history.messages(request.response_id)
    assert error.value.param == "previous_response_id"
    await history.finish([ended(request, "a")])
    assert len(await history.messages(request.response_id)) == 2


async def test_an_unknown_response_cannot_be_continued() -> None:
    with pytest.raises(NotFound) as error:
        await MemoryHistory().messages("resp_unknown")
    assert error.value.code == "previous_response_not_found"


async def test_begin_and_finish_twice_count_once(make_request: "RequestFactory") -> None:
    history, request = MemoryHistory(), make_request("q")
    for _ in range(2):
        await history.begin(request, request.messages)
    for text in ("a", "another"):
        await history.finish([ended(request, text)])
    await history.begin(request, request.messages)
    assert await history.messages(request.response_id) == (user("q"), assistant("a"))


async def test_finishing_what_was_never_begun_is_harmless(make_request: "RequestFactory") -> None:
    history, request = MemoryHistory(), make_request()
    await history.finish([ended(request, "a")])
    with pytest.raises(NotFound):
        await history.messages(request.response_id)


@pytest.mark.parametrize(
    ("status", "text", "kept"),
    [
        (Status.COMPLETED, "a", ["q", "a"]),
        (Status.INCOMPLETE, "half", ["q", "half"]),
        (Status.INCOMPLETE, "", ["q"]),
        (Status.FAILED, "half", ["q"]),
    ],
)
async def test_what_was_said_is_kept_unless_it_failed(
    make_request: "RequestFactory", status: Status, text: str, kept: list[str]
) -> None:
    history = MemoryHistory()
    response_id = await Dialogue(history, make_request).turn("q", text, status)
    assert [message.content for message in await history.messages(response_id)] == kept


async def test_the_number_of_turns_is_bounded_and_the_least_used_go_first(
    make_request: "RequestFactory",
) -> None:
    history = MemoryHistory(max_turns=3)
    dialogues = [Dialogue(history, make_request) for _ in range(4)]
    ids = [await dialogue.turn(f"q{n}", "a") for n, dialogue in enumerate(dialogues[:3])]
    await history.messages(ids[0])
    await dialogues[3].turn("q3", "a")
    assert len(await history.messages(ids[0])) == 2
    with pytest.raises(NotFound):
        await history.messages(ids[1])


async def test_text_is_bounded_in_bytes(make_request: "RequestFactory") -> None:
    history = MemoryHistory(max_bytes=50_000)
    ids = [await Dialogue(history, make_request).turn("q" * 10_000, "a" * 10_000) for _ in range(5)]
    found = []
    for response_id in ids:
        try:
            await history.messages(response_id)
        except NotFound:
            continue
        found.append(response_id)
    assert found == ids[-2:]


async def test_a_turn_larger_than_everything_is_not_kept_and_harms_nothing(
    make_request: "RequestFactory",
) -> None:
    history = MemoryHistory(max_bytes=5000)
    huge = await Dialogue(history, make_request).turn("q" * 10_000, "a")
    with pytest.raises(NotFound):
        await history.messages(huge)
    small = await Dialogue(history, make_request).turn("q", "a")
    assert len(await history.messages(small)) == 2


async def test_a_long_dialogue_stays_whole_while_it_is_used(make_request: "RequestFactory") -> None:
    history = MemoryHistory(max_turns=10)
    mine, others = Dialogue(history, make_request), Dialogue(history, make_request)
    for n in range(5):
        await history.messages(await mine.turn(f"q{n}", f"a{n}"))
        others.last = None
        await others.turn("x", "y")
    assert mine.last is not None
    assert len(await history.messages(mine.last)) == 10
