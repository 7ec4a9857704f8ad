"""Images that messages refer to, fetched for the engine that is about to look at them."""

import asyncio
import logging
from dataclasses import replace
from typing import Protocol

from internal.biz.attachments import data_url
from internal.biz.errors import SluiceError
from internal.biz.models import Attachment, Message

log = logging.getLogger(__name__)

MAX_BYTES = 32 << 20
"""Of all images of one dialogue; the newest come first."""
GONE = "(This image is not available any more.)"


class ReadsFiles(Protocol):
    """The part of the folder of files that is needed here."""

    async def read(self, file_id: str) -> bytes:
        """Raises NotFound and Unavailable."""


class Images:
    """One per worker."""

    def __init__(self, folder: ReadsFiles) -> None:
        self._folder = folder

    async def loaded(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages, with the bytes of each image as a `data:` URL. One that was deleted, or that cannot
        be read, becomes a note to the model. Whose they are was checked when they were attached."""
        left_bytes = MAX_BYTES
        loaded = []
        for message in reversed(messages):
            found = []
            for attachment in reversed(message.attachments):
                one = attachment
                if attachment.file_id is not None and attachment.text is None:
                    one = await self._loaded(attachment, left_bytes)
                left_bytes -= len(one.url or "")
                found.append(one)
            loaded.append(replace(message, attachments=tuple(reversed(found))) if found else message)
        return tuple(reversed(loaded))

    async def _loaded(self, attachment: Attachment, left_bytes: int) -> Attachment:
        if attachment.file_id is None or left_bytes <= 0:
            return replace(attachment, text=GONE)
        try:
            data = await self._folder.read(attachment.file_id)
            url = await asyncio.to_thread(data_url, attachment.media_type, data)
        except SluiceError:
            return replace(attachment, text=GONE)
        except Exception:  # it must not end the worker, nor the next one that gets this request
            log.exception("an image cannot be read", extra={"file": attachment.file_id})
            return replace(attachment, text=GONE)
        return replace(attachment, url=url)
