"""POST /v1/chat/completions as a form: a prompt and files for several models, which answer as a batch."""

import re

from internal.biz.attachments import data_url
from internal.biz.batches import Batches
from internal.biz.chat import Ask
from internal.biz.errors import InvalidRequest
from internal.biz.ids import ID_PATTERN
from internal.biz.models import Attachment, Message, Role, Settings, Truncation
from internal.server.multipart import Field, fields
from internal.server.rest import Access, AnyRoute, Call, Route, WithHeaders, checked
from internal.server.routes.batches import begun
from internal.service.api.base import Body, Query
from internal.service.api.batches import MAX_FILES, BatchBegun, BatchForm, BatchFormFields
from internal.service.codec.responses_request import model_names
from internal.service.errors import TooLarge

FILES = "files"


class BatchFormRoutes:
    def __init__(self, batches: Batches, max_bytes: int) -> None:
        """`max_bytes`: of a form, whatever it consists of."""
        self._batches = batches
        self._max_bytes = max_bytes

    @property
    def routes(self) -> list[AnyRoute]:
        return [
            Route(
                method="POST",
                path="/v1/chat/completions",
                summary="Ask several models at once, with files",
                description="As a form it is a batch: see /v1/batches.",
                tag="batches",
                access=Access.CALLER,
                form=BatchFormFields,
                answer=BatchBegun,
                status=202,
                errors=(404, 409),
                handler=self.create,
            )
        ]

    async def create(self, call: Call[Body, Query]) -> WithHeaders:
        """Begin what the form asks for."""
        if (call.request.content_length or 0) > self._max_bytes:
            raise self._too_large()
        found: dict[str, str] = {}
        files: list[Attachment] = []
        left_bytes = self._max_bytes
        async for field in fields(call.request, MAX_FILES + len(BatchForm.model_fields)):
            data = await self._read(field, left_bytes)
            left_bytes -= len(data)
            if field.name == FILES:
                files.append(_attachment(field, data))
            elif field.name in found:
                raise InvalidRequest(f"{field.name} is given twice", code="invalid_value", param=field.name)
            else:
                found[field.name] = _text(field, data)
        form = checked(BatchForm, found)
        settings = Settings(conversation_id=form.conversation_id, truncation=Truncation.AUTO)
        ask = Ask((Message(Role.USER, form.prompt, attachments=tuple(files)),), None, settings)
        return await begun(self._batches, call.caller, ask, model_names(form.model))

    async def _read(self, field: Field, max_bytes: int) -> bytes:
        data = bytearray()
        async for chunk in field.chunks():
            data += chunk
            if len(data) > max_bytes:
                raise self._too_large()
        return bytes(data)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"a form has at most {self._max_bytes} bytes")


def _text(field: Field, data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{field.name} is not UTF-8", code="invalid_value", param=field.name) from None
    if "\0" in text:
        raise InvalidRequest(
            f"{field.name}: the character NUL is not allowed", code="invalid_value", param=field.name
        )
    return text


def _attachment(field: Field, data: bytes) -> Attachment:
    """A file, or the id of one that was uploaded before."""
    if field.file_name is None:
        file_id = _text(field, data)
        if not re.fullmatch(ID_PATTERN, file_id):
            raise InvalidRequest(f"{FILES}: this is no id of a file", code="invalid_value", param=FILES)
        return Attachment("", "", file_id)
    return Attachment(field.file_name, "", url=data_url("application/octet-stream", data))
