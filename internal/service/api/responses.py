"""Bodies and queries of the Responses API over HTTP, and what its answers look like."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from internal.biz.chat import Ask
from internal.biz.errors import InvalidRequest
from internal.service.api.base import WHOLE_NUMBER, Answer, Body, Query
from internal.service.codec.responses_request import FollowedCreate

Include = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]
"""What may be asked for: but for the last, it is always there, or never, as with tools that no model here
has."""


class StreamOptions(Body):
    """Nothing is padded here."""

    include_obfuscation: Literal[False] | None = None


class NewResponse(FollowedCreate):
    """A turn, and how its answer comes: whole, as it is made, or later."""

    stream: bool | None = None
    include: Annotated[list[Include], Field(max_length=16, fail_fast=True)] | None = None
    stream_options: StreamOptions | None = None

    @property
    def included(self) -> Sequence[str]:
        return self.include or ()

    def ask(self) -> Ask:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options are for stream: true", param="stream_options")
        return super().ask()


class ResponseQuery(Query):
    stream: Literal["true", "false"] = "false"
    starting_after: Annotated[
        int | None,
        Field(ge=0, description="With `stream=true`: only the events behind this number."),
        WHOLE_NUMBER,
    ] = None
    include_obfuscation: Literal["false"] | None = None


class ItemsQuery(Query):
    limit: Annotated[int, Field(ge=1, le=100), WHOLE_NUMBER] = 20
    order: Literal["asc", "desc"] = "desc"
    after: Annotated[
        str | None,
        Field(min_length=1, max_length=64, description="The id of the last item of the page before."),
    ] = None


class Item(Answer):
    """As the OpenAI API has it, by its type. Of what is stored, `response_id` names the turn it is of."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str
    type: Literal["message", "function_call", "function_call_output", "reasoning"]
    status: Literal["in_progress", "completed", "incomplete"]


class ItemList(Answer):
    object: Literal["list"]
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseFailure(Answer):
    code: str
    message: str


class Incompleteness(Answer):
    reason: str


class InputDetails(Answer):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Answer):
    reasoning_tokens: int


class TokenUsage(Answer):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class OfConversation(Answer):
    id: str


class OfBatch(Answer):
    id: str
    position: int


class ResponseObject(Answer):
    """As the OpenAI API has it. `output` holds what there is so far. `batch` is there where several models
    were asked."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    model: str
    output: list[Item]
    error: ResponseFailure | None
    incomplete_details: Incompleteness | None
    instructions: str | None
    previous_response_id: str | None
    conversation: OfConversation | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_logprobs: int
    truncation: Literal["auto", "disabled"]
    store: bool
    metadata: dict[str, str]
    parallel_tool_calls: bool
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    text: dict[str, Any]
    reasoning: dict[str, Any]
    usage: TokenUsage | None
    batch: OfBatch | None = None


class DeletedResponse(Answer):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


STREAM = (
    "Server-sent events, each with the API's event as `data:`, its type as `event:` and its number as `id:`; "
    "the last one is `response.completed`, `response.incomplete` or `response.failed`. A stream that broke "
    "off is resumed by `GET /v1/responses/{id}?stream=true`. Lines that begin with a colon keep the "
    "connection awake."
)
