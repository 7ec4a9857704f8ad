"""Files on a disk: a folder that all servers and workers share. Knows bytes and ids, not whose they are.

    {folder}/incoming/{random}    what is being written
    {folder}/{xy}/{id}            what is complete; xy are the last two characters of the id
    {folder}/storage              which storage knows of the files

A file is written under another name, made to last, and then renamed: whatever has an id is complete.
"""

import asyncio
import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from internal.biz.errors import Unavailable, unknown_file
from internal.biz.files import file_too_large
from internal.biz.ids import ID_PATTERN
from internal.biz.sniffing import Sniffer

log = logging.getLogger(__name__)

THREADS = 4
"""Of their own: a disk that hangs must not keep others from theirs."""
AT_ONCE = 500
"""Ids that are told together of all that are stored."""
_ID = re.compile(ID_PATTERN)
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

T = TypeVar("T")


class FileFolder:
    """Implements Folder. One per process. The folder is made when it is first needed, for nobody but us."""

    def __init__(self, path: Path, min_free_bytes: int = 0, storage: str = "") -> None:
        """Nothing is taken in while the disk has less than `min_free_bytes` free: others write there too.
        `storage` names the storage that knows of the files."""
        self._path = path
        self._storage = storage
        self._min_free_bytes = min_free_bytes
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="files")

    @contextlib.asynccontextmanager
    async def draft(self, max_bytes: int) -> AsyncIterator["DraftFile"]:
        draft = DraftFile(self, max_bytes)
        try:
            yield draft
        finally:
            # Whoever is cancelled here still leaves nothing behind.
            await asyncio.shield(self._submit(draft.discard_now))

    async def read(self, file_id: str, start: int = 0, max_bytes: int = -1) -> bytes:
        def read() -> bytes:
            try:
                with self.place(file_id).open("rb") as file:
                    file.seek(start)
                    return file.read(max_bytes)
            except FileNotFoundError:
                raise unknown_file(file_id) from None

        return await self.run(read)

    async def remove(self, ids: Collection[str]) -> None:
        def remove() -> None:
            for file_id in ids:
                try:
                    self.place(file_id).unlink(missing_ok=True)
                except OSError as error:
                    log.warning("a file cannot be removed: %s", error)

        await self.run(remove)

    async def is_ours(self) -> bool:
        def look() -> bool:
            if not self._path.is_dir():
                return True
            mark = self._path / "storage"
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(mark, _FLAGS, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    file.write(self._storage)
            if mark.read_text() == self._storage:
                return True
            log.warning(
                "files are not tidied: %s says that another storage has them; delete it if that has moved",
                mark,
            )
            return False

        return await self.run(look)

    async def tidy(self, older_than_s: float) -> None:
        def tidy() -> None:
            for entry in self._older(self.incoming, older_than_s):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry)

        await self.run(tidy)

    async def stored(self, older_than_s: float) -> AsyncIterator[Collection[str]]:
        shards = await self.run(self._shards)
        for shard in shards:
            old = await self.run(lambda shard=shard: list(self._older(shard, older_than_s)))  # type: ignore[misc]
            ids = [name for path in old if _ID.fullmatch(name := os.path.basename(path))]
            for start in range(0, len(ids), AT_ONCE):
                yield ids[start : start + AT_ONCE]

    def _shards(self) -> list[Path]:
        if not self._path.is_dir():
            return []
        return [it for it in self._path.iterdir() if len(it.name) == 2 and it.is_dir()]

    def _older(self, folder: Path, age_s: float) -> Iterator[str]:
        before = time.time() - age_s
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        if entry.stat(follow_symlinks=False).st_mtime < before:
                            yield entry.path
        except FileNotFoundError:
            return

    def _submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work)

    # ── for drafts ───────────────────────────────────────────────────────────────────────────────

    @property
    def incoming(self) -> Path:
        return self._path / "incoming"

    def place(self, file_id: str) -> Path:
        """Where a file is. Raises NotFound for what is no id: nothing else becomes a path."""
        if not _ID.fullmatch(file_id):
            raise unknown_file(file_id)
        return self._path / file_id[-2:] / file_id

    def make(self) -> None:
        """Make the folder, and that for drafts, where they are not there."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.incoming.mkdir(mode=0o700, exist_ok=True)

    def require_space(self) -> None:
        """Raises Unavailable."""
        if self._min_free_bytes and shutil.disk_usage(self.incoming).free < self._min_free_bytes:
            raise _no_space()

    async def run(self, work: Callable[[], T]) -> T:
        """On a thread. Raises Unavailable for what the disk refuses."""
        try:
            return await self._submit(work)
        except OSError as error:
            log.warning("the folder of files cannot be used: %s", error)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_space() from error
            raise Unavailable(
                "files cannot be stored or read at the moment", code="files_unavailable"
            ) from error


class DraftFile:
    """Implements Draft. The methods that end in `_now` run on a thread, one at a time: who gives up while
    another writes waits for it."""

    def __init__(self, folder: FileFolder, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._path = folder.incoming / secrets.token_hex(16)
        self._sniffer = Sniffer()
        self._lock = threading.Lock()
        self._descriptor = -1
        self._over = False
        self.size_bytes = 0

    async def write(self, data: bytes) -> None:
        self.size_bytes += len(data)
        if self.size_bytes > self._max_bytes:
            raise file_too_large(self._max_bytes)
        await self._folder.run(lambda: self._write_now(data))

    async def finish(self) -> str:
        return await self._folder.run(self._finish_now)

    async def keep(self, file_id: str) -> None:
        await self._folder.run(lambda: self._keep_now(file_id))

    def _write_now(self, data: bytes) -> None:
        with self._lock:
            if self._over:
                return
            if self._descriptor < 0:
                self._folder.make()
                self._descriptor = os.open(self._path, _FLAGS, 0o600)
            self._folder.require_space()
            self._sniffer.feed(data)
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]

    def _finish_now(self) -> str:
        with self._lock:
            if self._descriptor >= 0:
                os.fsync(self._descriptor)
                self._close()
            return self._sniffer.media_type()

    def _keep_now(self, file_id: str) -> None:
        with self._lock:
            place = self._folder.place(file_id)
            place.parent.mkdir(mode=0o700, exist_ok=True)
            os.rename(self._path, place)
            self._over = True
            _sync(place.parent)

    def discard_now(self) -> None:
        with self._lock:
            if not self._over:
                self._over = True
                try:
                    self._close()
                    self._path.unlink(missing_ok=True)
                except OSError as error:
                    log.warning("what was uploaded in vain cannot be removed: %s", error)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _sync(folder: Path) -> None:
    """Make new names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_space() -> Unavailable:
    return Unavailable("this server has no room for more files", code="insufficient_storage")
