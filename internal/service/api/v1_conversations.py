"""Bodies of the Conversations API, and what its answers look like."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from internal.biz.errors import InvalidRequest
from internal.biz.ids import ID_PATTERN
from internal.biz.models import Conversation
from internal.service.api.base import WHOLE_NUMBER, Answer, Body, Query
from internal.service.api.responses import Item, ResponseObject
from internal.service.codec.responses_request import Items, Metadata, invalid

MAX_ADDED = 20
AddedItems = Annotated[Items, Field(max_length=MAX_ADDED)]


class _WithItems(Body):
    @classmethod
    def refusal(cls, error: ValidationError) -> InvalidRequest:
        return invalid(error)


class NewThread(_WithItems):
    items: AddedItems | None = None
    metadata: Metadata | None = None


class Labels(Body):
    """`metadata` takes the place of what there was; null: there is none."""

    metadata: Metadata | None


class NewItems(_WithItems):
    items: AddedItems


class TurnsQuery(Query):
    limit: Annotated[int, Field(ge=1, le=100), WHOLE_NUMBER] = 20
    order: Literal["asc", "desc"] = "desc"
    after: Annotated[
        str | None,
        Field(pattern=f"^{ID_PATTERN}$", description="The id of the last turn of the page before."),
    ] = None


class Turn(Answer):
    """`previous_response_id` is the response that it follows, also where a conversation said which. `aside`:
    it is not on the way from `head_id` back to the beginning, and no other list has it. `response` is null
    where no model was asked. Times are Unix seconds; those of an answer are null until it has ended."""

    id: str
    object: Literal["conversation.turn"]
    previous_response_id: str | None
    aside: bool
    created_at: float
    first_token_at: float | None
    ended_at: float | None
    input: list[Item]
    response: ResponseObject | None


class TurnList(Answer):
    """Several models' answers to one question are a turn each, of the same `response.batch`. `head_id` is the
    response that the next turn continues."""

    object: Literal["list"]
    data: list[Turn]
    first_id: str | None
    last_id: str | None
    has_more: bool
    head_id: str | None


class Thread(Answer):
    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str]

    @classmethod
    def of(cls, conversation: Conversation) -> Self:
        created_at, metadata = int(conversation.created_at), dict(conversation.metadata)
        return cls(id=conversation.id, created_at=created_at, metadata=metadata)


class DeletedThread(Answer):
    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: Literal[True] = True
