"""Calls of functions: found in a model's text, and written as it writes them."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.biz.errors import InvalidSchema
from internal.biz.events import TextDelta
from internal.biz.models import Tool, ToolCall, Tooling
from internal.generator.schemas import Grammar
from internal.generator.tools import CallFormat, CallSplitter

WEATHER = Tool(
    "weather",
    "Tells the weather",
    {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"city": {"type": "string"}},
    },
)
CLOCK = Tool("clock")
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def heard(*chunks: str) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls."""
    splitter = CallSplitter((WEATHER, CLOCK))
    parts = [part for chunk in chunks for part in splitter.feed(chunk)] + splitter.finish()
    text = "".join(part for part in parts if isinstance(part, TextDelta))
    return text, [(part.name, part.arguments) for part in parts if isinstance(part, ToolCall)]


@pytest.mark.parametrize(
    ("written", "text", "calls"),
    [
        (CALL, "", [("weather", '{"city": "Köln"}')]),
        (f"Let me see.\n\n{CALL}\n", "Let me see.", [("weather", '{"city": "Köln"}')]),
        (
            f"{CALL}\n{CALL.replace('Köln', 'Rom')}",
            "",
            [("weather", f'{{"city": "{c}"}}') for c in ("Köln", "Rom")],
        ),
        (
            '<tool_call>[{"name": "clock", "arguments": {}}, {"name": "clock"}]</tool_call>',
            "",
            [("clock", "{}"), ("clock", "{}")],
        ),
        ("<tool_call>[]</tool_call>", "", []),
        ('<tool_call>{"name": "clock", "arguments": "as text"}</tool_call>', "", [("clock", "as text")]),
        # A tag in a string does not end the call.
        (
            '<tool_call>{"name": "weather", "arguments": {"city": "\\"</tool_call>"}}</tool_call>!',
            "!",
            [("weather", '{"city": "\\"</tool_call>"}')],
        ),
    ],
)
def test_calls_are_told_and_the_rest_is_text(written: str, text: str, calls: list[tuple[str, str]]) -> None:
    assert heard(written) == (text, calls)
    assert heard(*written) == (text, calls)


@pytest.mark.parametrize(
    "written",
    [
        " \n<tool_call>{oops}</tool_call> so ",
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>["weather"]</tool_call>',
        '<tool_call>{"name": "weather", "argum',
        "a <tool_cal of duty",
        "a <",
        f"<tool_call>{'[' * 100_000}</tool_call>",
    ],
)
def test_what_is_no_call_of_an_offered_tool_stays_text(written: str) -> None:
    assert heard(written) == (written, [])
    if len(written) < 1000:
        assert heard(*written) == (written, [])


PARTS = st.sampled_from([CALL, "<tool_call>", "</tool_call>", "<tool", "\n", " ", '"', "{", "text", "]"])


@given(st.lists(PARTS, max_size=8).map("".join), st.lists(st.integers(0, 200), max_size=6))
def test_it_does_not_matter_where_the_stream_is_cut(written: str, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(written)]
    chunks = [written[start:end] for start, end in itertools.pairwise(edges)]
    assert heard(*chunks) == heard(written)


def test_each_call_has_an_id_of_its_own() -> None:
    said = CallSplitter((WEATHER,)).feed(CALL + CALL)
    ids = {part.id for part in said if isinstance(part, ToolCall)}
    assert len(ids) == 2
    assert all(one.startswith("call_") for one in ids)


@pytest.mark.parametrize("is_list", [True, False])
def test_what_was_called_is_written_as_the_model_writes_it(is_list: bool) -> None:
    calls = [ToolCall("1", "weather", '{"city": "Köln"}'), ToolCall("2", "clock", "{}")]
    written = CallFormat(is_list).write(calls)
    assert written.count("<tool_call>") == (1 if is_list else 2)
    assert heard(written) == ("", [(call.name, call.arguments) for call in calls])


def accepts(form: CallFormat, tooling: Tooling, text: str) -> bool:
    return Grammar(["calls"], form.rules(tooling), "tools").accepts(text)


@pytest.mark.parametrize("is_list", [True, False])
def test_a_forced_call_follows_the_schema_of_its_tool(is_list: bool) -> None:
    form = CallFormat(is_list)

    def written(name: str, **arguments: object) -> str:
        return form.write([ToolCall("1", name, json.dumps(arguments, ensure_ascii=False))])

    any_of_them = Tooling((WEATHER, CLOCK), "required")
    assert accepts(form, any_of_them, written("weather", city="Köln"))
    assert accepts(form, any_of_them, written("clock"))
    for wrong in (written("weather"), written("weather", city=5), written("clock", x=1), written("rm"), "no"):
        assert not accepts(form, any_of_them, wrong)
    this_one = Tooling((WEATHER, CLOCK), function="clock")
    assert accepts(form, this_one, written("clock"))
    assert not accepts(form, this_one, written("weather", city="Köln"))


def test_a_list_has_several_calls_unless_they_may_not_be_parallel() -> None:
    form, call = CallFormat(is_list=True), ToolCall("1", "clock", "{}")
    assert accepts(form, Tooling((CLOCK,), "required"), form.write([call, call]))
    assert not accepts(form, Tooling((CLOCK,), "required", parallel=False), form.write([call, call]))


@pytest.mark.parametrize("count", [1, 100])
def test_the_schemas_of_tools_are_bounded_together(count: int) -> None:
    tools = [Tool(f"f{n}", parameters={"type": "array", "minItems": 10_000 // count}) for n in range(count)]
    with pytest.raises(InvalidSchema) as error:
        CallFormat(is_list=True).rules(Tooling(tuple(tools), "required"))
    assert (error.value.code, error.value.param) == ("invalid_json_schema", "tools")
