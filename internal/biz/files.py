"""The use cases of uploaded files: take in, list, read, delete. What is another user's is not found.

Knows neither how they are uploaded nor where bytes and rows are.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from internal.biz.errors import FileTooLarge, Forbidden, InvalidRequest, UnsupportedFile
from internal.biz.ids import new_id
from internal.biz.names import file_name
from internal.biz.sniffing import IMAGES, TEXT, UNKNOWN

MAX_PAGE = 1000
"""Of files at a time."""


@dataclass(frozen=True, slots=True)
class File:
    """`media_type` is what the bytes say, not what the client claimed. `created_at` is Unix seconds."""

    id: str
    user: str
    name: str
    media_type: str
    purpose: str
    size_bytes: int
    created_at: float

    @property
    def is_image(self) -> bool:
        return self.media_type in IMAGES


@dataclass(frozen=True, slots=True)
class Quota:
    """What one user may have; 0: no limit."""

    files: int = 1000
    size_bytes: int = 1 << 30

    def require_room(self, files: int, size_bytes: int) -> None:
        """For a user who would have so much. Raises Forbidden."""
        if self.files and files > self.files:
            raise _full(f"one user has at most {self.files} files")
        if self.size_bytes and size_bytes > self.size_bytes:
            raise _full(f"the files of one user have at most {self.size_bytes} bytes together")


def _full(rule: str) -> Forbidden:
    return Forbidden(f"{rule}; delete one that is not needed any more", code="file_quota_exceeded")


@dataclass(frozen=True, slots=True)
class FileRules:
    """`types` are the media types that are taken. A file stays for `keep_s` (0: for ever)."""

    max_bytes: int = 20 << 20
    quota: Quota = Quota()
    types: Collection[str] = (TEXT, *IMAGES)
    keep_s: float = 30 * 86400.0


class FileStore(Protocol):
    """What is known of files. Every call raises Unavailable while the storage cannot be reached."""

    async def add(self, file: File, quota: Quota) -> None:
        """Raises Forbidden when the user has too much already, and NotFound when they are no more."""

    async def usage(self, user: str) -> tuple[int, int]:
        """How many files the user has, and how many bytes."""

    async def get(self, file_id: str, user: str) -> File:
        """Raises NotFound also for another user's."""

    async def page(
        self, user: str, limit: int, after: str | None, purpose: str | None, *, oldest_first: bool
    ) -> Sequence[File]:
        """At most `limit` of the user's files, those behind the id `after`."""

    async def delete(self, file_id: str, user: str) -> None:
        """Raises as `get`."""

    async def forget(self, before: float, limit: int) -> Sequence[str]:
        """Delete some that are older than that (Unix seconds); returns their ids."""

    async def known(self, ids: Collection[str]) -> Collection[str]:
        """Which of these there are."""


class Draft(Protocol):
    """A file that is on its way. Implementations check its size while it comes."""

    @property
    def size_bytes(self) -> int: ...

    async def write(self, data: bytes) -> None:
        """Raises FileTooLarge, and Unavailable when there is no room for it."""

    async def finish(self) -> str:
        """It is complete, and lasts. Returns its media type."""

    async def keep(self, file_id: str) -> None:
        """From now on it is the file of this id."""


class Folder(Protocol):
    """The bytes of files. Every call raises Unavailable when the disk is at fault, and never waits for it on
    the event loop."""

    def draft(self, max_bytes: int) -> contextlib.AbstractAsyncContextManager[Draft]:
        """A new file. Nothing is left of it unless it was kept."""

    async def read(self, file_id: str, start: int = 0, max_bytes: int = -1) -> bytes:
        """Raises NotFound when there is no such file."""

    async def remove(self, ids: Collection[str]) -> None:
        """Never raises: what could not be removed is found again as one that nobody knows."""

    async def is_ours(self) -> bool:
        """Whether the files here are those of our storage, and of no other that has the same folder."""

    async def tidy(self, older_than_s: float) -> None:
        """Remove what was begun so long ago and never finished: its process is no more."""

    def stored(self, older_than_s: float) -> AsyncIterator[Collection[str]]:
        """The ids of all files that have not changed for so long, some at a time."""


class Files:
    """One per process."""

    def __init__(self, store: FileStore, folder: Folder, rules: FileRules) -> None:
        self._store = store
        self._folder = folder
        self.rules = rules

    @contextlib.asynccontextmanager
    async def receiving(self, user: str, size_bytes: int = 0) -> AsyncIterator[Draft]:
        """A file of the user's to write to, and then to `keep`; `size_bytes`: as many at least it will have.

        Nothing is left of one that was not kept. Raises FileTooLarge, Forbidden and Unavailable.
        """
        if size_bytes > self.rules.max_bytes:
            raise file_too_large(self.rules.max_bytes)
        files, used_bytes = await self._store.usage(user)
        self.rules.quota.require_room(files + 1, used_bytes + size_bytes)
        async with self._folder.draft(self.rules.max_bytes) as draft:
            yield draft

    async def keep(self, user: str, draft: Draft, name: str, purpose: str) -> File:
        """Raises InvalidRequest when it is empty, UnsupportedFile, Forbidden and Unavailable."""
        media_type = await draft.finish()
        if not draft.size_bytes:
            raise InvalidRequest("the file is empty", code="file_empty", param="file")
        if media_type not in self.rules.types:
            raise self._unsupported(media_type)
        file = File(new_id("file"), user, file_name(name), media_type, purpose, draft.size_bytes, time.time())
        # The bytes first: a row without them would be a file that cannot be read.
        await draft.keep(file.id)
        try:
            await self._store.add(file, self.rules.quota)
        except Forbidden:
            await self._folder.remove([file.id])
            raise
        return file

    def _unsupported(self, media_type: str) -> UnsupportedFile:
        known = ", ".join(self.rules.types)
        what = "neither UTF-8 text nor anything else known here" if media_type == UNKNOWN else media_type
        return UnsupportedFile(f"this file is {what}; this server takes: {known}", param="file")

    async def get(self, file_id: str, user: str) -> File:
        """Raises NotFound."""
        return await self._store.get(file_id, user)

    async def page(
        self,
        user: str,
        limit: int,
        after: str | None = None,
        purpose: str | None = None,
        *,
        oldest_first: bool = False,
    ) -> tuple[Sequence[File], bool]:
        """At most `limit` files, and MAX_PAGE, behind the id `after`; and whether there are more."""
        limit = min(limit, MAX_PAGE)
        found = await self._store.page(user, limit + 1, after, purpose, oldest_first=oldest_first)
        return found[:limit], len(found) > limit

    async def read(self, file: File, start: int = 0, max_bytes: int = -1) -> bytes:
        """Raises NotFound when it was deleted meanwhile."""
        return await self._folder.read(file.id, start, max_bytes)

    async def delete(self, file_id: str, user: str) -> None:
        """Raises NotFound. What messages have of it stays, but for images."""
        await self._store.delete(file_id, user)
        await self._folder.remove([file_id])


def file_too_large(max_bytes: int) -> FileTooLarge:
    return FileTooLarge(f"a file has at most {max_bytes} bytes", param="file")
