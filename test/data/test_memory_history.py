"""What the history in memory promises beyond the port: bounds."""

from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import NotFound
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
