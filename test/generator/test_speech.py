"""What a model writes, and how likely its tokens were: said together, however long it was held back."""

from collections.abc import Sequence
from typing import Any

import pytest

from internal.biz.events import ReasoningDelta, ScoredDelta, TextDelta
from internal.biz.generation import Job, Output
from internal.biz.models import Message, Role, Settings, Tool, ToolCall, Tooling
from internal.biz.scores import TokenScore
from internal.generator.reasoning import ReasoningSplitter
from internal.generator.speech import Replay, Speech

TOOLS = Tooling((Tool("f"),))


def speech(*, thinking: bool = False, emitted: str = "", logprobs: int | None = 0, **settings: Any) -> Speech:
    wanted = Settings(logprobs=logprobs, **settings)
    job = Job("r", (Message(Role.USER, "x"),), wanted, emitted)
    splitter = ReasoningSplitter("thinking" if thinking else "start")
    return Speech(job, splitter, is_answer_kept=False, replay=Replay(job) if emitted else None)


def said_of(made: Speech, tokens: Sequence[str]) -> list[Output]:
    outputs: list[Output] = []
    for token in tokens:
        outputs += made.feed(token, [TokenScore(token, -0.5, ((token, -0.5),))])
        if made.ended:
            return outputs
    return [*outputs, *made.finish()]


def scored(outputs: Sequence[Output]) -> list[tuple[str, list[str]]]:
    """The texts that are said, and the tokens that they are said with."""
    return [
        (str(output), [score.text for score in output.tokens] if isinstance(output, ScoredDelta) else [])
        for output in outputs
        if isinstance(output, TextDelta)
    ]


def test_a_token_is_said_with_its_score() -> None:
    outputs = said_of(speech(), ["so", " it", " is"])
    assert scored(outputs) == [("so", ["so"]), (" it", [" it"]), (" is", [" is"])]
    (first, *_) = outputs
    assert isinstance(first, ScoredDelta)
    assert first.tokens == (TokenScore("so", -0.5, (("so", -0.5),)),)


def test_who_does_not_ask_hears_no_scores() -> None:
    outputs = said_of(speech(logprobs=None), ["so", " it"])
    assert [type(output) for output in outputs] == [TextDelta, TextDelta]


def test_tokens_without_scores_are_said() -> None:
    assert [type(output) for output in speech().feed("so")] == [TextDelta]


def test_several_tokens_of_one_step_are_said_together() -> None:
    (output,) = speech().feed("so it", [TokenScore("so", -1.0), TokenScore(" it", -2.0)])
    assert scored([output]) == [("so it", ["so", " it"])]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["<", "b", ">"], [("<b", ["<", "b"]), (">", [">"])]),
        (["<th", "ink>", "hm", "</", "think", ">", "\n\n", "so", "!"], [("so", ["so"]), ("!", ["!"])]),
        (["<think>", "a<", "b", "</think>", "so"], [("so", ["so"])]),
        (["<think>hm</think>\n\nso"], [("so", ["<think>hm</think>\n\nso"])]),
        (["<think>", "hm", "</", "think>\n\nso"], [("so", ["think>\n\nso"])]),
        (["<think>", "hm"], []),
    ],
)
def test_thoughts_and_their_tags_have_no_scores(
    tokens: list[str], expected: list[tuple[str, list[str]]]
) -> None:
    outputs = said_of(speech(), tokens)
    assert scored(outputs) == expected
    assert not any(isinstance(output, ScoredDelta) for output in outputs if type(output) is ReasoningDelta)


def test_a_thought_that_the_template_opens_has_no_scores() -> None:
    outputs = said_of(speech(thinking=True), ["hm", "</", "think>", "so"])
    assert scored(outputs) == [("so", ["so"])]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["one", " EN", "D", " two"], [("one", ["one"]), (" ", [" EN"])]),
        (["one", "E", "N", "x"], [("one", ["one"]), ("ENx", ["E", "N", "x"])]),
        (["one", "E", "N"], [("one", ["one"]), ("EN", ["E", "N"])]),
        (["E", "ND"], []),
    ],
)
def test_what_a_stop_string_holds_back_is_said_with_its_tokens(
    tokens: list[str], expected: list[tuple[str, list[str]]]
) -> None:
    assert scored(said_of(speech(stop=("END",)), tokens)) == expected


def test_calls_have_no_scores() -> None:
    tokens = ["so", "\n", "<tool_call>", '{"name": "f"}', "</tool_call>"]
    outputs = said_of(speech(tooling=TOOLS), tokens)
    assert scored(outputs) == [("so", ["so"])]
    assert isinstance(outputs[1], ToolCall)
    more = ["<tool_call>", '{"name": "f"}', "</tool_call>\n", "so"]
    assert scored(said_of(speech(tooling=TOOLS), more)) == [("\nso", ["so"])]
    none = ["<tool_call>", "nonsense", "</tool_call>", "!"]
    assert scored(said_of(speech(tooling=TOOLS), none)) == [
        ("<tool_call>nonsense</tool_call>", ["<tool_call>", "nonsense", "</tool_call>"]),
        ("!", ["!"]),
    ]


def test_what_is_said_again_has_no_scores_twice() -> None:
    outputs = said_of(speech(emitted="so it"), ["so", " it is", "!"])
    assert scored(outputs) == [(" is", [" it is"]), ("!", ["!"])]
