"""What every history promises: chains, forks, conversations, and what may not be continued yet."""

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from internal.biz.conversations import MAX_SIZE
from internal.biz.errors import Conflict, InvalidRequest, NotFound
from internal.biz.ids import new_id
from internal.biz.models import (
    Attachment,
    Failure,
    ItemKind,
    Message,
    OutputItem,
    Request,
    Response,
    Role,
    Settings,
    Status,
    ToolCall,
    Usage,
)
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
    """Turns, each continuing the one before, or all of a conversation."""

    def __init__(
        self, history: History, make_request: "RequestFactory", conversation_id: str | None = None
    ) -> None:
        self._history = history
        self._make_request = make_request
        self._conversation_id = conversation_id
        self.last: str | None = None
        self.turns = 0

    def ask(self, question: str, user: str = "ada") -> Request:
        previous = self.last if self._conversation_id is None else None
        settings = Settings(previous_response_id=previous, conversation_id=self._conversation_id)
        return self._make_request(question, settings=settings, user=user, response_id=new_id("resp"))

    async def begin(self, question: str) -> Request:
        request = self.ask(question)
        await self._history.begin(request, None, begins=not self.turns, wants_title=False)
        self.turns += 1
        self.last = request.response_id
        return request

    async def turn(self, question: str, answer: str, status: Status = Status.COMPLETED) -> str:
        request = await self.begin(question)
        await self._history.finish([ended(request, answer, status)])
        return request.response_id


def following(response_id: str, user: str = "ada") -> Request:
    """A request that would continue a response."""
    settings = Settings(previous_response_id=response_id)
    return Request(new_id("resp"), "m", user, time.time(), (Message(Role.USER, "?"),), settings)


async def messages(history: History, response_id: str, max_chars: int = 0) -> tuple[Message, ...]:
    (before,) = await history.before([following(response_id)], max_chars)
    return before


async def said(history: History, response_id: str, max_chars: int = 0) -> list[str]:
    return [message.content for message in await messages(history, response_id, max_chars)]


async def test_a_chain_is_the_whole_dialogue_up_to_a_response(
    history: History, make_request: "RequestFactory"
) -> None:
    dialogue = Dialogue(history, make_request)
    ids = [await dialogue.turn(f"q{n}", f"a{n}") for n in range(3)]
    whole = tuple(message for n in range(3) for message in (user(f"q{n}"), assistant(f"a{n}")))
    assert await messages(history, ids[2]) == whole
    assert await messages(history, ids[0]) == whole[:2]


async def test_a_turn_may_be_of_several_messages(history: History, make_request: "RequestFactory") -> None:
    turn = (
        Message(Role.SYSTEM, "be brief"),
        user("“ä”\n🙂 '; DROP TABLE users; --"),
        assistant(""),
        user("q"),
    )
    request = replace(make_request(), messages=turn)
    await history.begin(request, None, begins=False, wants_title=False)
    await history.finish([ended(request, "ü")])
    assert await messages(history, request.response_id) == (*turn, assistant("ü"))


async def test_in_a_turn_nothing_new_may_be_said(history: History, make_request: "RequestFactory") -> None:
    dialogue = Dialogue(history, make_request)
    first = await dialogue.turn("q", "one")
    again = replace(following(first), messages=())
    await history.begin(again, None, begins=False, wants_title=False)
    await history.finish([ended(again, "two")])
    assert await messages(history, again.response_id) == (user("q"), assistant("one"), assistant("two"))


async def test_what_a_database_cannot_hold_is_replaced(
    history: History, make_request: "RequestFactory"
) -> None:
    request = make_request("nul \0 and half \ud83d a pair")
    await history.begin(request, None, begins=False, wants_title=False)
    await history.finish([ended(request, "\0\udc00")])
    asked, answered = await said(history, request.response_id)
    assert asked.startswith("nul ")
    assert asked.endswith(" a pair")
    assert len(answered) == 2


async def test_calls_results_and_files_are_part_of_a_dialogue(
    history: History, make_request: "RequestFactory"
) -> None:
    call, more = ToolCall("call_1", "add", '{"a": 1}'), ToolCall("call_2", "sub", "{}")
    file = Attachment("notes.txt", "text/plain", "file_1", "x" * 1000)
    asked = Message(Role.USER, "add", attachments=(file,))
    first = replace(make_request("", response_id=new_id("resp")), messages=(asked,))
    await history.begin(first, None, begins=False, wants_title=False)
    output = (
        OutputItem(ItemKind.REASONING, "hm"),
        OutputItem(ItemKind.MESSAGE, "Let me see."),
        OutputItem(ItemKind.FUNCTION_CALL, "", call=call),
        OutputItem(ItemKind.FUNCTION_CALL, "", call=more),
    )
    await history.finish([Response.of(first, Status.COMPLETED, output=output, attempt=1)])
    result = Message(Role.TOOL, "2", call_id="call_1")
    second = replace(following(first.response_id), messages=(result,))
    await history.begin(second, None, begins=False, wants_title=False)
    silent = (OutputItem(ItemKind.FUNCTION_CALL, "", call=call),)
    await history.finish([Response.of(second, Status.COMPLETED, output=silent, attempt=1)])
    answer = Message(Role.ASSISTANT, "Let me see.", (call, more))
    called = Message(Role.ASSISTANT, "", (call,))
    assert await messages(history, second.response_id) == (asked, answer, result, called)
    # What is in files, and called, counts as if it had been said.
    assert await messages(history, second.response_id, max_chars=5) == (result, called)


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
    several = await history.before([following(first), following(second), following("resp_none")], 0)
    assert [[message.content for message in before] for before in several] == [
        ["a0", "x", "a1", "x"],
        ["b0", "y", "b1", "y"],
        [],
    ]


async def test_what_still_runs_cannot_be_continued_yet(
    history: History, make_request: "RequestFactory"
) -> None:
    dialogue = Dialogue(history, make_request)
    before = await dialogue.turn("q0", "a0")
    request = await dialogue.begin("q")
    with pytest.raises(Conflict) as error:
        await history.check(following(request.response_id), None)
    assert error.value.param == "previous_response_id"
    await history.check(following(before), None)
    await history.finish([ended(request, "a")])
    await history.check(following(request.response_id), None)
    assert await said(history, request.response_id) == ["q0", "a0", "q", "a"]


async def test_an_unknown_response_cannot_be_continued(history: History) -> None:
    for unknown in ("resp_unknown", "", "a b\n", "\0", "\ud83d", "🙂", "' OR 1=1 --", "x" * 1000):
        with pytest.raises(NotFound) as error:
            await history.check(following(unknown), None)
        assert error.value.code == "previous_response_not_found"
        assert error.value.param == "previous_response_id"


async def test_another_users_response_can_be_continued_only_where_owners_do_not_matter(
    history: History, make_request: "RequestFactory"
) -> None:
    theirs = await Dialogue(history, make_request).turn("q", "a")
    await history.check(following(theirs, "eve"), None)
    await history.check(following(theirs, "ada"), "ada")
    with pytest.raises(NotFound) as error:
        await history.check(following(theirs, "eve"), "eve")
    assert error.value.code == "previous_response_not_found"


async def test_a_turn_that_may_not_continue_what_it_names_is_not_stored(
    history: History, make_request: "RequestFactory"
) -> None:
    running = await Dialogue(history, make_request).begin("q")
    theirs = await Dialogue(history, make_request).turn("q", "a")
    for named, owner, error in (
        ("resp_unknown", None, NotFound),
        (theirs, "eve", NotFound),
        (running.response_id, None, Conflict),
    ):
        request = following(named, "eve")
        with pytest.raises(error) as refusal:
            await history.begin(request, owner, begins=False, wants_title=False)
        assert refusal.value.param == "previous_response_id"
        with pytest.raises(NotFound):
            await history.check(following(request.response_id), None)
    await history.begin(following(theirs, "eve"), None, begins=False, wants_title=False)


async def test_begin_and_finish_twice_count_once(history: History, make_request: "RequestFactory") -> None:
    request = make_request("q")
    for question in ("q", "another"):
        again = replace(request, messages=(user(question),))
        await history.begin(again, None, begins=False, wants_title=False)
    for text in ("a", "another"):
        await history.finish([ended(request, text)])
    await history.begin(request, None, begins=False, wants_title=False)
    assert await said(history, request.response_id) == ["q", "a"]


async def test_of_several_attempts_the_latest_counts(
    history: History, make_request: "RequestFactory"
) -> None:
    """Whichever is stored first: a worker that lost its delivery may be late."""
    for order in ((1, 2, 3), (3, 1, 2), (2, 3, 1)):
        request = make_request("q")
        await history.begin(request, None, begins=False, wants_title=False)
        for attempt in order:
            await history.finish([ended(request, f"a{attempt}", attempt=attempt)])
        assert await said(history, request.response_id) == ["q", "a3"]


async def test_a_later_attempt_that_failed_takes_the_answer_back(
    history: History, make_request: "RequestFactory"
) -> None:
    request = make_request("q")
    await history.begin(request, None, begins=False, wants_title=False)
    await history.finish([ended(request, "a", attempt=1)])
    await history.finish([ended(request, "half", Status.FAILED, attempt=2)])
    assert await said(history, request.response_id) == ["q"]


async def test_what_the_queue_lost_has_ended(history: History, make_request: "RequestFactory") -> None:
    """Nobody knows at which attempt."""
    request = make_request("q")
    await history.begin(request, None, begins=False, wants_title=False)
    await history.finish([ended(request, "half", Status.FAILED, attempt=0)])
    await history.check(following(request.response_id), None)
    assert await said(history, request.response_id) == ["q"]


async def test_many_end_at_once(history: History, make_request: "RequestFactory") -> None:
    requests = [make_request(f"q{n}") for n in range(20)]
    await asyncio.gather(*(history.begin(one, None, begins=False, wants_title=False) for one in requests))
    never_begun = make_request("ghost")
    await history.finish([ended(request, "a") for request in (*requests, never_begun)])
    await history.finish([])
    for n, request in enumerate(requests):
        assert await said(history, request.response_id) == [f"q{n}", "a"]
    with pytest.raises(NotFound):
        await history.check(following(never_begun.response_id), None)


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


async def test_only_as_much_is_read_as_is_wanted_in_whole_turns(
    history: History, make_request: "RequestFactory"
) -> None:
    dialogue = Dialogue(history, make_request)
    last = [await dialogue.turn(f"{n}" * 10, "a" * 10) for n in range(5)][-1]
    for max_chars, turns in ((1, 1), (19, 1), (20, 2), (41, 3), (99, 5), (0, 5)):
        found = await said(history, last, max_chars)
        assert found == [text for n in range(5 - turns, 5) for text in (f"{n}" * 10, "a" * 10)], max_chars


async def test_system_messages_are_read_however_long_ago_they_were_said(
    history: History, make_request: "RequestFactory"
) -> None:
    first = replace(make_request(), messages=(Message(Role.SYSTEM, "be brief"), user("q" * 100)))
    await history.begin(first, None, begins=False, wants_title=False)
    await history.finish([ended(first, "a" * 100)])
    dialogue = Dialogue(history, make_request)
    dialogue.last = first.response_id
    last = [await dialogue.turn("q" * 100, f"a{n}") for n in range(3)][-1]
    assert await said(history, last, 50) == ["be brief", "q" * 100, "a2"]


# ── conversations ────────────────────────────────────────────────────────────────────────────────


async def before(history: History, request: Request) -> list[str]:
    (found,) = await history.before([request], 0)
    return [message.content for message in found]


async def test_a_turn_of_a_conversation_follows_its_last_answer(
    history: History, make_request: "RequestFactory"
) -> None:
    dialogue = Dialogue(history, make_request, new_id("conv"))
    for n in range(3):
        await dialogue.turn(f"q{n}", f"a{n}")
    request = await dialogue.begin("now")
    assert await before(history, request) == ["q0", "a0", "q1", "a1", "q2", "a2"]


async def test_what_failed_is_not_continued(history: History, make_request: "RequestFactory") -> None:
    dialogue = Dialogue(history, make_request, new_id("conv"))
    await dialogue.turn("q0", "a0")
    await dialogue.turn("q1", "half", Status.FAILED)
    assert await before(history, await dialogue.begin("q2")) == ["q0", "a0"]


async def test_of_turns_that_are_begun_at_once_in_a_conversation_one_is_stored(
    history: History, make_request: "RequestFactory"
) -> None:
    dialogue = Dialogue(history, make_request, new_id("conv"))
    await dialogue.turn("q0", "a0")
    asked = [dialogue.ask(f"q{n}") for n in range(1, 6)]
    begun = [history.begin(one, None, begins=False, wants_title=False) for one in asked]
    results = await asyncio.gather(*begun, return_exceptions=True)
    assert [type(result) for result in results].count(Conflict) == 4
    (winner,) = [one for one, result in zip(asked, results, strict=True) if result is None]
    await history.finish([ended(one, f"to {one.messages[0].content}") for one in asked])
    question = winner.messages[0].content
    assert await before(history, await dialogue.begin("now")) == ["q0", "a0", question, f"to {question}"]


async def test_a_conversation_answers_one_turn_at_a_time(
    history: History, make_request: "RequestFactory"
) -> None:
    dialogue = Dialogue(history, make_request, new_id("conv"))
    request = await dialogue.begin("q0")
    for refused in (
        history.check(dialogue.ask("q1"), None),
        history.begin(dialogue.ask("q1"), None, begins=False, wants_title=False),
    ):
        with pytest.raises(Conflict) as error:
            await refused
        assert error.value.code == "conversation_locked"
    await history.finish([ended(request, "", Status.FAILED)])
    await history.check(dialogue.ask("q1"), None)


async def test_a_conversation_is_its_owners_alone(history: History, make_request: "RequestFactory") -> None:
    dialogue = Dialogue(history, make_request, new_id("conv"))
    await dialogue.turn("q0", "a0")
    for owner in (None, "eve"):
        request = dialogue.ask("q1", "eve")
        for refused in (
            history.check(request, owner),
            history.begin(request, owner, begins=False, wants_title=False),
        ):
            with pytest.raises(NotFound) as error:
                await refused
            assert error.value.code == "conversation_not_found"
            assert error.value.param == "conversation"
    await history.check(dialogue.ask("q1"), None)


async def test_an_unknown_conversation_cannot_be_continued(
    history: History, make_request: "RequestFactory"
) -> None:
    for unknown in ("conv_unknown", "", "' OR 1=1 --", "\0", "\ud83d", "🙂", "x" * 1000):
        with pytest.raises(NotFound) as error:
            await history.check(Dialogue(history, make_request, unknown).ask("q"), None)
        assert error.value.code == "conversation_not_found"


async def test_a_turn_that_is_not_stored_still_follows_its_conversation(
    history: History, make_request: "RequestFactory"
) -> None:
    dialogue = Dialogue(history, make_request, new_id("conv"))
    await dialogue.turn("q0", "a0")
    aside = dialogue.ask("psst")
    aside = replace(aside, settings=replace(aside.settings, store=False))
    assert await before(history, aside) == ["q0", "a0"]
    await history.finish([ended(aside, "not this")])
    assert await before(history, await dialogue.begin("q1")) == ["q0", "a0"]


# ── what was left unfinished ─────────────────────────────────────────────────────────────────────


async def test_what_did_not_end_can_be_found(history: History, make_request: "RequestFactory") -> None:
    now = time.time()
    old = [
        make_request(f"q{n}", created_at=now - 10 + n, response_id=f"resp_{n}", model="smollm2")
        for n in range(3)
    ]
    new = make_request(created_at=now, response_id="resp_9")
    for request in (*old, new):
        await history.begin(request, None, begins=False, wants_title=False)
    await history.finish([ended(old[1], "a")])
    found = await history.unfinished(now - 1, "", 10)
    assert [(one.id, one.model, one.user, one.status) for one in found] == [
        ("resp_0", "smollm2", "ada", Status.IN_PROGRESS),
        ("resp_2", "smollm2", "ada", Status.IN_PROGRESS),
    ]
    assert [one.id for one in await history.unfinished(now - 1, "resp_0", 10)] == ["resp_2"]
    assert [one.id for one in await history.unfinished(now - 1, "", 1)] == ["resp_0"]
    lost = [replace(one, status=Status.FAILED, failure=Failure("interrupted", "…")) for one in found]
    await history.finish(lost)
    assert await history.unfinished(now - 1, "", 10) == []
    usage = Usage(1, 0, 2, 0)
    await history.finish([replace(ended(old[0], "here I am"), usage=usage, first_token_at=now)])
    assert await said(history, "resp_0") == ["q0", "here I am"]


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_conversation_that_is_full_takes_no_more(
    history: History, make_request: "RequestFactory"
) -> None:
    dialogue = Dialogue(history, make_request, new_id("conv"))
    await dialogue.turn("q", "a" * (MAX_SIZE - 10_000))
    await dialogue.turn("q" * 10_000, "", Status.FAILED)
    for refused in (
        history.check(dialogue.ask("q"), None),
        history.begin(dialogue.ask("q"), None, begins=False, wants_title=False),
    ):
        with pytest.raises(InvalidRequest) as error:
            await refused
        assert error.value.code == "conversation_full"
        assert error.value.param == "conversation"


async def test_an_answer_that_comes_late_is_not_what_is_continued(
    history: History, make_request: "RequestFactory"
) -> None:
    """It was taken for lost, and the dialogue went on without it."""
    dialogue = Dialogue(history, make_request, new_id("conv"))
    await dialogue.turn("q0", "a0")
    late = await dialogue.begin("q1")
    await history.finish([ended(late, "", Status.FAILED, attempt=0)])
    await dialogue.turn("q2", "a2")
    await history.finish([ended(late, "a1")])
    assert await before(history, await dialogue.begin("q3")) == ["q0", "a0", "q2", "a2"]


async def test_many_ends_of_one_step_are_stored(history: History, make_request: "RequestFactory") -> None:
    requests = [make_request(f"q{n}") for n in range(450)]
    for start in range(0, len(requests), 50):  # more at once would take this loop too long
        some = requests[start : start + 50]
        await asyncio.gather(*(history.begin(one, None, begins=False, wants_title=False) for one in some))
    await history.finish([ended(request, "a") for request in requests])
    assert await history.unfinished(time.time() + 1, "", 1000) == []


async def test_what_was_attached_is_remembered_with_its_message(
    history: History, make_request: "RequestFactory"
) -> None:
    files = (
        Attachment("a.txt", "text/plain", "file_1", text="grüße"),
        Attachment("b.png", "image/png", "file_2"),
    )
    message = Message(Role.USER, "", attachments=files)
    request = replace(make_request(), messages=(message,))
    await history.begin(request, None, begins=False, wants_title=False)
    await history.finish([ended(request, "a greeting")])
    assert await history.before([following(request.response_id)], 0) == [(message, assistant("a greeting"))]
