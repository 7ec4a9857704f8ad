"""What a message's content consists of, in the Responses API and in Chat Completions: text, images, files.

Nothing is fetched for a client: an image or a file is uploaded before, or comes as a `data:` URL. Sources:
https://platform.openai.com/docs/api-reference/responses/create, …/chat/create
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from internal.biz.attachments import ANY_IMAGE
from internal.biz.ids import ID_PATTERN
from internal.biz.models import Attachment

MAX_PARTS = 256
"""Of one message."""
TAG = "part-"
"""How the branches of the unions here are called, and no field is."""

_FileId = Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
_FileName = Annotated[str, Field(max_length=4096)]
_INSTEAD = "upload it to /v1/files and send its file_id, or send a data: URL"


def _data_url(url: str) -> str:
    if not url.startswith("data:"):
        raise ValueError(f"this server fetches nothing from elsewhere; {_INSTEAD}")
    return url


_DataUrl = Annotated[str, AfterValidator(_data_url)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class TextPart(_Part):
    type: Literal["input_text", "output_text", "text"]
    text: str


class _File(_Part):
    file_id: _FileId | None = None
    file_data: str | None = None
    filename: _FileName | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.file_id is None) == (self.file_data is None):
            raise ValueError("a file has either a file_id or file_data")
        return self

    @property
    def attachment(self) -> Attachment:
        data = self.file_data
        if data is not None and not data.startswith("data:"):
            data = f"data:;base64,{data}"
        return Attachment(self.filename or "", "", self.file_id, url=data)


class FilePart(_File):
    """Of the Responses API."""

    type: Literal["input_file"]
    file_url: _DataUrl | None = None


class ImagePart(_Part):
    """Of the Responses API."""

    type: Literal["input_image"]
    file_id: _FileId | None = None
    image_url: _DataUrl | None = None
    detail: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.file_id is None) == (self.image_url is None):
            raise ValueError("an image has either a file_id or an image_url")
        return self

    @property
    def attachment(self) -> Attachment:
        return Attachment("", ANY_IMAGE, self.file_id, url=self.image_url)


class _ImageUrl(_Part):
    url: _DataUrl
    detail: str | None = None


class ChatImagePart(_Part):
    """Of Chat Completions."""

    type: Literal["image_url"]
    image_url: _ImageUrl

    @property
    def attachment(self) -> Attachment:
        return Attachment("", ANY_IMAGE, url=self.image_url.url)


class ChatFilePart(_Part):
    """Of Chat Completions."""

    type: Literal["file"]
    file: _File

    @property
    def attachment(self) -> Attachment:
        return self.file.attachment


def _by_type(tags: Mapping[str, str]) -> Callable[[object], str]:
    """The branch of a part. An unknown type counts as text, where it is refused by its name."""

    def tag(part: object) -> str:
        kind = part.get("type") if isinstance(part, dict) else None
        return tags.get(kind, "part-text") if isinstance(kind, str) else "part-text"

    return tag


Texts = Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]
Parts = Annotated[
    list[
        Annotated[
            Annotated[TextPart, Tag("part-text")]
            | Annotated[FilePart, Tag("part-file")]
            | Annotated[ImagePart, Tag("part-image")],
            Discriminator(_by_type({"input_file": "part-file", "input_image": "part-image"})),
        ]
    ],
    Field(max_length=MAX_PARTS, fail_fast=True),
]
"""The content of a message of the Responses API."""
ChatParts = Annotated[
    list[
        Annotated[
            Annotated[TextPart, Tag("part-text")]
            | Annotated[ChatFilePart, Tag("part-file")]
            | Annotated[ChatImagePart, Tag("part-image")],
            Discriminator(_by_type({"file": "part-file", "image_url": "part-image"})),
        ]
    ],
    Field(max_length=MAX_PARTS, fail_fast=True),
]
"""The content of a message of Chat Completions."""
_AnyPart = TextPart | FilePart | ImagePart | ChatFilePart | ChatImagePart


def text_of(content: str | Sequence[_AnyPart]) -> str:
    """The text of a message's content."""
    if isinstance(content, str):
        return content
    return "".join(part.text for part in content if isinstance(part, TextPart))


def attachments_of(content: str | Sequence[_AnyPart]) -> tuple[Attachment, ...]:
    """What a message's content has beside text; `Attachments.resolve` finds out what it is."""
    if isinstance(content, str):
        return ()
    return tuple(part.attachment for part in content if not isinstance(part, TextPart))
