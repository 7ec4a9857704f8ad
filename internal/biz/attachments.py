"""What clients attach to messages, made ready for models: text is read, images become references.

A codec says only what the client said: an Attachment with a `file_id`, or with a `url` that holds the bytes
(`data:…;base64,…`), and as `media_type` nothing, or ANY_IMAGE where it has to be an image.
"""

import asyncio
import base64
import binascii
from dataclasses import replace

from internal.biz.errors import ContextLengthExceeded, InvalidRequest, unknown_file
from internal.biz.files import File, Files
from internal.biz.models import Attachment, Caller, Message
from internal.biz.names import file_name
from internal.biz.sniffing import IMAGES, PDF, TEXT, sniff, text_of

ANY_IMAGE = "image/*"
MAX_FILES = 100
"""Of one turn, which may be a whole dialogue."""
MAX_TEXT_CHARS = 1 << 19
"""Of all text files of one turn."""
MAX_BYTES_PER_CHAR = 4
"""In UTF-8 as in UTF-16."""
PURPOSE = "user_data"
"""Of images that come with a message, and are kept as if they had been uploaded."""
_OPENING = "data:"


def data_url(media_type: str, data: bytes) -> str:
    """Source: RFC 2397."""
    return f"{_OPENING}{media_type};base64,{base64.b64encode(data).decode()}"


class Attachments:
    """One per process."""

    def __init__(self, files: Files | None = None, max_text_chars: int = MAX_TEXT_CHARS) -> None:
        """Without `files` there is nothing to refer to, and images stay in their messages."""
        self._files = files
        self._max_text_chars = max_text_chars

    async def resolve(self, caller: Caller, turn: tuple[Message, ...], *, store: bool) -> tuple[Message, ...]:
        """The turn, with every attachment either a text or an image. With `store` images become files of the
        caller's. What is resolved already stays.

        Raises NotFound for a file that is not the caller's, ContextLengthExceeded, InvalidRequest, Forbidden
        and Unavailable.
        """
        if sum(len(message.attachments) for message in turn) > MAX_FILES:
            raise InvalidRequest(f"a turn has at most {MAX_FILES} files", param="input")
        left_chars = self._max_text_chars
        resolved = []
        for message in turn:
            found = []
            for attachment in message.attachments:
                one = attachment
                if _is_open(attachment):
                    one = await self._resolved(caller, attachment, left_chars, store=store)
                left_chars -= len(one.text or "")
                if left_chars < 0:
                    raise self._too_long()
                found.append(one)
            resolved.append(replace(message, attachments=tuple(found)))
        return tuple(resolved)

    async def _resolved(
        self, caller: Caller, attachment: Attachment, max_chars: int, *, store: bool
    ) -> Attachment:
        must_be_image = attachment.media_type == ANY_IMAGE
        if attachment.file_id is not None:
            return await self._stored(caller, attachment.file_id, max_chars, must_be_image=must_be_image)
        # Off the event loop: it may be as much as a message can hold.
        data, media_type = await asyncio.to_thread(_decoded, attachment.url or "")
        _require_kind(media_type, must_be_image=must_be_image)
        name = file_name(attachment.name)
        if media_type == TEXT:
            return Attachment(name, media_type, text=self._text(data, max_chars))
        if attachment.name == "":
            name = media_type.replace("/", ".")
        if not store or self._files is None:
            return Attachment(name, media_type, url=data_url(media_type, data))
        async with self._files.receiving(caller.user, len(data)) as draft:
            await draft.write(data)
            file = await self._files.keep(caller.user, draft, name, PURPOSE)
        return Attachment(file.name, media_type, file.id)

    async def _stored(
        self, caller: Caller, file_id: str, max_chars: int, *, must_be_image: bool
    ) -> Attachment:
        if self._files is None:
            raise unknown_file(file_id)
        file = await self._files.get(file_id, caller.user)
        _require_kind(file.media_type, must_be_image=must_be_image)
        text = None if file.is_image else await self._text_of(self._files, file, max_chars)
        return Attachment(file.name, file.media_type, file.id, text)

    async def _text_of(self, files: Files, file: File, max_chars: int) -> str:
        if file.size_bytes > MAX_BYTES_PER_CHAR * (max_chars + 1):
            raise self._too_long()
        return self._text(await files.read(file), max_chars)

    def _text(self, data: bytes, max_chars: int) -> str:
        text = text_of(data)
        if len(text) > max_chars:
            raise self._too_long()
        return text

    def _too_long(self) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"the files of a turn have at most {self._max_text_chars} characters of text", param="input"
        )


def _is_open(attachment: Attachment) -> bool:
    """Whether nobody has looked yet what it is."""
    return attachment.media_type in ("", ANY_IMAGE)


def _decoded(url: str) -> tuple[bytes, str]:
    """The bytes of a `data:` URL, and what they are."""
    header, comma, text = url.partition(",")
    if not (header.startswith(_OPENING) and header.endswith(";base64") and comma):
        raise InvalidRequest(
            "files are sent as data:TYPE;base64,…", code="invalid_file_data", param="file_data"
        )
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            "this is not valid base64", code="invalid_file_data", param="file_data"
        ) from None
    if not data:
        raise InvalidRequest("the file is empty", code="file_empty", param="file_data")
    return data, sniff(data)


def _require_kind(media_type: str, *, must_be_image: bool) -> None:
    """Raises InvalidRequest for what no model is given."""
    if must_be_image and media_type not in IMAGES:
        raise _unsupported(f"this is no image but {media_type}", "input_image")
    if media_type == PDF:
        raise _unsupported("PDF files are not read here; attach their text", "input_file")
    if media_type != TEXT and media_type not in IMAGES:
        raise _unsupported("this file is neither UTF-8 text nor an image known here", "input_file")


def _unsupported(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, code="unsupported_file", param=param)
