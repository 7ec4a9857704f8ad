"""Bytes on a disk."""

import asyncio
import errno
import os
import stat
import time
from pathlib import Path

import pytest

from internal.biz.errors import FileTooLarge, NotFound, Unavailable
from internal.data.file_folder import FileFolder

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some" / "files"


@pytest.fixture
def folder(path: Path, watched_loop: None) -> FileFolder:
    return FileFolder(path)


def files_in(path: Path) -> list[Path]:
    return [it for it in path.rglob("*") if it.is_file()]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def store(folder: FileFolder, file_id: str, *chunks: bytes, max_bytes: int = 1000) -> str:
    async with folder.draft(max_bytes) as draft:
        for chunk in chunks:
            await draft.write(chunk)
        media_type = await draft.finish()
        await draft.keep(file_id)
    return media_type


def age(path: Path) -> None:
    """It was written two hours ago."""
    os.utime(path, (time.time() - 7200,) * 2)


async def test_what_is_kept_can_be_read(folder: FileFolder) -> None:
    assert await store(folder, "file_1ab", b"hello, ", b"world") == "text/plain"
    assert await store(folder, "file_2ab", PNG) == "image/png"
    assert await folder.read("file_1ab") == b"hello, world"
    assert await folder.read("file_1ab", 7, 3) == b"wor"
    assert await folder.read("file_1ab", 100, 3) == b""


async def test_nobody_else_on_the_machine_may_read_it(folder: FileFolder, path: Path) -> None:
    await store(folder, "file_1ab", b"x")
    assert [mode_of(path / name) for name in ("", "incoming", "ab", "ab/file_1ab")] == [0o700] * 3 + [0o600]


async def give_up(folder: FileFolder, path: Path) -> None:
    async with folder.draft(1000) as draft:
        await draft.write(b"half of it")
        assert files_in(path)
        raise ConnectionError


async def test_what_is_given_up_leaves_nothing(folder: FileFolder, path: Path) -> None:
    with pytest.raises(ConnectionError):
        await give_up(folder, path)
    assert not files_in(path)


async def test_what_is_cancelled_leaves_nothing(folder: FileFolder, path: Path) -> None:
    written = asyncio.Event()

    async def receive() -> None:
        async with folder.draft(1 << 30) as draft:
            while True:
                await draft.write(b"more of it")
                written.set()

    task = asyncio.create_task(receive())
    await written.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not files_in(path)


async def test_one_that_is_too_large_is_refused_while_it_comes(folder: FileFolder, path: Path) -> None:
    await store(folder, "file_1ab", b"123456789", b"0", max_bytes=10)
    with pytest.raises(FileTooLarge):
        await store(folder, "file_2ab", b"123456789", b"01", max_bytes=10)
    assert [it.name for it in files_in(path)] == ["file_1ab"]


async def test_what_is_removed_is_not_found(folder: FileFolder) -> None:
    await store(folder, "file_1ab", b"x")
    await folder.remove(["file_1ab", "file_never"])
    with pytest.raises(NotFound):
        await folder.read("file_1ab")


@pytest.mark.parametrize("file_id", ["../../etc/passwd", "..", "", "a/b", "a\0b", "x" * 65, "/etc/passwd"])
async def test_what_is_no_id_is_no_path(folder: FileFolder, file_id: str) -> None:
    with pytest.raises(NotFound):
        await folder.read(file_id)


async def test_what_a_killed_process_left_is_tidied_away(folder: FileFolder, path: Path) -> None:
    await store(folder, "file_1ab", b"x")
    old, new = path / "incoming" / "old", path / "incoming" / "new"
    old.write_bytes(b"half of it")
    new.write_bytes(b"half of it")
    age(old)
    await folder.tidy(3600)
    assert {it.name for it in files_in(path)} == {"file_1ab", "new"}


async def test_only_files_of_some_age_are_told(folder: FileFolder, path: Path) -> None:
    assert [ids async for ids in folder.stored(3600)] == []  # there is no folder yet
    for file_id in ("file_1ab", "file_2ab", "file_3cd"):
        await store(folder, file_id, b"x")
    for name in ("ab/file_1ab", "cd/file_3cd"):
        age(path / name)
    (path / "ab" / "not an id").touch()
    age(path / "ab" / "not an id")
    assert sorted([list(ids) async for ids in folder.stored(3600)]) == [["file_1ab"], ["file_3cd"]]


async def test_a_link_in_the_place_of_a_draft_is_not_followed(folder: FileFolder, path: Path) -> None:
    target = path.parent.parent / "precious"
    target.write_text("precious")
    async with folder.draft(1000) as draft:
        (path / "incoming").mkdir(parents=True)
        draft._path.symlink_to(target)
        with pytest.raises(Unavailable):
            await draft.write(b"x")
    assert target.read_text() == "precious"


async def test_a_full_disk_is_told_apart_from_a_broken_one(
    folder: FileFolder, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, code in ((errno.ENOSPC, "insufficient_storage"), (errno.EIO, "files_unavailable")):

        def refuse(*args: object, number: int = number) -> int:
            raise OSError(number, "the disk says no")

        monkeypatch.setattr("internal.data.file_folder.os.write", refuse)
        with pytest.raises(Unavailable) as refusal:
            await store(folder, "file_1ab", b"x")
        assert refusal.value.code == code
    assert not files_in(path)


async def test_the_last_room_is_for_others(path: Path, watched_loop: None) -> None:
    with pytest.raises(Unavailable) as refusal:
        await store(FileFolder(path, min_free_bytes=1 << 60), "file_1ab", b"x")
    assert refusal.value.code == "insufficient_storage"
    assert not files_in(path)


async def test_a_folder_is_one_storages(path: Path, watched_loop: None) -> None:
    ours, theirs = FileFolder(path, storage="sqlite a.db"), FileFolder(path, storage="sqlite b.db")
    assert await theirs.is_ours()  # there is nothing yet
    await store(ours, "file_1ab", b"x")
    assert await ours.is_ours()
    assert not await theirs.is_ours()
    assert await FileFolder(path, storage="sqlite a.db").is_ours()
