"""What a client is told with Chat Completions: the completion, or the chunks that it comes in.

A completion is a response: `chatcmpl-X` is `resp_X` on every other endpoint.
Source: https://platform.openai.com/docs/api-reference/chat/object
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field

from internal.biz.errors import SluiceError
from internal.biz.events import (
    ArgumentsDelta,
    Event,
    ItemAdded,
    ReasoningDelta,
    ResponseCompleted,
    ResponseFailed,
    ResponseIncomplete,
    ResponseQueued,
    ScoredDelta,
    TextDelta,
    join_deltas,
)
from internal.biz.models import ItemKind, Response, Status, ToolCall, Usage
from internal.service.api.base import Answer
from internal.service.api.chat import failure_error
from internal.service.codec.scores import whole_scores
from internal.service.errors import error_body

FinishReason = Literal["stop", "length", "tool_calls"]


class CalledFunction(Answer):
    """`arguments` is JSON as the model wrote it: it may be wrong."""

    name: str
    arguments: str


class CompletionToolCall(Answer):
    id: str
    type: Literal["function"]
    function: CalledFunction


class CompletionMessage(Answer):
    """`reasoning_content`: what the model thought before it answered."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None
    tool_calls: Annotated[list[CompletionToolCall] | None, Field(exclude_if=lambda value: value is None)] = (
        None
    )


class CompletionLogprobs(Answer):
    """`content` has for each token `token`, `logprob` (the natural logarithm of its probability), `bytes`
    (null for a part of a character), and `top_logprobs`, the same of the likeliest tokens in its place."""

    content: list[dict[str, Any]]
    refusal: None

    @classmethod
    def of(cls, response: Response) -> "CompletionLogprobs | None":
        if response.settings.logprobs is None:
            return None
        scores = [score for item in response.output for score in item.scores]
        # There may be a hundred thousand of them, which have just been made.
        return cls.model_construct(content=whole_scores(scores, None), refusal=None)


class CompletionChoice(Answer):
    """`length`: it ended before its end, at a limit of tokens or because somebody stopped it."""

    index: Literal[0]
    message: CompletionMessage
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class PromptTokens(Answer):
    cached_tokens: int


class CompletionTokens(Answer):
    reasoning_tokens: int


class CompletionUsage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens

    @classmethod
    def of(cls, usage: Usage) -> "CompletionUsage":
        return cls(
            prompt_tokens=usage.input_tokens,
            completion_tokens=usage.output_tokens,
            total_tokens=usage.input_tokens + usage.output_tokens,
            prompt_tokens_details=PromptTokens(cached_tokens=usage.cached_tokens),
            completion_tokens_details=CompletionTokens(reasoning_tokens=usage.reasoning_tokens),
        )


class ChatCompletion(Answer):
    """An answer. `created`: Unix seconds."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage

    @classmethod
    def of(cls, response: Response) -> "ChatCompletion":
        """That of a response which has ended, and has not failed."""
        reasoning = "".join(item.text for item in response.output if item.kind is ItemKind.REASONING)
        message = CompletionMessage(
            role="assistant",
            content=response.text or (None if response.calls else ""),
            refusal=None,
            reasoning_content=reasoning or None,
            tool_calls=[_call(call) for call in response.calls] or None,
        )
        choice = CompletionChoice(
            index=0,
            message=message,
            logprobs=CompletionLogprobs.of(response),
            finish_reason=_finish_reason(response),
        )
        return cls(
            id=completion_id(response.id),
            object="chat.completion",
            created=int(response.created_at),
            model=response.model,
            choices=[choice],
            usage=CompletionUsage.of(response.usage or Usage()),
        )


def completion_id(response_id: str) -> str:
    """The id of the completion that a response is."""
    return f"chatcmpl-{response_id.removeprefix('resp_')}"


def _call(call: ToolCall) -> CompletionToolCall:
    function = CalledFunction(name=call.name, arguments=call.arguments)
    return CompletionToolCall(id=call.id, type="function", function=function)


def _finish_reason(response: Response) -> FinishReason:
    """There is no reason for a cancel. `length` is the one by which clients know that the answer is not
    whole."""
    if response.status is not Status.COMPLETED:
        return "length"
    return "tool_calls" if response.calls else "stop"


STREAM = (
    "Server-sent events: `data: {…}` with a `chat.completion.chunk` for each piece of the answer, and "
    '`data: [DONE]` at the end. A failure after the first of them is `data: {"error": {…}}`, and the end. '
    "Lines that begin with a colon keep the connection awake."
)


class CompletionStream:
    """Implements Encoder: one completion as chunks. Deltas that are ready together are one."""

    def __init__(self, *, wants_usage: bool) -> None:
        """`wants_usage`: the last chunk says what it took."""
        self._wants_usage = wants_usage
        self._no_usage = b',"usage":null' if wants_usage else b""
        self._head = self._text_head = self._tail = b""
        self._calls = 0

    def encode(self, events: Sequence[Event]) -> bytes:
        if len(events) == 1 and type(events[0]) is TextDelta:  # nearly always
            return self._text(events[0])
        return b"".join([self._event(event) for _, event in join_deltas(0, events)])

    def encode_error(self, error: SluiceError) -> bytes:
        return b"data: %b\n\n" % orjson.dumps({"error": error_body(error)})

    def _text(self, delta: TextDelta) -> bytes:
        """Once per token: a whole object for each takes half as long again."""
        return b"%b%b%b" % (self._text_head, orjson.dumps(delta), self._tail)

    def _scored(self, delta: ScoredDelta) -> bytes:
        logprobs = {"content": whole_scores(delta.tokens, None), "refusal": None}
        parts = (self._text_head, orjson.dumps(delta), orjson.dumps(logprobs), self._no_usage)
        return b'%b%b},"logprobs":%b,"finish_reason":null}]%b}\n\n' % parts

    def _event(self, event: Event) -> bytes:
        match event:
            case ScoredDelta():
                return self._scored(event)
            case TextDelta():
                return self._text(event)
            case ReasoningDelta():
                return self._chunk({"reasoning_content": event})
            case ItemAdded(call=ToolCall(id=call_id, name=name)):
                self._calls += 1
                return self._call({"id": call_id, "type": "function"}, {"name": name, "arguments": ""})
            case ArgumentsDelta(call):
                return self._call({}, {"arguments": call.arguments})
            case ResponseQueued(response):
                return self._begin(response)
            case ResponseCompleted(response) | ResponseIncomplete(response):
                return self._end(response)
            case ResponseFailed(response):
                return self.encode_error(failure_error(response.failure))
        return b""

    def _begin(self, response: Response) -> bytes:
        fields = {
            "id": completion_id(response.id),
            "object": "chat.completion.chunk",
            "created": int(response.created_at),
            "model": response.model,
        }
        self._head = b'data: %b,"choices":[' % orjson.dumps(fields)[:-1]
        self._text_head = self._head + b'{"index":0,"delta":{"content":'
        self._tail = b'},"logprobs":null,"finish_reason":null}]%b}\n\n' % self._no_usage
        return self._chunk({"role": "assistant", "content": ""})

    def _chunk(self, delta: dict[str, object]) -> bytes:
        return b'%b{"index":0,"delta":%b%b' % (self._head, orjson.dumps(delta)[:-1], self._tail)

    def _call(self, fields: dict[str, object], function: dict[str, object]) -> bytes:
        return self._chunk({"tool_calls": [{"index": self._calls - 1, **fields, "function": function}]})

    def _end(self, response: Response) -> bytes:
        last = b'%b{"index":0,"delta":{},"logprobs":null,"finish_reason":"%b"}]%b}\n\n'
        data = last % (self._head, _finish_reason(response).encode(), self._no_usage)
        if self._wants_usage:
            usage = CompletionUsage.of(response.usage or Usage())
            data += b'%b],"usage":%b}\n\n' % (self._head, usage.model_dump_json().encode())
        return data + b"data: [DONE]\n\n"
