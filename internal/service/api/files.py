"""Uploaded files as the OpenAI API has them.

Beyond the API: `media_type`, which is what the bytes say. Source:
https://platform.openai.com/docs/api-reference/files
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self
from urllib.parse import quote

from pydantic import Field

from internal.biz.files import File
from internal.biz.ids import ID_PATTERN
from internal.service.api.base import WHOLE_NUMBER, Answer, Body, Query

MOST = 10_000
"""What a client may ask for at a time; it may get fewer, and is told that there are more."""

Purpose = Literal["user_data", "assistants", "vision"]


class Upload(Body):
    """The fields of the form beside the file. Nothing is made of the purpose."""

    purpose: Purpose = "user_data"


class UploadForm(Upload):
    """As it is described."""

    file: Annotated[str, Field(json_schema_extra={"format": "binary"})]


class FilesQuery(Query):
    limit: Annotated[int, Field(ge=1, le=MOST), WHOLE_NUMBER] = MOST
    after: Annotated[
        str | None, Field(pattern=f"^{ID_PATTERN}$", description="The last file of the page before.")
    ] = None
    order: Literal["asc", "desc"] = "desc"
    purpose: Annotated[str | None, Field(max_length=32)] = None


class FileObject(Answer):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    media_type: str

    @classmethod
    def of(cls, file: File, keep_s: float) -> Self:
        """A file that stays for `keep_s` (0: for ever)."""
        return cls(
            id=file.id,
            bytes=file.size_bytes,
            created_at=int(file.created_at),
            expires_at=int(file.created_at + keep_s) if keep_s else None,
            filename=file.name,
            purpose=file.purpose,
            media_type=file.media_type,
        )


class FileList(Answer):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, files: Sequence[File], keep_s: float, *, has_more: bool) -> Self:
        return cls(
            data=[FileObject.of(file, keep_s) for file in files],
            first_id=files[0].id if files else None,
            last_id=files[-1].id if files else None,
            has_more=has_more,
        )


class FileDeleted(Answer):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def disposition(name: str) -> str:
    """A Content-Disposition that saves a file under its name. Sources: RFC 6266 §4.3, RFC 8187 §3.2."""
    plain = "".join(char if char.isascii() and char not in '"\\%' else "_" for char in name)
    extended = quote(name, safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{extended}"
