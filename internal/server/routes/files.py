"""/v1/files: upload, list, read, delete."""

import contextlib
import logging

from aiohttp import web

from internal.biz.errors import InvalidRequest, SluiceError
from internal.biz.files import Draft, File, Files, file_too_large
from internal.server import deadline
from internal.server.answers import NOT_STORED
from internal.server.multipart import fields
from internal.server.rest import Access, AnyRoute, Call, Route, checked
from internal.server.streams import Streams
from internal.service.api.base import Body, Query
from internal.service.api.files import (
    FileDeleted,
    FileList,
    FileObject,
    FilesQuery,
    Upload,
    UploadForm,
    disposition,
)

log = logging.getLogger(__name__)

FORM_BYTES = 1 << 20
"""What a form may have beside its file."""
PIECE_BYTES = 256 << 10
"""Of a file that is sent."""
_SANDBOX = {
    **NOT_STORED,
    # Whatever a file holds, it must not be this site's page or script.
    "Content-Security-Policy": "sandbox; default-src 'none'",
}


class FileRoutes:
    def __init__(self, files: Files, streams: Streams, silence_s: float) -> None:
        """An upload ends that brings nothing for `silence_s` (0: never)."""
        self._files = files
        self._streams = streams
        self._silence_s = silence_s

    @property
    def routes(self) -> list[AnyRoute]:
        return [
            Route(
                method="POST",
                path="/v1/files",
                summary="Upload a file",
                description="Text or an image. What it is, its bytes say.",
                tag="files",
                access=Access.CALLER,
                form=UploadForm,
                answer=FileObject,
                spends=True,
                handler=self.create,
            ),
            Route(
                method="GET",
                path="/v1/files",
                summary="Your files",
                tag="files",
                access=Access.CALLER,
                query=FilesQuery,
                answer=FileList,
                handler=self.page,
            ),
            Route(
                method="GET",
                path="/v1/files/{id}",
                summary="What is known of a file",
                tag="files",
                access=Access.CALLER,
                answer=FileObject,
                handler=self.get,
            ),
            Route(
                method="GET",
                path="/v1/files/{id}/content",
                summary="Download a file, or a range of it",
                tag="files",
                access=Access.CALLER,
                also={"application/octet-stream": "The file, as its media type."},
                errors=(416,),
                handler=self.content,
            ),
            Route(
                method="DELETE",
                path="/v1/files/{id}",
                summary="Delete a file",
                description="Messages keep the text of a file, but not its image.",
                tag="files",
                access=Access.CALLER,
                answer=FileDeleted,
                handler=self.delete,
            ),
        ]

    async def create(self, call: Call[Body, Query]) -> FileObject:
        request = call.request
        coming = deadline.while_it_comes(request, self._silence_s, lambda: self._streams.closing)
        with self._streams.running(call.caller.address), coming:
            return self._object(await self._receive(request, call.caller.user))

    async def _receive(self, request: web.Request, user: str) -> File:
        length = request.content_length or 0
        if length > self._files.rules.max_bytes + FORM_BYTES:
            raise file_too_large(self._files.rules.max_bytes)
        found: dict[str, str] = {}
        async with contextlib.AsyncExitStack() as stack:
            draft: Draft | None = None
            name = ""
            async for field in fields(request):
                if field.name in found or (field.name == "file" and draft is not None):
                    raise InvalidRequest(
                        f"{field.name} is given twice", code="invalid_value", param=field.name
                    )
                if field.name != "file":
                    found[field.name] = await field.text()
                    continue
                least = max(0, length - FORM_BYTES)
                draft = await stack.enter_async_context(self._files.receiving(user, least))
                name = field.file_name or ""
                async for chunk in field.chunks():
                    await draft.write(chunk)
            upload = checked(Upload, found)
            if draft is None:
                raise InvalidRequest("the form has no field file", code="invalid_value", param="file")
            return await self._files.keep(user, draft, name, upload.purpose)

    async def page(self, call: Call[Body, FilesQuery]) -> FileList:
        query = call.query
        found, has_more = await self._files.page(
            call.caller.user, query.limit, query.after, query.purpose, oldest_first=query.order == "asc"
        )
        return FileList.of(found, self._files.rules.keep_s, has_more=has_more)

    async def get(self, call: Call[Body, Query]) -> FileObject:
        return self._object(await self._files.get(call.id, call.caller.user))

    def _object(self, file: File) -> FileObject:
        return FileObject.of(file, self._files.rules.keep_s)

    async def delete(self, call: Call[Body, Query]) -> FileDeleted:
        await self._files.delete(call.id, call.caller.user)
        return FileDeleted(id=call.id)

    async def content(self, call: Call[Body, Query]) -> web.StreamResponse:
        file = await self._files.get(call.id, call.caller.user)
        with self._streams.running(call.caller.address):
            deadline.lift(call.request)
            try:
                return await self._send(call.request, file)
            except ConnectionError:
                return web.Response()  # which nobody gets

    async def _send(self, request: web.Request, file: File) -> web.StreamResponse:
        part = _part(request, file)
        if part is not None and not part:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{file.size_bytes}"})
        left = range(file.size_bytes) if part is None else part
        # Before anything is said: it may be gone.
        piece = await self._piece(file, left)
        response = web.StreamResponse(status=200 if part is None else 206, headers=_headers(file, part))
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        try:
            while piece:
                await self._streams.write(request, response, piece)
                self._streams.require_open()
                left = left[len(piece) :]
                piece = await self._piece(file, left)
        except SluiceError as error:
            log.info("a download ends early: %s", error.message)
        if left and request.transport is not None:
            request.transport.abort()  # or else the client would wait for the rest
        return response

    async def _piece(self, file: File, left: range) -> bytes:
        size_bytes = min(len(left), PIECE_BYTES)
        return await self._files.read(file, left.start, size_bytes) if size_bytes else b""


def _headers(file: File, part: range | None) -> dict[str, str]:
    headers = {
        **_SANDBOX,
        "Accept-Ranges": "bytes",
        "Content-Type": file.media_type,
        "Content-Length": str(file.size_bytes if part is None else len(part)),
        "Content-Disposition": disposition(file.name),
        "ETag": _tag(file),
    }
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{file.size_bytes}"
    return headers


def _tag(file: File) -> str:
    """A file never changes."""
    return f'"{file.id}"'


def _part(request: web.Request, file: File) -> range | None:
    """The range that is asked for; None: the whole file, also where several are, or none that is understood.

    Source: RFC 9110 §14.2.
    """
    if "Range" not in request.headers or request.headers.get("If-Range", _tag(file)) != _tag(file):
        return None
    try:
        return range(file.size_bytes)[request.http_range]
    except ValueError:
        return None
