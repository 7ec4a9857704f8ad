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


def following(response_id: str) -> Request:
    settings = Settings(previous_response_id=response_id)
    return Request("resp_next", "m", "ada", 0.0, (user("?"),), settings)


async def dialogue_of(history: MemoryHistory, response_id: str) -> tuple[Message, ...]:
    """Raises NotFound when it is forgotten."""
    await history.check(following(response_id), None)
    (before,) = await history.before([following(response_id)], 0)
    return before


class Dialogue:
    """Turns, each continuing the one before."""

    def __init__(self, history: MemoryHistory, make_request: "RequestFactory") -> None:
        self._history = history
        self._make_request = make_request
        self.last: str | None = None

    async def turn(self, question: str, answer: str, status: Status = Status.COMPLETED) -> str:
        request = self._make_request(question, settings=Settings(previous_response_id=self.last))
        await self._history.begin(request, None, begins=False, wants_title=False)
        await self._history.finish([ended(request, answer, status)])
        self.last = request.response_id
        return request.response_id


async def test_the_number_of_turns_is_bounded_and_the_least_used_go_first(
    make_request: "RequestFactory",
) -> None:
    history = MemoryHistory(max_turns=3)
    dialogues = [Dialogue(history, make_request) for _ in range(4)]
    ids = [await dialogue.turn(f"q{n}", "a") for n, dialogue in enumerate(dialogues[:3])]
    await dialogue_of(history, ids[0])
    await dialogues[3].turn("q3", "a")
    assert len(await dialogue_of(history, ids[0])) == 2
    with pytest.raises(NotFound):
        await dialogue_of(history, ids[1])


async def test_text_is_bounded_in_bytes(make_request: "RequestFactory") -> None:
    history = MemoryHistory(max_bytes=50_000)
    ids = [await Dialogue(history, make_request).turn("q" * 10_000, "a" * 10_000) for _ in range(5)]
    found = []
    for response_id in ids:
        try:
            await dialogue_of(history, response_id)
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
        await dialogue_of(history, huge)
    small = await Dialogue(history, make_request).turn("q", "a")
    assert len(await dialogue_of(history, small)) == 2


async def test_a_long_dialogue_stays_whole_while_it_is_used(make_request: "RequestFactory") -> None:
    history = MemoryHistory(max_turns=10)
    mine, others = Dialogue(history, make_request), Dialogue(history, make_request)
    for n in range(5):
        await dialogue_of(history, await mine.turn(f"q{n}", f"a{n}"))
        others.last = None
        await others.turn("x", "y")
    assert mine.last is not None
    assert len(await dialogue_of(history, mine.last)) == 10


async def test_the_number_of_conversations_is_bounded(make_request: "RequestFactory") -> None:
    history = MemoryHistory(max_turns=3)
    for n in range(5):
        request = make_request(settings=Settings(conversation_id=f"conv_{n}"))
        await history.begin(request, None, begins=True, wants_title=False)
        await history.finish([ended(request, "a")])
    for n, is_known in enumerate([False, False, True, True, True]):
        request = make_request(settings=Settings(conversation_id=f"conv_{n}"))
        if is_known:
            await history.check(request, None)
            continue
        with pytest.raises(NotFound):
            await history.check(request, None)
