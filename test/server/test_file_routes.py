"""/v1/files over HTTP: what is let in, to whom it is shown, and what is left of what breaks off."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from aiohttp import ClientResponse, FormData
from openai.types import FileObject

from internal.biz.files import FileRules, Files, Quota
from internal.data.file_folder import FileFolder
from internal.data.sql.files import SqlFiles

if TYPE_CHECKING:
    from test.conftest import Eventually, OpenDatabase
    from test.server.conftest import Api

MAX_BYTES = 300_000
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
FORM = {"Content-Type": "multipart/form-data; boundary=xyz"}


class Site:
    """The application with files, and the folder that they are in."""

    def __init__(self, api: "Api", path: Path) -> None:
        self.api = api
        self.path = path

    def stored(self) -> list[bytes]:
        return [it.read_bytes() for it in self.path.rglob("*") if it.is_file()]

    async def has_some(self) -> bool:
        return any(self.stored())

    async def is_idle(self) -> bool:
        return not len(self.api.streams)

    async def post(self, token: str, data: Any, **headers: str) -> ClientResponse:
        return await self.api.call("POST", "/v1/files", token=token, data=data, headers=headers)

    async def upload(
        self, token: str, content: bytes = b"hello", name: str = "a.txt", **more: str
    ) -> ClientResponse:
        form = FormData(more, quote_fields=False)
        form.add_field("file", content, filename=name, content_type="text/html")
        return await self.post(token, form)

    async def uploaded(self, token: str, content: bytes = b"hello", name: str = "a.txt") -> Any:
        reply = await self.upload(token, content, name)
        assert reply.status == 200, await reply.text()
        return await reply.json()

    async def post_parts(self, token: str, *parts: bytes) -> ClientResponse:
        """A form of these parts, as they are."""
        body = b"".join(b"--xyz\r\n" + part + b"\r\n" for part in parts) + b"--xyz--\r\n"
        return await self.post(token, body, **FORM)


@pytest.fixture
async def site(
    request: pytest.FixtureRequest,
    api_type: "type[Api]",
    sqlite_storage: str,
    open_database: "OpenDatabase",
    tmp_path: Path,
    watched_loop: None,
) -> AsyncIterator[Site]:
    """Its parameters are those of the application."""
    path = tmp_path / "files"
    rules = FileRules(MAX_BYTES, Quota(5, 1_000_000))
    async with open_database(sqlite_storage) as database:
        files = Files(SqlFiles(database), FileFolder(path), rules)
        async with api_type(files=files, **getattr(request, "param", {})).serving() as api:
            yield Site(api, path)


@pytest.fixture
async def ada(site: Site) -> str:
    return guest("ada")


def guest(name: str) -> str:
    return f"token-guest_{name}"


async def error(reply: ClientResponse) -> tuple[int, str, str | None]:
    body = (await reply.json())["error"]
    return reply.status, body["code"], body["param"]


# ── from its beginning to its end ────────────────────────────────────────────────────────────────


async def test_the_openai_package_drives_it(site: Site, ada: str) -> None:
    url = str(site.api.client.make_url("/v1"))
    async with openai.AsyncOpenAI(base_url=url, api_key=ada, max_retries=0) as client:
        file = await client.files.create(file=("grüße.txt", b"hello"), purpose="user_data")
        FileObject.model_validate(file.model_dump(), strict=True)
        assert (file.filename, file.bytes, file.purpose, file.status) == (
            "grüße.txt",
            5,
            "user_data",
            "processed",
        )
        assert file.expires_at is not None
        assert file.expires_at - file.created_at == 30 * 86400
        assert await client.files.retrieve(file.id) == file
        more = [await client.files.create(file=b"more", purpose="vision") for _ in range(3)]
        assert [it.id async for it in client.files.list(limit=2)] == [it.id for it in (*more[::-1], file)]
        assert [it.id async for it in client.files.list(purpose="user_data", order="asc")] == [file.id]
        assert (await client.files.content(file.id)).content == b"hello"
        gone = await client.files.delete(file.id)
        assert (gone.id, gone.deleted, gone.object) == (file.id, True, "file")
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)
        with pytest.raises(openai.BadRequestError):
            await client.files.create(file=b"x", purpose="fine-tune")
    assert len(site.stored()) == 3


async def test_what_it_is_its_bytes_say(site: Site, ada: str) -> None:
    assert (await site.uploaded(ada, PNG, "cat.html"))["media_type"] == "image/png"
    assert (await site.uploaded(ada, b"<script>alert(1)</script>", "cat.png"))["media_type"] == "text/plain"


async def test_the_purpose_may_stand_behind_the_file_or_nowhere(site: Site, ada: str) -> None:
    form = FormData()
    form.add_field("file", b"x", filename="a.txt")
    form.add_field("purpose", "vision")
    assert (await (await site.post(ada, form)).json())["purpose"] == "vision"
    assert (await site.uploaded(ada))["purpose"] == "user_data"


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('filename="../../../etc/passwd"', "passwd"),
        ('filename="C:\\\\temp\\\\a.txt"', "a.txt"),
        ('filename="a%22b%.txt"', 'a"b%.txt'),
        ('filename="say \\"hi\\".txt"', 'say "hi".txt'),
        ("filename=plain.txt", "plain.txt"),
        ("filename=\"x\"; filename*=UTF-8''gr%C3%BC%C3%9Fe.txt", "grüße.txt"),
        ('filename="exe\u202etxt.tab"', "exetxt.tab"),
        ('filename=""', "file"),
        ('filename="' + "x" * 5000 + '.txt"', "x" * 251 + ".txt"),
    ],
)
async def test_a_name_is_only_a_name(site: Site, ada: str, header: str, name: str) -> None:
    part = f'Content-Disposition: form-data; name="file"; {header}\r\n\r\nhello'.encode()
    assert (await (await site.post_parts(ada, part)).json())["filename"] == name


# ── downloads ────────────────────────────────────────────────────────────────────────────────────


async def test_a_download_is_nobodys_page(site: Site, ada: str) -> None:
    file = await site.uploaded(ada, b"<script>alert(1)</script>", 'grüße "1".html')
    reply = await site.api.call("GET", f"/v1/files/{file['id']}/content", token=ada)
    assert await reply.read() == b"<script>alert(1)</script>"
    assert reply.headers["Content-Type"] == "text/plain"
    assert reply.headers["Content-Disposition"] == (
        "attachment; filename=\"gr__e _1_.html\"; filename*=UTF-8''gr%C3%BC%C3%9Fe%20%221%22.html"
    )
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["Content-Security-Policy"].startswith("sandbox")


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        ("bytes=0-9", 206, 0, 9),
        ("bytes=290000-", 206, 290_000, MAX_BYTES - 1),
        ("bytes=-5", 206, MAX_BYTES - 5, MAX_BYTES - 1),
        ("bytes=5-9999999", 206, 5, MAX_BYTES - 1),
        ("bytes=300000-", 416, 0, -1),
        ("bytes=9-5", 200, 0, MAX_BYTES - 1),
        ("bytes=0-1,3-4", 200, 0, MAX_BYTES - 1),
        ("words=0-1", 200, 0, MAX_BYTES - 1),
        ("", 200, 0, MAX_BYTES - 1),
    ],
)
async def test_a_range(site: Site, ada: str, asked: str, status: int, first: int, last: int) -> None:
    content = bytes(32 + number % 90 for number in range(MAX_BYTES))
    file_id = (await site.uploaded(ada, content))["id"]
    headers = {"Range": asked} if asked else {}
    reply = await site.api.call("GET", f"/v1/files/{file_id}/content", token=ada, headers=headers)
    assert (reply.status, await reply.read()) == (status, content[first : last + 1])
    told = {206: f"bytes {first}-{last}/{MAX_BYTES}", 416: f"bytes */{MAX_BYTES}", 200: None}
    assert reply.headers.get("Content-Range") == told[status]


async def test_a_range_of_what_was_another_file(site: Site, ada: str) -> None:
    file_id = (await site.uploaded(ada))["id"]
    path = f"/v1/files/{file_id}/content"
    for tag, status in ((f'"{file_id}"', 206), ('"other"', 200)):
        headers = {"Range": "bytes=1-2", "If-Range": tag}
        assert (await site.api.call("GET", path, token=ada, headers=headers)).status == status


async def test_its_head_alone(site: Site, ada: str) -> None:
    file_id = (await site.uploaded(ada))["id"]
    reply = await site.api.call("HEAD", f"/v1/files/{file_id}/content", token=ada)
    assert (reply.status, reply.headers["Content-Length"], await reply.read()) == (200, "5", b"")


async def test_bytes_that_are_gone(site: Site, ada: str) -> None:
    file_id = (await site.uploaded(ada))["id"]
    (place,) = site.path.glob("??/*")
    place.unlink()
    reply = await site.api.call("GET", f"/v1/files/{file_id}/content", token=ada)
    assert await error(reply) == (404, "file_not_found", "file_id")


# ── whose it is ──────────────────────────────────────────────────────────────────────────────────


async def test_what_is_anothers_is_not_there(site: Site, ada: str) -> None:
    file_id = (await site.uploaded(ada))["id"]
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        reply = await site.api.call(method, f"/v1/files/{file_id}{path}", token=guest("bob"))
        assert await error(reply) == (404, "file_not_found", "file_id")
    listed = await (await site.api.call("GET", "/v1/files", token=guest("bob"))).json()
    assert (listed["data"], listed["has_more"]) == ([], False)
    assert (await site.api.call("GET", f"/v1/files/{file_id}", token=ada)).status == 200


async def test_a_page_elsewhere_cannot_upload_for_a_guest(site: Site) -> None:
    """A browser sends a form, and cookies along with it, wherever a page tells it to."""
    headers = {"Origin": "https://evil.example", "Cookie": "sluice_guest=token-guest_ada"}
    form = FormData()
    form.add_field("file", b"x", filename="a.txt")
    reply = await site.api.call("POST", "/v1/files", data=form, headers=headers)
    assert (await error(reply))[:2] == (403, "origin_not_allowed")
    assert site.stored() == []


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "file_empty"),
        (b"\x7fELF\0\0", 415, "unsupported_file"),
        (b"%PDF-1.7", 415, "unsupported_file"),
        (b"x" * (MAX_BYTES + 1), 413, "file_too_large"),
    ],
)
async def test_what_is_no_file_for_us(site: Site, ada: str, content: bytes, status: int, code: str) -> None:
    assert await error(await site.upload(ada, content)) == (status, code, "file")
    assert site.stored() == []


async def test_one_that_says_it_is_too_large_is_not_even_read(site: Site, ada: str) -> None:
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ada}\r\nContent-Length: 1000000000\r\n"
        "Content-Type: multipart/form-data; boundary=xyz\r\n\r\n"
    )
    async with site.api.connection() as (reader, writer):
        writer.write(head.encode())
        assert b" 413 " in await reader.readline()


async def test_one_that_does_not_say_its_size_is_stopped_on_its_way(site: Site, ada: str) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while sent < 100 * MAX_BYTES:
            sent += 65_536
            yield b"x" * 65_536

    reply = await site.post(ada, body(), **FORM)
    assert await error(reply) == (413, "file_too_large", "file")
    assert sent < 100 * MAX_BYTES
    assert site.stored() == []


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ([b'Content-Disposition: form-data; name="purpose"\r\n\r\nvision'], 400, "invalid_value"),
        ([b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\nx'] * 2, 400, "invalid_value"),
        (
            [b'Content-Disposition: form-data; name="expires_after[seconds]"\r\n\r\n5'],
            400,
            "unsupported_parameter",
        ),
        (
            [b'Content-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 70_000],
            413,
            "request_too_large",
        ),
        ([b'Content-Disposition: form-data; name="purpose"\r\n\r\n\xff'], 400, "invalid_value"),
        ([b"Content-Type: text/plain\r\n\r\nx"], 400, "invalid_form"),
        ([b"Content-Type: multipart/mixed; boundary=abc\r\n\r\n--abc--"], 400, "invalid_form"),
        ([b"no header\r\n\r\nx"], 400, None),
        ([b'Content-Disposition: form-data; name="_charset_"\r\n\r\n' + b"x" * 40], 400, "invalid_form"),
        (
            [b'Content-Disposition: form-data; name="a%d"\r\n\r\n' % n for n in range(40)],
            413,
            "request_too_large",
        ),
    ],
)
async def test_a_form_that_is_none(
    site: Site, ada: str, parts: list[bytes], status: int, code: str | None
) -> None:
    reply = await site.post_parts(ada, *parts)
    told = (await reply.json())["error"]
    assert (reply.status, told["code"]) == (status, code or told["code"])
    assert site.stored() == []


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 415),
        ("multipart/mixed; boundary=xyz", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=" + "x" * 71, 400),
        ("multipart/form-data; boundary=other", 400),
    ],
)
async def test_a_body_that_is_no_form(site: Site, ada: str, content_type: str, status: int) -> None:
    reply = await site.post(ada, b"--xyz\r\n\r\n--xyz--", **{"Content-Type": content_type})
    assert reply.status == status


@pytest.mark.parametrize(
    ("before", "status"), [(b"", 200), (b"\r\n", 200), (b"hello\r\n", 400), (b"\n" * 9, 400)]
)
async def test_a_form_begins_with_its_first_field(site: Site, ada: str, before: bytes, status: int) -> None:
    part = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--xyz--\r\n'
    reply = await site.post(ada, before + part, **FORM)
    assert reply.status == status, await reply.text()


async def test_a_user_has_at_most_so_many(site: Site, ada: str) -> None:
    for _ in range(5):
        await site.uploaded(ada)
    assert (await error(await site.upload(ada)))[:2] == (403, "file_quota_exceeded")
    await site.uploaded(guest("bob"))
    assert len(site.stored()) == 6


# ── what breaks off ──────────────────────────────────────────────────────────────────────────────

BEGINNING = (
    b"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-guest_ada\r\n"
    b"Content-Length: 250000\r\nContent-Type: multipart/form-data; boundary=xyz\r\n\r\n"
    b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 200_000
)


async def test_an_upload_that_breaks_off_leaves_nothing(site: Site, eventually: "Eventually") -> None:
    async with site.api.connection() as (_, writer):
        writer.write(BEGINNING)
        await eventually(site.has_some)
    await eventually(site.is_idle)
    assert site.stored() == []


@pytest.mark.parametrize("site", [{"silence_s": 0.3}], indirect=True)
async def test_an_upload_that_stops_coming_is_ended(site: Site, eventually: "Eventually") -> None:
    async with site.api.connection() as (reader, writer):
        writer.write(BEGINNING)
        await eventually(site.has_some)
        assert b" 503 " in await reader.readline()
    assert site.stored() == []


async def test_an_upload_does_not_keep_the_server_from_its_end(site: Site, eventually: "Eventually") -> None:
    async with site.api.connection() as (reader, writer):
        writer.write(BEGINNING)
        await eventually(site.has_some)
        await site.api.streams.close()
        assert b" 503 " in await reader.readline()
    assert site.stored() == []


@pytest.mark.parametrize("site", [{"timeout_s": 0.5, "silence_s": 0.5}], indirect=True)
async def test_an_upload_takes_as_long_as_it_comes(site: Site) -> None:
    async with site.api.connection() as (reader, writer):
        writer.write(BEGINNING.replace(b"250000", b"%d" % (len(BEGINNING.partition(b"\r\n\r\n")[2]) + 29)))
        for piece in (b"xxxxx", b"xxxxx", b"xxxxx", b"xxxxx", b"\r\n--xyz--"):
            await asyncio.sleep(0.15)
            writer.write(piece)
        assert b" 200 " in await reader.readline()
    assert [len(it) for it in site.stored()] == [200_020]


async def test_a_form_for_several_models_may_name_an_uploaded_file(site: Site, ada: str) -> None:
    file = await site.uploaded(ada, b"what stands in it", "notes.txt")
    form = FormData(
        {"prompt": "sum it up", "model": "m,other", "files": file["id"]}, default_to_multipart=True
    )
    reply = await site.api.call("POST", "/v1/chat/completions", token=ada, data=form)
    assert reply.status == 202, await reply.text()
    for model in ("m", "other"):
        (message,) = (await site.api.engine.claim(model)).request.messages
        (attached,) = message.attachments
        assert (attached.file_id, attached.text) == (file["id"], "what stands in it")
    theirs = FormData({"prompt": "hi", "files": file["id"]}, default_to_multipart=True)
    stolen = await site.api.call("POST", "/v1/chat/completions", token=guest("bob"), data=theirs)
    assert (await error(stolen))[:2] == (404, "file_not_found")
