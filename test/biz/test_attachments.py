"""What is attached becomes text, or an image."""

import base64
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field

import pytest

from internal.biz.attachments import ANY_IMAGE, MAX_FILES, Attachments, data_url
from internal.biz.errors import (
    ContextLengthExceeded,
    FileTooLarge,
    InvalidRequest,
    NotFound,
    SluiceError,
    Unavailable,
    unknown_file,
)
from internal.biz.files import Draft, File, FileRules, Files, Quota
from internal.biz.images import GONE, Images
from internal.biz.models import Attachment, Caller, Message, Role
from internal.biz.sniffing import sniff

ADA = Caller("guest_ada")
PNG = b"\x89PNG\r\n\x1a\n" + bytes(30)


@dataclass
class Shelf:
    """Files in two dicts. Implements FileStore and Folder, as far as is needed."""

    files: dict[str, File] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)

    def put(self, file_id: str, data: bytes, user: str = ADA.user, name: str = "a.txt") -> File:
        file = File(file_id, user, name, sniff(data), "user_data", len(data), 1.0)
        self.files[file_id], self.contents[file_id] = file, data
        return file

    async def get(self, file_id: str, user: str) -> File:
        if file_id not in self.files or self.files[file_id].user != user:
            raise unknown_file(file_id)
        return self.files[file_id]

    async def add(self, file: File, quota: Quota) -> None:
        self.files[file.id] = file

    async def usage(self, user: str) -> tuple[int, int]:
        return 0, 0

    async def page(
        self, user: str, limit: int, after: str | None, purpose: str | None, *, oldest_first: bool
    ) -> Sequence[File]:
        raise NotImplementedError

    async def delete(self, file_id: str, user: str) -> None:
        raise NotImplementedError

    async def forget(self, before: float, limit: int) -> Sequence[str]:
        raise NotImplementedError

    async def known(self, ids: Collection[str]) -> Collection[str]:
        raise NotImplementedError

    async def read(self, file_id: str, start: int = 0, max_bytes: int = -1) -> bytes:
        if file_id not in self.contents:
            raise unknown_file(file_id)
        return self.contents[file_id]

    @contextlib.asynccontextmanager
    async def draft(self, max_bytes: int) -> AsyncIterator[Draft]:
        yield InMemory(self)

    async def remove(self, ids: Collection[str]) -> None:
        raise NotImplementedError

    async def is_ours(self) -> bool:
        raise NotImplementedError

    async def tidy(self, older_than_s: float) -> None:
        raise NotImplementedError

    async def stored(self, older_than_s: float) -> AsyncIterator[Collection[str]]:
        raise NotImplementedError
        yield ()


class InMemory:
    """Implements Draft."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._data = b""

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    async def write(self, data: bytes) -> None:
        self._data += data

    async def finish(self) -> str:
        return sniff(self._data)

    async def keep(self, file_id: str) -> None:
        self._shelf.contents[file_id] = self._data


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def attachments(shelf: Shelf) -> Attachments:
    return Attachments(Files(shelf, shelf, FileRules(max_bytes=1000)), max_text_chars=20)


def asks(*attachments: Attachment) -> tuple[Message, ...]:
    return (Message(Role.USER, "what is it?", attachments=attachments),)


async def resolved(it: Attachments, *attachments: Attachment, store: bool = True) -> tuple[Attachment, ...]:
    (message,) = await it.resolve(ADA, asks(*attachments), store=store)
    assert message.content == "what is it?"
    return message.attachments


def stored(file_id: str) -> Attachment:
    return Attachment("", "", file_id)


def inline(data: bytes, name: str = "", media_type: str = "") -> Attachment:
    # What it says of itself does not matter.
    return Attachment(name, media_type, url="data:image/png;base64," + base64.b64encode(data).decode())


async def test_the_text_of_a_stored_file_is_read(attachments: Attachments, shelf: Shelf) -> None:
    shelf.put("file_1", "\ufeffgrüße".encode(), name="a.md")
    assert await resolved(attachments, stored("file_1")) == (
        Attachment("a.md", "text/plain", "file_1", text="grüße"),
    )


async def test_a_stored_image_stays_a_reference(attachments: Attachments, shelf: Shelf) -> None:
    shelf.put("file_1", PNG, name="a.png")
    for asked in (stored("file_1"), Attachment("", ANY_IMAGE, "file_1")):
        assert await resolved(attachments, asked) == (Attachment("a.png", "image/png", "file_1"),)


async def test_text_in_the_message_is_read(attachments: Attachments, shelf: Shelf) -> None:
    assert await resolved(attachments, inline(b"hello", "/tmp/a.txt"), inline(b"x")) == (
        Attachment("a.txt", "text/plain", text="hello"),
        Attachment("file", "text/plain", text="x"),
    )
    assert not shelf.files


async def test_an_image_in_the_message_becomes_a_file(attachments: Attachments, shelf: Shelf) -> None:
    (found,) = await resolved(attachments, inline(PNG, media_type=ANY_IMAGE))
    (file,) = shelf.files.values()
    assert found == Attachment("image.png", "image/png", file.id)
    assert (file.user, shelf.contents[file.id]) == (ADA.user, PNG)


async def test_an_image_stays_in_a_message_that_is_not_stored(attachments: Attachments, shelf: Shelf) -> None:
    carried = Attachment("image.png", "image/png", url=data_url("image/png", PNG))
    assert await resolved(attachments, inline(PNG, media_type=ANY_IMAGE), store=False) == (carried,)
    assert await resolved(Attachments(), inline(PNG, media_type=ANY_IMAGE)) == (carried,)
    assert not shelf.files


async def test_what_is_resolved_stays(attachments: Attachments, shelf: Shelf) -> None:
    shelf.put("file_1", PNG)
    shelf.put("file_2", b"text")
    first = await resolved(attachments, stored("file_1"), stored("file_2"), inline(b"more"))
    shelf.files.clear()
    assert await resolved(attachments, *first) == first


@pytest.mark.parametrize(
    ("asked", "error", "code"),
    [
        (stored("file_of_bob"), NotFound, "file_not_found"),
        (stored("file_never"), NotFound, "file_not_found"),
        (stored("file_pdf"), InvalidRequest, "unsupported_file"),
        (Attachment("", ANY_IMAGE, "file_text"), InvalidRequest, "unsupported_file"),
        (inline(b"text", media_type=ANY_IMAGE), InvalidRequest, "unsupported_file"),
        (inline(b"%PDF-1.7"), InvalidRequest, "unsupported_file"),
        (inline(b"\x7fELF\0"), InvalidRequest, "unsupported_file"),
        (inline(b""), InvalidRequest, "file_empty"),
        (inline(b"x" * 21), ContextLengthExceeded, "context_length_exceeded"),
        (inline(PNG + bytes(1000), media_type=ANY_IMAGE), FileTooLarge, "file_too_large"),
        (Attachment("", "", url="data:text/plain,hello"), InvalidRequest, "invalid_file_data"),
        (Attachment("", "", url="data:;base64,grüße"), InvalidRequest, "invalid_file_data"),
        (Attachment("", "", url="data:;base64,aGk"), InvalidRequest, "invalid_file_data"),
        (Attachment("", "", url="https://example.org"), InvalidRequest, "invalid_file_data"),
    ],
)
async def test_what_cannot_be_attached_is_refused(
    attachments: Attachments, shelf: Shelf, asked: Attachment, error: type[SluiceError], code: str
) -> None:
    shelf.put("file_of_bob", b"secret", user="guest_bob")
    shelf.put("file_pdf", b"%PDF-1.7")
    shelf.put("file_text", b"text")
    with pytest.raises(error) as refusal:
        await resolved(attachments, asked)
    assert refusal.value.code == code


async def test_a_file_that_is_much_too_long_is_not_even_read(attachments: Attachments, shelf: Shelf) -> None:
    shelf.put("file_1", b"x" * 1000)
    shelf.contents.clear()
    with pytest.raises(ContextLengthExceeded):
        await resolved(attachments, stored("file_1"))


async def test_all_files_of_a_turn_count(attachments: Attachments) -> None:
    assert len(await resolved(attachments, inline(b"x" * 10), inline(b"x" * 10))) == 2
    with pytest.raises(ContextLengthExceeded):
        await resolved(attachments, inline(b"x" * 10), inline(b"x" * 10), inline(b"x"))
    with pytest.raises(InvalidRequest):
        await resolved(attachments, *[inline(b"x")] * (MAX_FILES + 1))


async def test_without_files_there_is_nothing_to_refer_to() -> None:
    with pytest.raises(NotFound):
        await resolved(Attachments(), stored("file_1"))


# ── for engines that look at them ────────────────────────────────────────────────────────────────


async def test_an_engine_gets_the_bytes_of_images(shelf: Shelf) -> None:
    shelf.put("file_1", PNG)
    image, text = Attachment("a.png", "image/png", "file_1"), Attachment("b", "text/plain", "file_2", "hi")
    before = (Message(Role.SYSTEM, "be brief"), *asks(image, text))
    system, message = await Images(shelf).loaded(before)
    assert system is before[0]
    assert message.attachments == (
        Attachment("a.png", "image/png", "file_1", url=data_url("image/png", PNG)),
        text,
    )


async def test_of_too_many_images_the_newest_are_looked_at(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("internal.biz.images.MAX_BYTES", 100)
    for number in range(4):
        shelf.put(f"file_{number}", PNG)
    turns = [asks(Attachment("a", "image/png", f"file_{number}"))[0] for number in range(4)]
    loaded = await Images(shelf).loaded(tuple(turns))
    assert [it.attachments[0].text for it in loaded] == [GONE, GONE, None, None]


@pytest.mark.parametrize("error", [Unavailable("the disk is away"), MemoryError()])
async def test_an_image_that_is_gone_is_said_to_be(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    gone = Attachment("a.png", "image/png", "file_1")
    (message,) = await Images(shelf).loaded(asks(gone))
    assert message.attachments[0].text == GONE

    async def fail(*args: object) -> bytes:
        raise error

    monkeypatch.setattr(shelf, "read", fail)
    (message,) = await Images(shelf).loaded(asks(gone))
    assert message.attachments[0].text == GONE
