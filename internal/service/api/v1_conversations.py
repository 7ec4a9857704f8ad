"""Bodies of the Conversations API, and what its answers look like."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from internal.biz.errors import InvalidRequest
from internal.biz.models import Conversation
from internal.service.api.base import Answer, Body
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
