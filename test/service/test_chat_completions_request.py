"""What Chat Completions may be asked, held against the parameters of the `openai` package."""

import json
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from pydantic import ValidationError

from internal.biz.chat import Ask
from internal.biz.errors import InvalidRequest, UnsupportedParameter
from internal.biz.models import (
    Message,
    OutputFormat,
    Role,
    Sampling,
    Settings,
    Tool,
    ToolCall,
    Tooling,
)
from internal.biz.sampling import RARE_NAMES, RareSampling
from internal.service.codec.chat_completions_request import ChatCompletionCreate

HELLO = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"a": 1}}}
NESTED: dict[str, Any] = {}
for _ in range(150):
    NESTED = {"properties": NESTED}


def ask(**fields: object) -> Ask:
    return ChatCompletionCreate.model_validate({"messages": [HELLO], **fields}).ask()


def refused(**fields: object) -> InvalidRequest:
    try:
        ask(**fields)
    except ValidationError as error:
        return ChatCompletionCreate.refusal(error)
    except InvalidRequest as error:
        return error
    raise AssertionError(f"not refused: {fields}")


def turn(*messages: object) -> tuple[Message, ...]:
    return ask(messages=list(messages)).turn


def test_the_smallest_request() -> None:
    assert ask() == Ask((Message(Role.USER, "hello"),), None, Settings(store=False))


def test_every_parameter_of_the_package_is_known() -> None:
    known = {
        *get_type_hints(CompletionCreateParamsNonStreaming),
        *get_type_hints(CompletionCreateParamsStreaming),
    }
    ours = {"top_k", "min_p", "repetition_penalty", *RARE_NAMES}
    assert set(ChatCompletionCreate.model_fields) == known | ours


@pytest.mark.parametrize("field", sorted(set(ChatCompletionCreate.model_fields) - {"messages"}))
def test_null_is_as_good_as_left_out(field: str) -> None:
    assert ask(**{field: None}) == ask()


def test_every_setting_reaches_the_engine() -> None:
    found = ask(
        model="m",
        max_completion_tokens=7,
        stop=["a", "b"],
        seed=5,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        min_p=0.1,
        frequency_penalty=-1,
        presence_penalty=1,
        repetition_penalty=1.5,
        top_a=0.2,
        logit_bias={"5": -100},
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": 1}}},
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "add"}},
        parallel_tool_calls=False,
        reasoning_effort="low",
        store=True,
        metadata={"a": "b"},
    )
    settings = Settings(
        max_output_tokens=7,
        stop=("a", "b"),
        sampling=Sampling(
            0.5, 0.9, 3, 0.1, -1.0, 1.0, 1.5, 5, RareSampling(top_a=0.2, logit_bias=((5, -100.0),))
        ),
        output_format=OutputFormat({"a": 1}, "x", strict=False),
        tooling=Tooling((Tool("add", "Adds.", {"a": 1}),), "auto", "add", parallel=False),
        reasoning_effort="low",
        metadata={"a": "b"},
    )
    assert found == Ask((Message(Role.USER, "hello"),), "m", settings)


def test_formats_and_choices() -> None:
    named = {"name": "x", "schema": {}, "strict": True, "description": "?"}
    formats = [
        ({"type": "text"}, None),
        ({"type": "json_object"}, OutputFormat()),
        ({"type": "json_schema", "json_schema": named}, OutputFormat({}, "x")),
        ({"type": "regex", "pattern": "[ab]+"}, OutputFormat(pattern="[ab]+")),
    ]
    for asked, expected in formats:
        assert ask(response_format=asked).settings.output_format == expected
    assert ask(tools=[TOOL], tool_choice="required").settings.tooling.choice == "required"
    assert ask(max_tokens=3).settings.max_output_tokens == 3
    assert ask(max_tokens=3, max_completion_tokens=3).settings.max_output_tokens == 3
    assert ask(stop="END").settings.stop == ("END",)
    assert ask(logprobs=True).settings.logprobs == 0
    assert ask(logprobs=True, top_logprobs=20).settings.logprobs == 20
    assert ask(logprobs=False, top_logprobs=0).settings.logprobs is None


def test_a_dialogue_keeps_its_order() -> None:
    text = {"type": "text", "text": "a"}
    calls = [{"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]
    assert turn(
        {"role": "user", "content": [text, text]},
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": [text]},
        {"role": "system", "content": [text], "name": "ignored"},
        {"role": "assistant", "content": [text, {"type": "refusal", "refusal": "no"}]},
    ) == (
        Message(Role.USER, "aa"),
        Message(Role.SYSTEM, "be brief"),
        Message(Role.ASSISTANT, "", (ToolCall("call_1", "add", '{"a": 1}'),)),
        Message(Role.TOOL, "a", call_id="call_1"),
        Message(Role.SYSTEM, "a"),
        Message(Role.ASSISTANT, "ano"),
    )


def test_what_a_model_said_may_come_back_as_it_was() -> None:
    said: dict[str, Any] = {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "reasoning_content": "hm",
    }
    assert turn(HELLO, said)[1] == Message(Role.ASSISTANT, "hi")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"modalities": ["text", "audio"]}, "modalities[1]"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"functions": []}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"verbosity": "low"}, "verbosity"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"prompt_cache_options": {"mode": "explicit"}}, "prompt_cache_options"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"best_of": 2}, "best_of"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.type"),
        ({"messages": [{"role": "function", "name": "x", "content": "y"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "x", "arguments": ""}}]},
            "messages[0].function_call",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "x", "type": "custom"}]}]},
            "messages[0].tool_calls[0].type",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert (type(error), error.code, error.param) == (UnsupportedParameter, "unsupported_parameter", param)
    assert param in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [HELLO] * 4097}, "messages"),
        ({"messages": [HELLO, {"content": "x"}]}, "messages[1]"),
        ({"messages": [HELLO, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [HELLO, {"role": "user", "content": None}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "content": 5}]}, "messages[0].content"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": "1"}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "regex"}}, "response_format.pattern"),
        ({"response_format": {"type": "regex", "pattern": "x" * 8193}}, "response_format.pattern"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "x", "parameters": NESTED}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"metadata": {"a": 5}}, "metadata.a"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert (error.code, error.param) == ("invalid_value", param)
    assert not isinstance(error, UnsupportedParameter)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
names = st.sampled_from([*ChatCompletionCreate.model_fields, "_x"])


@given(st.dictionaries(names, json_values, max_size=4))
def test_whatever_a_client_sends_it_is_understood_or_refused(fields: dict[str, Any]) -> None:
    try:
        assert ask(**fields).turn
    except (ValidationError, InvalidRequest) as error:
        refusal = error if isinstance(error, InvalidRequest) else ChatCompletionCreate.refusal(error)
        assert (refusal.param or "").partition(".")[0].partition("[")[0] in fields
        json.dumps(refusal.message)
