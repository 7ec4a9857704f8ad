"""What an upstream says, piece by piece, and what it must not be able to do."""

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.biz.events import TextDelta
from internal.biz.generation import Finished, FinishReason, Job, Output
from internal.biz.models import Message, Role, Settings, ToolCall, Usage
from internal.generator.openai.answer import MAX_TOKENS, Answer
from internal.generator.openai.faults import Fault

ASKED = Job("r", (Message(Role.USER, "hello"),), Settings())
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
)
NAMES = """choices delta content reasoning reasoning_content refusal tool_calls function name arguments id
index finish_reason usage prompt_tokens completion_tokens prompt_tokens_details cached_tokens error code type
message"""
KEYS = st.sampled_from(NAMES.split())
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5)
)


def chunk(*calls: Any, reason: str | None = None, **delta: Any) -> bytes:
    said = {**delta, "tool_calls": calls} if calls else delta
    return orjson.dumps({"choices": [{"delta": said, "finish_reason": reason}]})


def piece(
    index: int | None = None, name: str | None = None, arguments: Any = None, call_id: Any = None
) -> Any:
    fields = {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}
    return {key: value for key, value in fields.items() if value is not None}


def read(*chunks: bytes) -> tuple[list[Output], Finished]:
    """All that is said of an answer."""
    answer = Answer(ASKED, (), ())
    outputs: list[Output] = []
    for one in chunks:
        outputs += answer.feed([one])
        if answer.fault is not None:
            raise answer.fault
    last, end = answer.finish()
    return [*outputs, *last], end


def calls(*chunks: bytes, reason: str = "tool_calls") -> list[ToolCall]:
    outputs, _ = read(*chunks, chunk(reason=reason))
    return [output for output in outputs if isinstance(output, ToolCall)]


@given(st.lists(ANYTHING, max_size=4), st.booleans())
def test_whatever_it_says_is_an_answer_or_a_fault(said: list[Any], whole: bool) -> None:
    answer = Answer(ASKED, ("no",), ("secret",))
    outputs: list[Output] = []
    for one in said:
        data = orjson.dumps({"choices": [{"delta": one, "finish_reason": "stop"}]} if whole else one)
        outputs += answer.read_whole(data) if whole else answer.feed([data])
    with contextlib.suppress(Fault):
        outputs += answer.finish()[0]
    for output in outputs:
        assert isinstance(output, (str, ToolCall))
        parts = (output,) if isinstance(output, str) else (output.id, output.name, output.arguments)
        assert "\0" not in "".join(parts), "PostgreSQL cannot store it"
    usage = answer.usage()
    counts = (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens)
    assert all(type(count) is int and 0 <= count <= MAX_TOKENS for count in counts)


def test_calls_may_be_numbered_or_not() -> None:
    expected = [ToolCall("a", "now", '{"zone": 1}'), ToolCall("b", "rain", "{}")]
    numbered = [piece(0, "now", '{"zo', "a"), piece(1, "rain", "{}", "b"), piece(0, None, 'ne": 1}')]
    assert calls(*(chunk(one) for one in numbered)) == expected
    all_zero = [piece(0, "now", '{"zone": 1}', "a"), piece(0, "rain", "{}", "b")]
    assert calls(*(chunk(one) for one in all_zero)) == expected
    without = [piece(None, "now", '{"zo', "a"), piece(None, None, 'ne": 1}'), piece(None, "rain", "", "b")]
    assert calls(*(chunk(one) for one in without)) == expected
    objects = [piece(0, "now", {"zone": 1}, "a"), piece(1, "rain", None, "b")]
    assert [call.arguments for call in calls(chunk(*objects))] == ['{"zone":1}', "{}"]


@pytest.mark.parametrize("call_id", [None, "", "x" * 300, "a\0b"])
def test_a_call_without_an_id_gets_one(call_id: str | None) -> None:
    first, second = calls(chunk(piece(0, "now", "{}", call_id), piece(1, "now", "{}", call_id)))
    assert first.id.startswith("call_")
    assert first.id != second.id


def test_a_call_that_the_end_has_cut_is_not_told() -> None:
    pieces = chunk(piece(0, "now", "{}", "a"), piece(1, "rain", '{"wher', "b"))
    assert [call.id for call in calls(pieces, reason="length")] == ["a"]


@pytest.mark.parametrize("endless", [piece(0, "now", "x" * 1000, "a"), piece(None, "now", "{}", None)])
def test_calls_have_an_end(endless: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internal.generator.openai.calls.MAX_CALLS_CHARS", 100_000)
    with pytest.raises(Fault):
        calls(*([chunk(endless)] * 200))


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", FinishReason.STOP),
        ("tool_calls", FinishReason.STOP),
        ("whatever", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("max_tokens", FinishReason.LENGTH),
    ],
)
def test_ends(reason: str, expected: FinishReason) -> None:
    _, end = read(chunk(content="so"), chunk(reason=reason))
    assert end.reason is expected


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource", "content_filter"])
def test_ends_that_are_none(reason: str) -> None:
    with pytest.raises(Fault):
        read(chunk(content="so"), chunk(reason=reason))


def test_a_refusal_in_a_field_of_its_own_is_one() -> None:
    outputs, end = read(chunk(refusal="I will "), chunk(refusal="not."), chunk(reason="stop"))
    assert "".join(output for output in outputs if isinstance(output, TextDelta)) == "I will not."
    assert end.error is not None
    assert end.error.code == "refused_by_model"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": 8},
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
            Usage(9, 8, 7, 5),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 7, "prompt_cache_hit_tokens": 4}, Usage(9, 4, 7, 0)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 99}}, Usage(9, 9, 0, 0)),
        ({"prompt_tokens": 10**18, "completion_tokens": -3}, Usage(MAX_TOKENS, 0, 0, 0)),
        ({"prompt_tokens": "9", "completion_tokens": 1.5, "prompt_tokens_details": 3}, Usage()),
        ({}, Usage()),
    ],
)
def test_tokens_are_counted_by_who_knows(told: dict[str, Any], expected: Usage) -> None:
    _, end = read(chunk(content="so"), chunk(reason="stop"), orjson.dumps({"choices": [], "usage": told}))
    assert end.usage == expected
