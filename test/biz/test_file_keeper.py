"""What is deleted of uploaded files, and what never is."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import NotFound
from internal.biz.file_keeper import FileKeeper
from internal.biz.files import FileRules, Files
from internal.data.file_folder import FileFolder
from internal.data.sql.files import SqlFiles

if TYPE_CHECKING:
    from test.conftest import OpenDatabase

DAY_S = 86400.0


class Site:
    def __init__(self, store: SqlFiles, path: Path) -> None:
        self.store, self.path = store, path
        self.folder = FileFolder(path, storage="a")
        self.files = Files(store, self.folder, FileRules())

    async def upload(self, user: str = "guest_ada") -> str:
        async with self.files.receiving(user) as draft:
            await draft.write(b"hello")
            return (await self.files.keep(user, draft, "a.txt", "user_data")).id

    def age(self, file_id: str) -> None:
        """Its bytes came two hours ago."""
        os.utime(self.folder.place(file_id), (time.time() - 7200,) * 2)

    def stored(self) -> set[str]:
        return {it.name for it in self.path.glob("??/*")}

    async def sweep(self, keep_s: float = DAY_S, storage: str = "a", after_s: float = 0) -> None:
        folder = FileFolder(self.path, storage=storage)
        await FileKeeper(self.store, folder, keep_s, now=lambda: time.time() + after_s).sweep()


@pytest.fixture
async def site(
    sqlite_storage: str, open_database: "OpenDatabase", tmp_path: Path, watched_loop: None
) -> AsyncIterator[Site]:
    async with open_database(sqlite_storage) as database:
        yield Site(SqlFiles(database), tmp_path / "files")


async def test_there_may_be_nothing_to_do(site: Site) -> None:
    await site.sweep()
    assert not site.path.exists()


async def test_files_stay_as_long_as_they_are_kept(site: Site) -> None:
    file_id = await site.upload()
    site.age(file_id)
    await site.sweep()
    assert site.stored() == {file_id}
    await site.sweep(keep_s=0, after_s=2 * DAY_S)
    assert site.stored() == {file_id}
    await site.sweep(after_s=2 * DAY_S)
    assert not site.stored()
    with pytest.raises(NotFound):
        await site.files.get(file_id, "guest_ada")


async def test_bytes_that_nobody_knows_of_are_removed_after_a_while(site: Site) -> None:
    known, unknown, new = [await site.upload() for _ in range(3)]
    for file_id in (unknown, new):
        await site.store.delete(file_id, "guest_ada")
    for file_id in (known, unknown):
        site.age(file_id)
    await site.sweep()
    assert site.stored() == {known, new}


async def test_bytes_of_another_storage_stay(site: Site) -> None:
    file_id = await site.upload()
    await site.sweep()  # which says whose they are
    await site.store.delete(file_id, "guest_ada")
    site.age(file_id)
    await site.sweep(storage="b")
    assert site.stored() == {file_id}
