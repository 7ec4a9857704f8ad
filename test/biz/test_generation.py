"""The transcript: what an engine says, as events with numbers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from internal.biz.errors import GenerationFailed
from internal.biz.events import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
    ScoredDelta,
    TextDelta,
    TextDone,
)
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.log import ResponseLog
from internal.biz.models import (
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
from internal.biz.scores import TokenScore

if TYPE_CHECKING:
    from test.conftest import RequestFactory

MESSAGE, REASONING = ItemKind.MESSAGE, ItemKind.REASONING
REQUEST = Request("resp_1", "m", "ada", 1.0, (), Settings())
QUEUED = ResponseQueued(Response.of(REQUEST, Status.QUEUED))


def attempt(request: Request = REQUEST, emitted: Sequence[Event] = (QUEUED,), number: int = 1) -> Transcript:
    return Transcript(Delivery(request, number, emitted, None))


def test_text_becomes_the_events_of_one_message() -> None:
    run = attempt()
    run.start()
    run.add(TextDelta("Hel"))
    run.add(TextDelta("lo"))
    response = run.finish(Finished(FinishReason.STOP, Usage(3, 0, 2)))
    item = OutputItem(MESSAGE, "Hello")
    running = Response.of(REQUEST, Status.IN_PROGRESS)
    assert list(run.events) == [
        ResponseCreated(running),
        ResponseInProgress(running),
        ItemAdded(MESSAGE, 0),
        PartAdded(MESSAGE, 0),
        TextDelta("Hel"),
        TextDelta("lo"),
        TextDone(MESSAGE, "Hello", 0),
        PartDone(MESSAGE, "Hello", 0),
        ItemDone(item, 0),
        ResponseCompleted(response),
    ]
    assert run.number == 1
    assert response.output == (item,)
    assert response.text == "Hello"
    assert response.usage == Usage(3, 0, 2)
    assert response.status is Status.COMPLETED
    assert response.completed_at is not None


def test_reasoning_comes_first_and_is_an_item_of_its_own() -> None:
    run = attempt()
    run.start()
    run.add(ReasoningDelta("hm"))
    run.add(TextDelta("so"))
    response = run.finish(Finished(FinishReason.STOP))
    thought = OutputItem(REASONING, "hm")
    answer = OutputItem(MESSAGE, "so")
    assert list(run.events)[2:] == [
        ItemAdded(REASONING, 0),
        PartAdded(REASONING, 0),
        ReasoningDelta("hm"),
        TextDone(REASONING, "hm", 0),
        PartDone(REASONING, "hm", 0),
        ItemDone(thought, 0),
        ItemAdded(MESSAGE, 1),
        PartAdded(MESSAGE, 1),
        TextDelta("so"),
        TextDone(MESSAGE, "so", 1),
        PartDone(MESSAGE, "so", 1),
        ItemDone(answer, 1),
        ResponseCompleted(response),
    ]
    assert response.output == (thought, answer)
    assert response.text == "so"


def test_a_call_is_an_item_of_its_own() -> None:
    run, call = attempt(), ToolCall("call_1", "add", '{"a": 1}')
    run.start()
    run.add(TextDelta("Let me see."))
    run.add(call)
    run.add(TextDelta("So"))
    response = run.finish(Finished(FinishReason.STOP))
    kind, item = ItemKind.FUNCTION_CALL, OutputItem(ItemKind.FUNCTION_CALL, "", call=call)
    start = run.events.index(ItemAdded(kind, 1, call))
    assert run.events[start : start + 5] == (
        ItemAdded(kind, 1, call),
        ArgumentsDelta(call, 1),
        ArgumentsDone(call, 1),
        ItemDone(item, 1),
        ItemAdded(MESSAGE, 2),
    )
    assert response.output == (OutputItem(MESSAGE, "Let me see."), item, OutputItem(MESSAGE, "So"))
    assert response.answer == Message(Role.ASSISTANT, "Let me see.So", (call,))


def test_an_attempt_that_takes_over_knows_what_was_called() -> None:
    first, call = attempt(), ToolCall("call_1", "add", "{}")
    first.start()
    first.add(call)
    second = attempt(emitted=(QUEUED, *first.events), number=2)
    assert (second.called, second.answering, second.emitted) == ((call,), True, "")
    second.start()
    second.add(TextDelta("So"))
    assert second.events[0] == ItemAdded(MESSAGE, 1)


def test_an_answer_without_a_word_has_no_item() -> None:
    run = attempt()
    run.start()
    response = run.finish(Finished(FinishReason.STOP))
    assert [type(event) for event in run.events] == [ResponseCreated, ResponseInProgress, ResponseCompleted]
    assert response.output == ()


@pytest.mark.parametrize(
    ("end", "kind", "reason"),
    [
        (Finished(FinishReason.LENGTH), ResponseIncomplete, "max_output_tokens"),
        (Finished(FinishReason.CANCELLED), ResponseIncomplete, "cancelled"),
    ],
)
def test_an_unfinished_answer_keeps_its_text(end: Finished, kind: type, reason: str) -> None:
    run = attempt()
    run.start()
    run.add(TextDelta("half"))
    response = run.finish(end)
    assert type(run.events[-1]) is kind
    assert response.status is Status.INCOMPLETE
    assert response.incomplete_reason == reason
    assert response.output == (OutputItem(MESSAGE, "half", Status.INCOMPLETE),)
    assert response.failure is None


def test_a_failed_answer_says_why_and_keeps_its_text() -> None:
    run = attempt()
    run.start()
    run.add(TextDelta("half"))
    response = run.finish(Finished(FinishReason.ERROR, error=GenerationFailed("it broke", code="broken")))
    assert isinstance(run.events[-1], ResponseFailed)
    assert response.status is Status.FAILED
    assert response.failure is not None
    assert (response.failure.code, response.failure.message) == ("broken", "it broke")
    assert response.text == "half"


def test_an_error_without_a_cause_is_an_internal_one() -> None:
    response = attempt().finish(Finished(FinishReason.ERROR))
    assert response.failure is not None
    assert response.failure.code == "internal_error"


def test_a_second_start_says_nothing() -> None:
    run = attempt()
    run.start()
    events = list(run.events)
    run.start()
    assert list(run.events) == events


def test_a_job_carries_the_request(make_request: "RequestFactory") -> None:
    request = make_request("a", "b")
    run = attempt(request)
    assert run.response_id == request.response_id
    assert run.messages == request.messages
    assert run.settings == request.settings
    assert run.emitted == ""


Words = list[TextDelta | ReasoningDelta]
words: st.SearchStrategy[Words] = st.lists(
    st.builds(TextDelta, st.text(max_size=3)) | st.builds(ReasoningDelta, st.text(max_size=3)), max_size=12
)

# No log ends behind one of these: what follows is appended in the same step.
INSEPARABLE = (ResponseCreated, ItemAdded, TextDone, PartDone)


def crash(emitted: Sequence[Event], place: int) -> list[Event]:
    """What the log holds when a worker dies: the events up to `place`, as far as they are appended."""
    kept = list(emitted[: 1 + place])
    while isinstance(kept[-1], INSEPARABLE):
        kept.pop()
    return kept


def go_on(emitted: Sequence[Event], said: Words) -> Transcript:
    """The next attempt, which says all that is not said yet."""
    run = attempt(emitted=emitted, number=2)
    assert run.number == len(emitted)
    run.start()
    for word in said[sum(isinstance(event, str) for event in emitted) :]:
        run.add(word)
    return run


@given(words, st.lists(st.integers(0, 60), max_size=3))
@example([ReasoningDelta("hm"), TextDelta("so")], [8])  # the reasoning is done, the message not begun
@example([ReasoningDelta("hm"), TextDelta("so")], [4])  # an item without a word
def test_attempts_that_take_over_go_on_as_if_nothing_had_happened(said: Words, crashes: list[int]) -> None:
    straight = attempt()
    straight.start()
    for word in said:
        straight.add(word)
    response = straight.finish(Finished(FinishReason.STOP))
    expected = [QUEUED, *straight.events]

    emitted: list[Event] = [QUEUED]
    for place in sorted(crashes):
        emitted += go_on(emitted, said).events
        emitted = crash(emitted, place)
    last = go_on(emitted, said)
    again = last.finish(Finished(FinishReason.STOP))
    assert [*emitted, *last.events][:-1] == expected[:-1]
    assert type(last.events[-1]) is type(expected[-1])
    assert again.output == response.output
    # The log takes it.
    log = ResponseLog("resp_1")
    log.append(0, 0, emitted)
    log.append(0, last.number, last.events)
    assert log.ended


@given(words, st.integers(0, 60))
def test_a_job_knows_what_earlier_attempts_said(said: Words, place: int) -> None:
    emitted = crash([QUEUED, *go_on([QUEUED], said).events], place)
    run = attempt(emitted=emitted, number=2)
    assert run.emitted == "".join(event for event in emitted if isinstance(event, TextDelta))
    assert run.reasoning == "".join(event for event in emitted if isinstance(event, ReasoningDelta))


THOUGHT = (ItemAdded(REASONING, 0), PartAdded(REASONING, 0), ReasoningDelta("hm"))
THOUGHT_DONE = (
    *THOUGHT,
    TextDone(REASONING, "hm", 0),
    PartDone(REASONING, "hm", 0),
    ItemDone(OutputItem(REASONING, "hm"), 0),
)


@pytest.mark.parametrize(
    ("emitted", "answering"),
    [
        ((), False),
        (THOUGHT[:2], False),
        (THOUGHT, False),
        (THOUGHT_DONE, True),
        ((ItemAdded(MESSAGE, 0), PartAdded(MESSAGE, 0)), True),
        ((ItemAdded(MESSAGE, 0), PartAdded(MESSAGE, 0), TextDelta("so")), True),
    ],
)
def test_a_job_knows_whether_the_reasoning_is_over(emitted: Sequence[Event], answering: bool) -> None:
    running = Response.of(REQUEST, Status.IN_PROGRESS)
    begun = (QUEUED, ResponseCreated(running), ResponseInProgress(running))
    assert attempt(emitted=(*begun, *emitted)).answering is answering


def test_scores_are_told_with_what_is_done() -> None:
    request = replace(REQUEST, settings=Settings(logprobs=1))
    scores = tuple(TokenScore(text, -0.5, (("x", -1.0),)) for text in ("so", " it", " is"))
    first = attempt(request)
    first.start()
    first.add(ReasoningDelta("hm"))
    first.add(ScoredDelta("so", scores[:1]))
    first.add(TextDelta(","))
    emitted = [QUEUED, *first.events]
    second = attempt(request, emitted, 2)
    assert second.emitted == "so,"
    second.start()
    second.add(ScoredDelta(" it is", scores[1:]))
    response = second.finish(Finished(FinishReason.STOP))
    item = OutputItem(MESSAGE, "so, it is", scores=scores)
    assert list(second.events)[:-1] == [
        " it is",
        TextDone(MESSAGE, "so, it is", 1, scores),
        PartDone(MESSAGE, "so, it is", 1, scores),
        ItemDone(item, 1),
    ]
    assert response.output == (OutputItem(REASONING, "hm"), item)


def test_what_is_left_open_is_closed_when_nothing_more_is_said() -> None:
    run = attempt(emitted=crash([QUEUED, *go_on([QUEUED], [TextDelta("half")]).events], 60))
    response = run.finish(Finished(FinishReason.LENGTH))
    item = OutputItem(MESSAGE, "half", Status.INCOMPLETE)
    assert list(run.events)[:-1] == [
        TextDone(MESSAGE, "half", 0),
        PartDone(MESSAGE, "half", 0),
        ItemDone(item, 0),
    ]
    assert response.output == (item,)


def test_an_attempt_that_died_while_waiting_starts_properly() -> None:
    run = attempt(emitted=(QUEUED,), number=2)
    run.start()
    assert [type(event) for event in run.events] == [ResponseCreated, ResponseInProgress]


def test_the_text_of_a_response_leaves_out_reasoning() -> None:
    output = (OutputItem(REASONING, "hm"), OutputItem(MESSAGE, "a"), OutputItem(MESSAGE, "b"))
    assert Response.of(REQUEST, Status.COMPLETED, output=output).text == "ab"
