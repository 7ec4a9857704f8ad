"""Completions and their chunks, held against the types of the `openai` package."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion as OpenAICompletion
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from internal.biz.errors import ContextLengthExceeded, Unavailable
from internal.biz.events import Event, ReasoningDelta, ResponseQueued, ScoredDelta, TextDelta
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.models import Message, Request, Response, Role, Settings, Status, ToolCall, Usage
from internal.biz.scores import TokenScore
from internal.service.codec.chat_completions import ChatCompletion, CompletionStream

REQUEST = Request("resp_019a", "m", "u", 1763730000.5, (Message(Role.USER, "hello"),), Settings())
USAGE = Usage(input_tokens=9, cached_tokens=4, output_tokens=5, reasoning_tokens=2)
STOP = Finished(FinishReason.STOP, USAGE)
ADD, SUB = ToolCall("call_1", "add", '{"a": 1}'), ToolCall("call_2", "sub", "{}")
Said = TextDelta | ReasoningDelta | ToolCall


def run_of(end: Finished, *said: Said, settings: Settings | None = None) -> tuple[Response, list[Event]]:
    request = replace(REQUEST, settings=settings or REQUEST.settings)
    transcript = Transcript(Delivery(request, 1, (), None))
    transcript.start()
    for one in said:
        transcript.add(one)
    response = transcript.finish(end)
    return response, [ResponseQueued(Response.of(request, Status.QUEUED)), *transcript.events]


def whole(end: Finished, *said: Said, settings: Settings | None = None) -> dict[str, Any]:
    text = ChatCompletion.of(run_of(end, *said, settings=settings)[0]).model_dump_json()
    require_shape(OpenAICompletion, text)
    fields: dict[str, Any] = json.loads(text)
    return fields


def data_of(stream: bytes) -> list[str]:
    events = stream.decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [event.removeprefix("data: ") for event in events]


def chunks(batches: Sequence[Sequence[Event]], *, wants_usage: bool = False) -> list[dict[str, Any]]:
    """All chunks of a stream that ends well."""
    encoder = CompletionStream(wants_usage=wants_usage)
    *said, done = data_of(b"".join(encoder.encode(batch) for batch in batches))
    assert done == "[DONE]"
    for text in said:
        require_shape(ChatCompletionChunk, text)
    return [json.loads(text) for text in said]


def require_shape(model: type[BaseModel], text: str) -> None:
    """The package's type understands it strictly, and knows all of it but the reasoning."""
    found = model.model_validate_json(text, strict=True)
    told = json.loads(text)
    assert found.model_dump(exclude_unset=True) == told
    unknown = {name for choice in told["choices"] for name in choice.get("message", choice.get("delta"))}
    names = {"role", "content", "refusal", "tool_calls", "reasoning_content"}
    assert unknown <= names
    assert set(told) <= set(model.model_fields)


def test_a_whole_completion() -> None:
    assert whole(STOP, ReasoningDelta("hm"), TextDelta("Hi"), TextDelta("!")) == {
        "id": "chatcmpl-019a",
        "object": "chat.completion",
        "created": 1763730000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hi!",
                    "refusal": None,
                    "reasoning_content": "hm",
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 5,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }


SCORES = (TokenScore("Hé", -0.25, (("Hé", -0.25), ("\ufffd", -1.5))), TokenScore("!", -9999.0))
TOLD = [
    {
        "token": "Hé",
        "logprob": -0.25,
        "bytes": [72, 195, 169],
        "top_logprobs": [
            {"token": "Hé", "logprob": -0.25, "bytes": [72, 195, 169]},
            {"token": "\ufffd", "logprob": -1.5, "bytes": None},
        ],
    },
    {"token": "!", "logprob": -9999.0, "bytes": [33], "top_logprobs": []},
]


def test_a_whole_completion_says_how_likely_it_was() -> None:
    said = (ReasoningDelta("hm"), ScoredDelta("Hé", SCORES[:1]), ScoredDelta("!", SCORES[1:]))
    (choice,) = whole(STOP, *said, settings=Settings(logprobs=2))["choices"]
    assert choice["message"]["content"] == "Hé!"
    assert choice["logprobs"] == {"content": TOLD, "refusal": None}
    (nothing,) = whole(STOP, settings=Settings(logprobs=2))["choices"]
    assert nothing["logprobs"] == {"content": [], "refusal": None}


def test_chunks_say_how_likely_they_were() -> None:
    said = (ReasoningDelta("hm"), ScoredDelta("Hé", SCORES[:1]), ScoredDelta("!", SCORES[1:]))
    _, events = run_of(STOP, *said, settings=Settings(logprobs=2))
    one_by_one = chunks([[event] for event in events])
    found = [chunk["choices"][0] for chunk in one_by_one]
    assert [choice["delta"].get("content") for choice in found] == ["", None, "Hé", "!", None]
    assert [choice["logprobs"] for choice in found[:2] + found[4:]] == [None] * 3
    assert [choice["logprobs"]["content"] for choice in found[2:4]] == [TOLD[:1], TOLD[1:]]
    joined = [chunk["choices"][0] for chunk in chunks([events], wants_usage=True)[:-1]]
    assert [choice["logprobs"]["content"] for choice in joined if choice["logprobs"]] == [TOLD]


def test_calls_in_a_whole_completion() -> None:
    (choice,) = whole(STOP, ADD, SUB)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
            {"id": "call_2", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
        ],
    }
    (choice,) = whole(STOP, TextDelta("Well,"), ADD)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Well,", "tool_calls")


ENDS = [
    (FinishReason.STOP, (TextDelta("a"),), "stop"),
    (FinishReason.STOP, (), "stop"),
    (FinishReason.STOP, (ADD,), "tool_calls"),
    (FinishReason.LENGTH, (TextDelta("a"),), "length"),
    (FinishReason.LENGTH, (ReasoningDelta("a"),), "length"),
    (FinishReason.CANCELLED, (TextDelta("a"),), "length"),
    (FinishReason.CANCELLED, (ADD,), "length"),
]


@pytest.mark.parametrize(("reason", "said", "told"), ENDS)
def test_the_ends_of_a_completion(reason: FinishReason, said: tuple[Said, ...], told: str) -> None:
    end = Finished(reason)
    completion = whole(end, *said)
    assert completion["choices"][0]["finish_reason"] == told
    assert completion["choices"][0]["message"]["content"] == (
        None if ADD in said else "".join(one for one in said if type(one) is TextDelta)
    )
    _, events = run_of(end, *said)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks([[event] for event in events])]
    assert reasons == [None] * (len(reasons) - 1) + [told]


def test_a_response_that_was_cancelled_before_it_ran_is_empty() -> None:
    response = Response.of(REQUEST, Status.INCOMPLETE, incomplete_reason="cancelled")
    completion = ChatCompletion.of(response)
    assert completion.choices[0].message.content == ""
    assert completion.usage.total_tokens == 0


def test_a_stream_event_by_event() -> None:
    _, events = run_of(STOP, ReasoningDelta("hm"), TextDelta("H"), TextDelta("i"), ADD, SUB)
    found = chunks([[event] for event in events])
    head = {"id": "chatcmpl-019a", "object": "chat.completion.chunk", "created": 1763730000, "model": "m"}
    assert all(chunk.items() >= head.items() and set(chunk) == {*head, "choices"} for chunk in found)
    assert {(len(chunk["choices"]), chunk["choices"][0]["index"]) for chunk in found} == {(1, 0)}

    def call(index: int, **fields: object) -> dict[str, object]:
        return {"tool_calls": [{"index": index, **fields}]}

    assert [chunk["choices"][0]["delta"] for chunk in found] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "H"},
        {"content": "i"},
        call(0, id="call_1", type="function", function={"name": "add", "arguments": ""}),
        call(0, function={"arguments": '{"a": 1}'}),
        call(1, id="call_2", type="function", function={"name": "sub", "arguments": ""}),
        call(1, function={"arguments": "{}"}),
        {},
    ]
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_what_is_ready_together_is_one_chunk() -> None:
    _, events = run_of(STOP, ReasoningDelta("h"), ReasoningDelta("m"), TextDelta("H"), TextDelta("i"))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks([events])]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "Hi"},
        {},
    ]


def test_usage_is_the_last_chunk_of_a_stream_that_asked_for_it() -> None:
    _, events = run_of(STOP, TextDelta("H"), ADD)
    *found, last = chunks([events], wants_usage=True)
    assert [chunk["usage"] for chunk in found] == [None] * len(found)
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert last["choices"] == []
    assert last["usage"] == whole(STOP)["usage"]


def test_a_failure_ends_a_stream() -> None:
    error = ContextLengthExceeded("too long")
    _, events = run_of(Finished(FinishReason.ERROR, error=error), TextDelta("H"))
    *_, last = data_of(CompletionStream(wants_usage=True).encode(events))
    assert json.loads(last) == {
        "error": {
            "message": "too long",
            "type": "invalid_request_error",
            "param": None,
            "code": "context_length_exceeded",
        }
    }
    (only,) = data_of(CompletionStream(wants_usage=False).encode_error(Unavailable("restart")))
    assert json.loads(only)["error"]["code"] == "overloaded"


@given(st.lists(st.text(min_size=1), min_size=1))
def test_any_text_survives(texts: list[str]) -> None:
    _, events = run_of(STOP, *map(TextDelta, texts))
    for batches in ([[event] for event in events], [events]):
        said = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks(batches)]
        assert "".join(said) == "".join(texts)
