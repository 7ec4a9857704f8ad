"""What a client asks for with Chat Completions: the whole dialogue, each time.

Beyond the API: more ways to choose tokens, as most servers of open models take them, and a `response_format`
of `{"type": "regex", "pattern": …}`.
Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, StringConstraints, ValidationError

from internal.biz.chat import Ask
from internal.biz.errors import InvalidRequest, UnsupportedParameter
from internal.biz.models import Message, OutputFormat, Role, Settings, Tool, ToolCall, Tooling
from internal.service.api.base import Body
from internal.service.codec.parts import MAX_PARTS, TAG, ChatParts, attachments_of, text_of
from internal.service.codec.responses_request import (
    MAX_ITEMS,
    MAX_TOOLS,
    JsonSchema,
    Lenient,
    Metadata,
    Pattern,
    Stop,
    ToolName,
    TopLogprobs,
    tooling,
)
from internal.service.codec.sampling import SamplingParameters
from internal.service.validation import complaint

_Id = Annotated[str, StringConstraints(min_length=1, max_length=64)]


# ── messages ─────────────────────────────────────────────────────────────────────────────────────


class TextContent(Lenient):
    type: Literal["text"]
    text: str

    @property
    def said(self) -> str:
        return self.text


class SaidContent(Lenient):
    type: Literal["text", "refusal"]
    text: str = ""
    refusal: str = ""

    @property
    def said(self) -> str:
        return self.text or self.refusal


_Parts = Annotated[list[TextContent], Field(max_length=MAX_PARTS, fail_fast=True)]


class SystemMessage(Lenient):
    role: Literal["system", "developer"]
    content: str | _Parts


class UserMessage(Lenient):
    role: Literal["user"]
    content: str | ChatParts


class AssistantCallFunction(Lenient):
    name: ToolName
    arguments: str


class AssistantCall(Lenient):
    id: _Id
    type: Literal["function"] = "function"
    function: AssistantCallFunction


class AssistantMessage(Lenient):
    """What a model said, as it came: its `reasoning_content` is not read again."""

    role: Literal["assistant"]
    content: str | Annotated[list[SaidContent], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    tool_calls: Annotated[list[AssistantCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    function_call: None = None
    audio: None = None


class ToolMessage(Lenient):
    role: Literal["tool"]
    tool_call_id: _Id
    content: str | _Parts


_Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage
# One complaint is enough, and collecting one for each of a hundred thousand bad messages takes seconds.
_Messages = Annotated[
    list[Annotated[_Message, Discriminator("role")]],
    Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True),
]


def _message(message: _Message) -> Message:
    match message:
        case SystemMessage(content=content):
            return Message(Role.SYSTEM, _text(content))
        case UserMessage(content=content):
            return Message(Role.USER, text_of(content), attachments=attachments_of(content))
        case ToolMessage(content=content, tool_call_id=call_id):
            return Message(Role.TOOL, _text(content), call_id=call_id)
        case AssistantMessage(content=content, tool_calls=calls):
            made = [ToolCall(call.id, call.function.name, call.function.arguments) for call in calls or ()]
            return Message(Role.ASSISTANT, _text(content), tuple(made))


def _text(content: str | Sequence[TextContent | SaidContent] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.said for part in content)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


class FunctionDefinition(Body):
    name: ToolName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class FunctionTool(Body):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Body):
    name: ToolName


class FunctionChoice(Body):
    type: Literal["function"]
    function: FunctionName


class NamedSchema(Body):
    name: ToolName
    # `schema` is a method of BaseModel.
    schema_: Annotated[JsonSchema | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None


class CompletionFormat(Body):
    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: NamedSchema | None = None
    pattern: Pattern | None = None


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # a hint


_MaxTokens = Annotated[int, Field(ge=1, le=2**31 - 1)]


class ChatCompletionCreate(SamplingParameters):
    """A dialogue, and how to go on with it."""

    max_values: ClassVar[int] = 50_000
    """As long dialogues have that call tools."""

    messages: _Messages
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: _MaxTokens | None = None
    max_tokens: _MaxTokens | None = None
    stop: Stop | None = None
    response_format: CompletionFormat | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str, StringConstraints(min_length=1, max_length=16)] | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    # Hints, which change nothing here.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    # What is not here, said as some clients always say it.
    n: Literal[1] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=8, fail_fast=True)] | None = None
    audio: None = None
    functions: None = None
    function_call: None = None
    moderation: None = None
    prediction: None = None
    prompt_cache_options: None = None
    verbosity: None = None
    web_search_options: None = None

    @classmethod
    def refusal(cls, error: ValidationError) -> InvalidRequest:
        """One complaint. What exists, but not here, is unsupported."""
        found = complaint(error, _is_union_branch)
        param = found.param or ""
        if param.rpartition(".")[2].partition("[")[0] in _UNSUPPORTED:
            return UnsupportedParameter(found.message, param=param)
        return found

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with what it took."""
        return self.stream_options is not None and self.stream_options.include_usage is True

    def ask(self) -> Ask:
        """Raises InvalidRequest for what contradicts itself."""
        if self.stream_options is not None and not self.stream:
            raise _contradiction("stream_options", "this is for streams only")
        if self.top_logprobs and not self.logprobs:
            raise _contradiction("top_logprobs", "this is for logprobs: true")
        turn = tuple(_message(message) for message in self.messages)
        return Ask(turn, self.model, self._settings())

    def _settings(self) -> Settings:
        return Settings(
            max_output_tokens=self._max_output_tokens(),
            sampling=self.sampling,
            stop=tuple(self.stop or ()),
            reasoning_effort=self.reasoning_effort,
            output_format=self._output_format(),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            tooling=self._tooling(),
            # Every request has the whole dialogue: to store it each time would store it many times.
            store=self.store is True,
            metadata=self.metadata or {},
        )

    def _max_output_tokens(self) -> int | None:
        new, old = self.max_completion_tokens, self.max_tokens
        if None not in (new, old) and new != old:
            raise _contradiction("max_tokens", "max_completion_tokens says something else")
        return new or old

    def _output_format(self) -> OutputFormat | None:
        asked = self.response_format
        if asked is None or asked.type == "text":
            return None
        if asked.type == "json_object":
            return OutputFormat()
        if asked.type == "regex":
            if asked.pattern is None:
                raise _contradiction("response_format.pattern", "this field is required")
            return OutputFormat(pattern=asked.pattern)
        if (named := asked.json_schema) is None:
            raise _contradiction("response_format.json_schema", "this field is required")
        return OutputFormat(named.schema_, named.name, named.strict is True)

    def _tooling(self) -> Tooling:
        tools = [
            Tool(it.name, it.description, it.parameters or {}, it.strict is True)
            for it in (tool.function for tool in self.tools or ())
        ]
        chosen = self.tool_choice
        function = chosen.function.name if isinstance(chosen, FunctionChoice) else None
        choice = chosen if isinstance(chosen, str) else "auto"
        return tooling(tools, choice, function, parallel=self.parallel_tool_calls is not False)


def _contradiction(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {message}", code="invalid_value", param=param)


# ── what is wrong with it ────────────────────────────────────────────────────────────────────────

_UNSUPPORTED = frozenset(
    (
        *("type", "n", "modalities", "audio", "functions"),
        *("function_call", "moderation", "prediction", "prompt_cache_options", "service_tier"),
        *("verbosity", "web_search_options"),
    )
)
_BRANCHES = frozenset(("system", "developer", "user", "assistant", "tool", "FunctionChoice", "[key]"))


def _is_union_branch(part: int | str, is_last: bool) -> bool:
    if isinstance(part, int):
        return False
    return (
        part in _BRANCHES
        or part.startswith(("list[", "literal[", "function-", TAG))
        or (is_last and part in ("str", "none"))
    )
