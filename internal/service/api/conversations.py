"""Bodies of stored conversations, and what they look like when they leave."""

import operator
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field

from internal.biz.conversations import MAX_PAGE, MAX_TITLE_CHARS, Page
from internal.biz.models import Attachment, Conversation, Role, StoredMessage
from internal.service.api.base import WHOLE_NUMBER, Answer, Body, Id, Query, Timestamp, timestamp

DEFAULT_PAGE = 20
MAX_FILE_NAME_CHARS = 40

Title = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_TITLE_CHARS,
        json_schema_extra={"pattern": r"\S"},
        examples=["A trip to Lisbon"],
    ),
]


class NewConversation(Body):
    """Without a title its first words name it."""

    title: Title | None = None


class Change(Body):
    """`title` or `head`, or both. `head`: the response that the conversation goes on from."""

    title: Title | None = None
    head: Id | None = None


class ListQuery(Query):
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE), WHOLE_NUMBER] = DEFAULT_PAGE
    cursor: Annotated[
        str | None, Field(min_length=1, max_length=512, description="`next_cursor` of the page before.")
    ] = None
    q: Annotated[
        str | None,
        Field(max_length=200, description="Only those whose title or messages have all of these words."),
    ] = None


class ExportQuery(Query):
    format: Literal["json", "markdown"] = "json"


class Begun(Answer):
    session_id: str
    message: str


class Summary(Answer):
    session_id: str
    title: str
    created_at: Timestamp
    updated_at: Timestamp
    message_count: int

    @classmethod
    def of(cls, conversation: Conversation) -> Self:
        return cls(
            session_id=conversation.id,
            title=conversation.title,
            created_at=timestamp(conversation.created_at),
            updated_at=timestamp(conversation.updated_at),
            message_count=conversation.message_count,
        )


class ConversationList(Answer):
    """Those with news first. `next_cursor` leads on; null: there are no more."""

    conversations: list[Summary]
    next_cursor: str | None

    @classmethod
    def of(cls, page: Page) -> Self:
        found = [Summary.of(conversation) for conversation in page.conversations]
        return cls(conversations=found, next_cursor=page.cursor)


class AttachedFile(Answer):
    """`file_id`: null for a file that came with the message itself."""

    file_id: str | None
    name: str
    media_type: str

    @classmethod
    def of(cls, attachment: Attachment) -> Self:
        return cls(file_id=attachment.file_id, name=attachment.name, media_type=attachment.media_type)


class HistoryMessage(Answer):
    """`model`: who said it, or was asked. `attachments` is missing where there are none. The answers of
    several models to one question have the same `batch_id`."""

    role: Role
    content: str
    created_at: Timestamp
    model: str
    batch_id: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None
    attachments: list[AttachedFile] = Field(default_factory=list, exclude_if=operator.not_)

    @classmethod
    def of(cls, message: StoredMessage) -> Self:
        return cls(
            role=message.role,
            content=message.content,
            created_at=timestamp(message.created_at),
            model=message.model,
            batch_id=message.batch_id,
            attachments=[AttachedFile.of(attachment) for attachment in message.attachments],
        )


class Dialogue(Answer):
    """The oldest message first."""

    session_id: str
    messages: list[HistoryMessage]

    @classmethod
    def of(cls, conversation_id: str, messages: Sequence[StoredMessage]) -> Self:
        return cls(session_id=conversation_id, messages=[HistoryMessage.of(message) for message in messages])


class Export(Answer):
    session_id: str
    title: str
    created_at: Timestamp
    updated_at: Timestamp
    messages: list[HistoryMessage]

    @classmethod
    def of(cls, conversation: Conversation, messages: Sequence[StoredMessage]) -> Self:
        return cls(
            session_id=conversation.id,
            title=conversation.title,
            created_at=timestamp(conversation.created_at),
            updated_at=timestamp(conversation.updated_at),
            messages=[HistoryMessage.of(message) for message in messages],
        )


def markdown(export: Export) -> str:
    """The dialogue to read: a heading for each message, and its text as it is."""
    return "\n\n".join(_paragraphs(export)) + "\n"


_SPEAKERS = {Role.SYSTEM: "System", Role.USER: "User", Role.ASSISTANT: "Assistant"}


def _paragraphs(export: Export) -> Iterator[str]:
    yield f"# {' '.join(export.title.split()) or export.session_id}"
    for message in export.messages:
        model = f", {message.model}" if message.role is Role.ASSISTANT and message.model else ""
        yield f"## {_SPEAKERS[message.role]}"
        yield f"*{message.created_at}{model}*"
        for file in message.attachments:
            yield f"Attached: {file.name}"
        if message.content:
            yield message.content


def file_name(export: Export, extension: str) -> str:
    """A name that any file system takes and no header stumbles over."""
    words = re.findall(r"[A-Za-z0-9]+", export.title)
    name = "-".join(words).lower()[:MAX_FILE_NAME_CHARS].strip("-")
    return f"{name or export.session_id}.{extension}"
