"""Forms with files, read as they come: nothing is held but a piece of a file.

Source: RFC 7578, and what browsers make of it:
https://html.spec.whatwg.org/multipage/form-control-infrastructure.html#multipart-form-data
"""

import re
import warnings
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote

from aiohttp import (
    BadContentDispositionHeader,
    BadContentDispositionParam,
    BodyPartReader,
    MultipartReader,
    web,
)
from aiohttp.helpers import parse_mimetype
from aiohttp.http_exceptions import BadHttpMessage

from internal.biz.errors import InvalidRequest
from internal.service.errors import TooLarge, UnsupportedMediaType

MAX_FIELDS = 32
MAX_FIELD_BYTES = 64 << 10
CHUNK_BYTES = 128 << 10

# aiohttp warns of headers that it does not understand, each time in other words: clients could fill the log
# with them, and the memory in which Python keeps what was said already.
warnings.filterwarnings("ignore", category=BadContentDispositionHeader)
warnings.filterwarnings("ignore", category=BadContentDispositionParam)

_PARAMETER = re.compile(r';\s*([a-z0-9_.*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))', re.IGNORECASE)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form; a file has a `file_name`. Has to be read before the next one."""

    name: str
    file_name: str | None
    part: BodyPartReader

    async def chunks(self) -> AsyncIterator[bytes]:
        """What it holds, in pieces. Raises InvalidRequest."""
        while chunk := await _well_formed(self.part.read_chunk(CHUNK_BYTES)):
            yield chunk

    async def text(self, max_bytes: int = MAX_FIELD_BYTES) -> str:
        """All of it. Raises InvalidRequest, also where that is no UTF-8, and TooLarge."""
        data = bytearray()
        async for chunk in self.chunks():
            data += chunk
            if len(data) > max_bytes:
                raise TooLarge(f"{self.name} has at most {max_bytes} bytes", param=self.name)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"{self.name} is not UTF-8", code="invalid_value", param=self.name) from None


async def fields(request: web.Request, max_fields: int = MAX_FIELDS) -> AsyncIterator[Field]:
    """The fields of the form that a request brings. Raises UnsupportedMediaType for what is none,
    InvalidRequest for one that is malformed or ends too early, TooLarge for one of too many fields."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("a compressed body is not understood here; send it as it is")
    if request.content_type != "multipart/form-data":
        raise UnsupportedMediaType("send the file as Content-Type: multipart/form-data")
    try:
        reader = await request.multipart()
    except (ValueError, AssertionError):
        raise _malformed() from None
    await _well_formed(_begin(request))
    count = 0
    while (part := await _well_formed(reader.next())) is not None:
        count += 1
        if count > max_fields:
            raise TooLarge(f"a form has at most {max_fields} fields")
        if isinstance(part, MultipartReader):
            raise InvalidRequest("a form in a form is not understood", code="invalid_form")
        yield _field(part)


async def _begin(request: web.Request) -> None:
    """Raises ValueError where a form does not begin with its first field: aiohttp would look for that line by
    line, on the event loop, in all that a client sends."""
    boundary = b"--" + parse_mimetype(request.headers["Content-Type"]).parameters["boundary"].encode()
    line = await request.content.readline()
    if line == b"\r\n":  # some clients begin with that
        line = await request.content.readline()
    if line.rstrip() not in (boundary, boundary + b"--"):
        raise ValueError
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # aiohttp does the same
        request.content.unread_data(line)


async def _well_formed(reading: Awaitable[T]) -> T:
    try:
        return await reading
    except (web.RequestPayloadError, ConnectionError) as error:
        raise InvalidRequest("the body ended before it was complete", code="incomplete_body") from error
    except (ValueError, AssertionError, RuntimeError, BadHttpMessage) as error:
        raise _malformed() from error


def _malformed() -> InvalidRequest:
    return InvalidRequest("the body is no well-formed multipart/form-data", code="invalid_form")


def _field(part: BodyPartReader) -> Field:
    parameters: dict[str, str] = {}
    for match in _PARAMETER.finditer(part.headers.get("Content-Disposition", "")):
        value = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
        parameters.setdefault(match[1].lower(), value)
    name = parameters.get("name")
    if not name or len(name) > 100:
        raise InvalidRequest("a field of the form has no name", code="invalid_form")
    return Field(_unescaped(name), _file_name(parameters), part)


def _file_name(parameters: dict[str, str]) -> str | None:
    charset, _, value = parameters.get("filename*", "").partition("''")
    if charset.lower() == "utf-8":
        return unquote(value)
    name = parameters.get("filename")
    return None if name is None else _unescaped(name)


def _unescaped(value: str) -> str:
    """What browsers escape, and no more: another % is part of the name."""
    return value.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
