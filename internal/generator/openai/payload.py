"""What an upstream is asked for.

Source: https://platform.openai.com/docs/api-reference/chat/create; how else tokens are chosen is as TabbyAPI
has it, and vLLM and llama.cpp in parts
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from internal.biz.generation import Job
from internal.biz.models import Message, OutputFormat, Role, Settings, Tool, Tooling
from internal.biz.sampling import RareSampling
from internal.generator.attachments import text_with_files
from internal.generator.openai.answer import CHARS_PER_TOKEN
from internal.generator.openai.options import OpenAIOptions


def body(job: Job, options: OpenAIOptions, dropped_turns: int = 0) -> dict[str, Any]:
    """The request, with nothing in it that nobody asked for. The oldest turns are left out on demand."""
    messages = [_message(message, options) for message in without(job.messages, dropped_turns)]
    asked = _asked(job, options)
    if job.emitted:
        messages.append({"role": "assistant", "content": job.emitted})
        match options.continuation:
            case "prefix":
                messages[-1]["prefix"] = True
            case "vllm":
                asked |= {"continue_final_message": True, "add_generation_prompt": False}
    fields = {
        "model": options.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options.extra_body,
        **{options.rename.get(name, name): value for name, value in asked.items()},
    }
    return {name: value for name, value in fields.items() if value is not None}


def _asked(job: Job, options: OpenAIOptions) -> dict[str, Any]:
    """What the client wants beside an answer."""
    settings, sampling = job.settings, job.settings.sampling
    wanted: dict[str, Any] = {
        "max_tokens": _limit(settings, job),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": sampling.seed,
        "stop": list(settings.stop) or None,
        "reasoning_effort": settings.reasoning_effort,
        "response_format": _format(settings.output_format),
        "pattern": settings.output_format and settings.output_format.pattern,
    }
    if sampling.rare is not None:
        wanted |= _rare(sampling.rare)
    if options.tools and settings.tooling.tools:
        wanted |= _tools(settings.tooling)
    return {name: value for name, value in wanted.items() if value is not None}


def _limit(settings: Settings, job: Job) -> int | None:
    if settings.max_output_tokens is None:
        return None
    return max(1, settings.max_output_tokens - len(job.emitted) // CHARS_PER_TOKEN)


def _rare(rare: RareSampling) -> dict[str, Any]:
    asked = rare.asked
    if "logit_bias" in asked:
        asked["logit_bias"] = {str(token): bias for token, bias in rare.logit_bias}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}


def _format(wanted: OutputFormat | None) -> dict[str, Any] | None:
    if wanted is None or wanted.pattern is not None:
        return None
    if wanted.schema is None:
        return {"type": "json_object"}
    schema = {"name": wanted.name or "answer", "schema": wanted.schema, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": schema}


def _tools(tooling: Tooling) -> dict[str, Any]:
    fields: dict[str, Any] = {"tools": [_tool(tool) for tool in tooling.tools]}
    if tooling.function is not None:
        fields["tool_choice"] = {"type": "function", "function": {"name": tooling.function}}
    elif tooling.choice != "auto":
        fields["tool_choice"] = tooling.choice
    if not tooling.parallel:
        fields["parallel_tool_calls"] = False
    return fields


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.parameters}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _message(message: Message, options: OpenAIOptions) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role.value, "content": _content(message, options)}
    if message.calls:
        said["content"] = said["content"] or None
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.calls
        ]
    if message.call_id is not None:
        said["tool_call_id"] = message.call_id
    return said


def _content(message: Message, options: OpenAIOptions) -> Any:
    """Text; or parts, where there is an image that the model takes. Of others it hears the names."""
    text = text_with_files(message)
    images = [file for file in message.attachments if file.text is None]
    urls = [file.url for file in images if options.images and file.url is not None]
    unseen = [file.name for file in images if not options.images or file.url is None]
    for name in unseen:
        text += f"\n\n(There was an image here: {json.dumps(name, ensure_ascii=False)})"
    if not urls:
        return text
    return [
        {"type": "text", "text": text},
        *({"type": "image_url", "image_url": {"url": url}} for url in urls),
    ]


def turns(messages: Sequence[Message]) -> int:
    """How many times the user has spoken."""
    return sum(message.role is Role.USER for message in messages)


def without(messages: Sequence[Message], dropped_turns: int) -> Sequence[Message]:
    """The messages without the oldest turns. System messages stay, and what stands before all turns."""
    turn, kept = 0, []
    for message in messages:
        turn += message.role is Role.USER
        if message.role is Role.SYSTEM or turn == 0 or turn > dropped_turns:
            kept.append(message)
    return kept


def dialogue(job: Job) -> bytes | None:
    """What tells dialogues apart: the conversation, or how it began."""
    if (conversation := job.settings.conversation_id) is not None:
        return conversation.encode()
    beginning = hashlib.sha256()
    for message in job.messages:
        if message.role in (Role.SYSTEM, Role.USER):
            beginning.update(f"{message.role.value} {len(message.content)} {message.content}".encode())
        if message.role is Role.USER:
            return beginning.digest()
    return None


def is_under_way(job: Job) -> bool:
    """Whether the dialogue has had an answer before."""
    return any(message.role is Role.ASSISTANT for message in job.messages)
