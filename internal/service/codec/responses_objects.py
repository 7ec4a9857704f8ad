"""What a client is told with the Responses API, over a WebSocket as over HTTP: objects and events.

Source: https://platform.openai.com/docs/api-reference/responses/object
"""

from collections.abc import Sequence
from typing import Any

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
    TextDelta,
    TextDone,
    scores_of,
    unscored,
)
from internal.biz.log import ResponseLog
from internal.biz.models import (
    ItemKind,
    OutputFormat,
    OutputItem,
    Response,
    Settings,
    Status,
    Tool,
    Tooling,
    Usage,
)
from internal.biz.scores import TokenScore, count_scores
from internal.service.codec.scores import said_scores, whole_scores


def response_object(response: Response) -> dict[str, Any]:
    """The API's `response` object; and `batch`, of which it is an answer, where several models were asked."""
    settings, usage, seat = response.settings, response.usage, response.batch
    return {
        "id": response.id,
        "object": "response",
        "created_at": int(response.created_at),
        "completed_at": response.completed_at and int(response.completed_at),
        "status": response.status.value,
        "background": settings.background,
        "model": response.model,
        "output": [item_object(response.id, i, item) for i, item in enumerate(response.output)],
        "error": response.failure and {"code": response.failure.code, "message": response.failure.message},
        "incomplete_details": response.incomplete_reason and {"reason": response.incomplete_reason},
        **_settings(settings),
        "usage": usage and _usage(usage),
        **({} if seat is None else {"batch": {"id": seat.batch_id, "position": seat.position}}),
    }


def _settings(settings: Settings) -> dict[str, Any]:
    tooling, sampling = settings.tooling, settings.sampling
    return {
        "instructions": settings.instructions,
        "previous_response_id": settings.previous_response_id,
        "conversation": settings.conversation_id and {"id": settings.conversation_id},
        "max_output_tokens": settings.max_output_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_logprobs": settings.logprobs or 0,
        "truncation": settings.truncation.value,
        "store": settings.store,
        "metadata": dict(settings.metadata),
        "parallel_tool_calls": bool(tooling.tools) and tooling.parallel,
        "tool_choice": _tool_choice(tooling),
        "tools": [_tool(tool) for tool in tooling.tools],
        "text": {"format": _format(settings.output_format)},
        "reasoning": {"effort": settings.reasoning_effort, "summary": None},
    }


def _tool_choice(tooling: Tooling) -> str | dict[str, str]:
    if tooling.function is not None:
        return {"type": "function", "name": tooling.function}
    return tooling.choice if tooling.tools else "none"


def _tool(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
        "strict": tool.strict,
    }


def _format(output: OutputFormat | None) -> dict[str, Any]:
    if output is None:
        return {"type": "text"}
    if output.pattern is not None:
        return {"type": "regex", "pattern": output.pattern}
    if output.schema is None:
        return {"type": "json_object"}
    fields = {"name": output.name, "schema": dict(output.schema), "strict": output.strict}
    return {"type": "json_schema", **fields}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


_PREFIX = {ItemKind.MESSAGE: "msg", ItemKind.REASONING: "rs", ItemKind.FUNCTION_CALL: "fc"}
_PART = {ItemKind.MESSAGE: "output_text", ItemKind.REASONING: "reasoning_text"}


def item_id(response_id: str, kind: ItemKind, index: int) -> str:
    """The id of an output item."""
    return f"{_PREFIX[kind]}_{response_id.removeprefix('resp_')}_{index}"


def part_object(kind: ItemKind, text: str, scores: Sequence[TokenScore] = ()) -> dict[str, Any]:
    """A content part of an output item."""
    if kind is ItemKind.REASONING:
        return {"type": "reasoning_text", "text": text}
    logprobs = whole_scores(scores, [])
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def item_object(response_id: str, index: int, item: OutputItem) -> dict[str, Any]:
    """An output item."""
    running = item.status is Status.IN_PROGRESS
    fields: dict[str, Any] = {
        "id": item_id(response_id, item.kind, index),
        "type": item.kind.value,
        "status": item.status.value,
    }
    if item.call is not None:
        arguments = "" if running else item.call.arguments
        return {**fields, "call_id": item.call.id, "name": item.call.name, "arguments": arguments}
    fields["content"] = [] if running and not item.text else [part_object(item.kind, item.text, item.scores)]
    if item.kind is ItemKind.REASONING:
        return {**fields, "summary": []}
    return {**fields, "role": "assistant"}


_RESPONSE_EVENTS: dict[type, str] = {
    ResponseCreated: "response.created",
    ResponseInProgress: "response.in_progress",
    ResponseCompleted: "response.completed",
    ResponseIncomplete: "response.incomplete",
    ResponseFailed: "response.failed",
}


MAX_REPEATED_SCORES = 5000
"""How many likelihoods an event repeats that deltas have told before, about half a megabyte of them: many
more take long to write, and no frame that the `openai` package takes has more than a megabyte."""


def event_object(log: ResponseLog, number: int, event: Event) -> dict[str, Any]:
    """Event `number` of `log` as the API has it."""
    if not isinstance(event, str) and _repeated(event) > MAX_REPEATED_SCORES:
        event = unscored(event)
    return {**_fields(log, number, event), "sequence_number": number}


def _repeated(event: Event) -> int:
    """How many likelihoods it has that deltas have had before."""
    match event:
        case TextDone(scores=scores) | PartDone(scores=scores):
            return count_scores(scores)
        case ItemDone(item):
            return count_scores(item.scores)
        case ResponseCompleted(response) | ResponseIncomplete(response) | ResponseFailed(response):
            return sum(count_scores(item.scores) for item in response.output)
    return 0


def _fields(log: ResponseLog, number: int, event: Event) -> dict[str, Any]:
    response_id = log.response_id
    match event:
        case TextDelta() | ReasoningDelta():
            kind = ItemKind.REASONING if isinstance(event, ReasoningDelta) else ItemKind.MESSAGE
            fields = {"type": f"response.{_PART[kind]}.delta", "delta": str(event)}
            place = part_place(response_id, kind, log.output_index(number))
            return {**fields, **place, **_logprobs(kind, scores_of((event,)))}
        case ResponseQueued(response, position, workers):
            queue: dict[str, Any] = {"position": position}
            if not workers:
                queue["message"] = f"no worker for {response.model} takes requests now; this one waits"
            return {"type": "response.queued", "response": response_object(response), "queue": queue}
        case ItemAdded(kind, index, call):
            item = item_object(response_id, index, OutputItem(kind, "", Status.IN_PROGRESS, call))
            return {"type": "response.output_item.added", "output_index": index, "item": item}
        case PartAdded(kind, index):
            place = part_place(response_id, kind, index)
            return {"type": "response.content_part.added", **place, "part": part_object(kind, "")}
        case TextDone(kind, text, index, scores):
            fields = {"type": f"response.{_PART[kind]}.done", "text": text}
            return {**fields, **part_place(response_id, kind, index), **_logprobs(kind, scores)}
        case PartDone(kind, text, index, scores):
            place, part = part_place(response_id, kind, index), part_object(kind, text, scores)
            return {"type": "response.content_part.done", **place, "part": part}
        case ArgumentsDelta(call, index):
            fields = {"type": "response.function_call_arguments.delta", "delta": call.arguments}
            return {**fields, **_place(response_id, ItemKind.FUNCTION_CALL, index)}
        case ArgumentsDone(call, index):
            fields = {"type": "response.function_call_arguments.done", "name": call.name}
            place = _place(response_id, ItemKind.FUNCTION_CALL, index)
            return {**fields, "arguments": call.arguments, **place}
        case ItemDone(item, index):
            done = item_object(response_id, index, item)
            return {"type": "response.output_item.done", "output_index": index, "item": done}
        case _:
            name = _RESPONSE_EVENTS[type(event)]
            return {"type": name, "response": response_object(event.response)}


def _place(response_id: str, kind: ItemKind, index: int) -> dict[str, Any]:
    return {"item_id": item_id(response_id, kind, index), "output_index": index}


def part_place(response_id: str, kind: ItemKind, index: int) -> dict[str, Any]:
    """Where a content part stands."""
    return {**_place(response_id, kind, index), "content_index": 0}


def _logprobs(kind: ItemKind, scores: Sequence[TokenScore]) -> dict[str, Any]:
    return {"logprobs": said_scores(scores)} if kind is ItemKind.MESSAGE else {}
