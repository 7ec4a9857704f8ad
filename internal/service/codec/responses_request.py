"""What a client asks for with the Responses API, over a WebSocket as over HTTP.

Beyond the API: several models, as `"a, b"` or `["a", "b"]`; `replaces`, the response of the conversation
beside which the new one stands; `stop`, `seed` and more ways to choose tokens, as
most servers of open models take them; and a `text.format` of `{"type": "regex", "pattern": …}`.
Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)

from internal.biz.chat import Ask
from internal.biz.errors import InvalidRequest, UnsupportedParameter
from internal.biz.items import joined
from internal.biz.models import (
    Message,
    OutputFormat,
    Role,
    Settings,
    Tool,
    ToolCall,
    Tooling,
    Truncation,
)
from internal.service.api.base import Body
from internal.service.codec.parts import TAG, Parts, Texts, attachments_of, text_of
from internal.service.codec.sampling import SamplingParameters
from internal.service.codec.scores import LOGPROBS, MAX_TOP
from internal.service.validation import complaint

MAX_ITEMS = 4096
MAX_VALUES = 50_000
MAX_KEYS = 64
"""Bounds of what is looked at of one request."""
MAX_MODELS = 64
MAX_TOOLS = 128
MAX_STOPS = 16
MAX_PATTERN_CHARS = 8192
MAX_DEPTH = 100

_Id = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP)]
ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


def _shallow(schema: dict[str, Any]) -> dict[str, Any]:
    level: list[object] = [schema]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError(f"this is nested deeper than {MAX_DEPTH} levels")
    return schema


JsonSchema = Annotated[dict[str, Any], AfterValidator(_shallow)]
"""Nested less deeply than can be written again."""
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PATTERN_CHARS)]


class Lenient(BaseModel):
    """For what clients send back as they got it from us, with whatever fields it had."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


# ── input ────────────────────────────────────────────────────────────────────────────────────────


class _MessageItem(Lenient):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Parts

    @model_validator(mode="after")
    def _is_theirs(self) -> Self:
        if self.role != "user" and attachments_of(self.content):
            raise ValueError("only messages of the user may have files")
        return self


class _ReasoningItem(Lenient):
    type: Literal["reasoning"]


class _CallItem(Lenient):
    type: Literal["function_call"]
    call_id: _Id
    name: ToolName
    arguments: str


class _CallOutputItem(Lenient):
    type: Literal["function_call_output"]
    call_id: _Id
    output: str | Texts


_ITEM_TAGS = frozenset(("reasoning", "function_call", "function_call_output"))


def _item_tag(item: object) -> str:
    kind = item.get("type") if isinstance(item, dict) else None
    return kind if isinstance(kind, str) and kind in _ITEM_TAGS else "message"


# One complaint is enough, and collecting one for each of a hundred thousand bad items takes seconds.
Items = Annotated[
    list[
        Annotated[
            Annotated[_MessageItem, Tag("message")]
            | Annotated[_ReasoningItem, Tag("reasoning")]
            | Annotated[_CallItem, Tag("function_call")]
            | Annotated[_CallOutputItem, Tag("function_call_output")],
            Discriminator(_item_tag),
        ]
    ],
    Field(max_length=MAX_ITEMS, fail_fast=True),
]

_ROLES = {"developer": Role.SYSTEM}


def messages(items: str | Items) -> tuple[Message, ...]:
    """The items as messages. Calls that stand behind one another, or behind what was said, are one."""
    if isinstance(items, str):
        return (Message(Role.USER, items),) if items else ()
    found = (_message(item) for item in items if not isinstance(item, _ReasoningItem))
    return joined(found)


def _message(item: _MessageItem | _CallItem | _CallOutputItem) -> Message:
    match item:
        case _MessageItem(role=role, content=content):
            files = attachments_of(content)
            return Message(_ROLES.get(role) or Role(role), text_of(content), attachments=files)
        case _CallItem():
            call = ToolCall(item.call_id, item.name, item.arguments)
            return Message(Role.ASSISTANT, "", (call,))
        case _CallOutputItem():
            return Message(Role.TOOL, text_of(item.output), call_id=item.call_id)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


class _Conversation(Lenient):
    id: _Id


def _by_id(value: object) -> object:
    return {"id": value} if isinstance(value, str) else value


class _Function(Body):
    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class _ChosenFunction(Body):
    type: Literal["function"]
    name: ToolName


class _TextFormat(Body):
    type: Literal["text"]


class _JsonObjectFormat(Body):
    type: Literal["json_object"]


class _JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    name: ToolName
    # `schema` is a method of BaseModel.
    schema_: Annotated[JsonSchema, Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class _PatternFormat(Body):
    type: Literal["regex"]
    pattern: Pattern


class _TextOptions(Body):
    format: (
        Annotated[
            Annotated[_TextFormat, Tag("text")]
            | Annotated[_JsonObjectFormat, Tag("json_object")]
            | Annotated[_JsonSchemaFormat, Tag("json_schema")]
            | Annotated[_PatternFormat, Tag("regex")],
            Discriminator("type"),
        ]
        | None
    ) = None


class _Reasoning(Body):
    effort: Annotated[str, StringConstraints(min_length=1, max_length=16)] | None = None


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


_StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_Stops = Annotated[list[_StopText], Field(max_length=MAX_STOPS)]
Stop = Annotated[_Stops, BeforeValidator(_one_or_many, json_schema_input_type=_StopText | _Stops)]


ModelNames = str | Annotated[list[str], Field(min_length=1, max_length=MAX_MODELS, fail_fast=True)]


def model_names(model: str | Sequence[str] | None) -> tuple[str, ...]:
    """The models that are asked; none: the default one. No model has a comma in its name. Raises
    InvalidRequest."""
    if model is None or (isinstance(model, str) and "," not in model):
        return () if model is None else (model,)
    names = tuple(name.strip() for name in (model.split(",") if isinstance(model, str) else model))
    if not all(names):
        raise InvalidRequest("model: a name is missing", code="invalid_value", param="model")
    return names


class ResponseCreate(SamplingParameters):
    """What every `create` of the Responses API may hold."""

    max_values = MAX_VALUES

    model: ModelNames | None = None
    input: str | Items
    instructions: str | None = None
    previous_response_id: _Id | None = None
    conversation: (
        Annotated[_Conversation, BeforeValidator(_by_id, json_schema_input_type=_Id | _Conversation)] | None
    ) = None
    replaces: _Id | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Stop | None = None
    text: _TextOptions | None = None
    reasoning: _Reasoning | None = None
    tools: Annotated[list[_Function], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | _ChosenFunction | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    # Hints, which change nothing here.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None

    @classmethod
    def refusal(cls, error: ValidationError) -> InvalidRequest:
        return invalid(error)

    @property
    def models(self) -> tuple[str, ...]:
        """Those that are asked; none: the default one. Raises InvalidRequest."""
        return model_names(self.model)

    def ask(self) -> Ask:
        """For one model. Raises InvalidRequest for what contradicts itself, and for several models."""
        models = self.models
        if len(models) > 1:
            raise InvalidRequest(
                "here one model is asked; several at once are over the WebSocket, or with POST /v1/batches",
                code="too_many_models",
                param="model",
            )
        return Ask(messages(self.input), models[0] if models else None, self._settings())

    def ask_all(self) -> Ask:
        """For several models: it names none. Raises InvalidRequest for what contradicts itself."""
        return Ask(messages(self.input), None, self._settings())

    def _settings(self) -> Settings:
        if self.conversation is not None and self.previous_response_id is not None:
            raise InvalidRequest(
                "a turn continues a conversation or a previous response, not both", param="conversation"
            )
        return Settings(
            conversation_id=None if self.conversation is None else self.conversation.id,
            instructions=self.instructions,
            previous_response_id=self.previous_response_id,
            replaces=self.replaces,
            max_output_tokens=self.max_output_tokens,
            sampling=self.sampling,
            stop=tuple(self.stop or ()),
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            output_format=self._output_format(),
            tooling=self._tooling(),
            truncation=Truncation(self.truncation or "disabled"),
            store=self.store is not False,
            metadata=self.metadata or {},
        )

    def _output_format(self) -> OutputFormat | None:
        match self.text and self.text.format:
            case _JsonObjectFormat():
                return OutputFormat()
            case _JsonSchemaFormat(schema_=schema, name=name, strict=strict):
                return OutputFormat(schema, name, strict is not False)
            case _PatternFormat(pattern=pattern):
                return OutputFormat(pattern=pattern)
        return None

    def _tooling(self) -> Tooling:
        tools = tuple(
            Tool(tool.name, tool.description, tool.parameters or {}, tool.strict is not False)
            for tool in self.tools or ()
        )
        chosen = self.tool_choice
        function = chosen.name if isinstance(chosen, _ChosenFunction) else None
        choice = chosen if isinstance(chosen, str) else "auto"
        return tooling(tools, choice, function, parallel=self.parallel_tool_calls is not False)


class FollowedCreate(ResponseCreate):
    """A `create` whose client hears of the answer by itself: it may leave before the end, and may hear how
    likely the tokens were."""

    background: Annotated[bool | None, Field(description="It goes on when the client leaves.")] = None
    top_logprobs: TopLogprobs | None = None

    @property
    def included(self) -> Sequence[str]:
        """What is to be told beside the usual."""
        return ()

    def _settings(self) -> Settings:
        if self.background and self.store is False:
            raise InvalidRequest("what runs in the background has to be stored", param="background")
        logprobs = self.top_logprobs or 0 if LOGPROBS in self.included else None
        return replace(super()._settings(), background=bool(self.background), logprobs=logprobs)


def tooling(tools: Sequence[Tool], choice: str, function: str | None, *, parallel: bool) -> Tooling:
    """Raises InvalidRequest when a tool is to be called that is none of `tools`."""
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidRequest("two tools have the same name", code="invalid_value", param="tools")
    if function is not None and function not in names:
        raise InvalidRequest(f"there is no tool {function!r}", code="invalid_value", param="tool_choice")
    if choice == "required" and not tools:
        raise InvalidRequest("there is no tool to be called", code="invalid_value", param="tool_choice")
    return Tooling(tuple(tools), choice, function, parallel)


# ── what is wrong with it ────────────────────────────────────────────────────────────────────────


def require_small(value: object, name: str) -> None:
    """Raises InvalidRequest for an object of too many keys."""
    if isinstance(value, dict) and len(value) > MAX_KEYS:
        raise InvalidRequest(f"{name}: more than {MAX_KEYS} keys", code="invalid_value", param=name)


def invalid(
    error: ValidationError, is_branch: Callable[[int | str, bool], bool] | None = None
) -> InvalidRequest:
    """One complaint. What stands in the place of a type that exists, but not here, is unsupported."""
    refusal = complaint(error, is_branch or is_union_branch)
    param = refusal.param or ""
    if param.endswith(".type") or param.startswith("include"):
        return UnsupportedParameter(refusal.message, param=param)
    return refusal


_BRANCHES = frozenset(
    ("message", *_ITEM_TAGS, "json_object", "json_schema", "regex", "_ChosenFunction", "[key]")
)


def is_union_branch(part: int | str, is_last: bool) -> bool:
    """pydantic names the branch of a union in the path; a client never wrote that."""
    if isinstance(part, int):
        return False
    return (
        part in _BRANCHES
        or part.startswith(("list[", "literal[", "function-", TAG))
        or (is_last and part == "str")
    )
