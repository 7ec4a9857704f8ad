"""What is promised of uploaded files, on SQLite and on PostgreSQL."""

import asyncio
from dataclasses import replace

import pytest

from internal.biz.errors import Forbidden, NotFound
from internal.biz.files import File, FileStore, Quota
from internal.data.sql.database import Database
from internal.data.sql.files import SqlFiles

ADA, BOB = "guest_ada", "guest_bob"
QUOTA = Quota(files=100, size_bytes=1 << 40)


@pytest.fixture
def store(database: Database) -> FileStore:
    return SqlFiles(database)


def file(number: int, user: str = ADA, size_bytes: int = 10, purpose: str = "user_data") -> File:
    return File(
        f"file_{number:03}", user, f"{number}.txt", "text/plain", purpose, size_bytes, 1000.0 + number
    )


async def add(store: FileStore, *files: File) -> None:
    for one in files:
        await store.add(one, QUOTA)


async def test_what_is_added_is_found_by_its_owner_only(store: FileStore) -> None:
    mine = replace(file(1), name="grüße 🙂.txt", size_bytes=1 << 33)
    await add(store, mine)
    assert await store.get(mine.id, ADA) == mine
    for user, file_id in ((BOB, mine.id), (ADA, "file_never")):
        with pytest.raises(NotFound) as refusal:
            await store.get(file_id, user)
        assert (refusal.value.code, refusal.value.param) == ("file_not_found", "file_id")


async def test_pages_hold_what_is_the_users(store: FileStore) -> None:
    mine = [file(number, purpose="vision" if number % 2 else "user_data") for number in range(6)]
    await add(store, *mine, file(9, BOB))

    async def page(
        limit: int, after: str | None = None, purpose: str | None = None, *, up: bool
    ) -> list[int]:
        found = await store.page(ADA, limit, after, purpose, oldest_first=up)
        return [mine.index(one) for one in found]

    assert await page(10, up=False) == [5, 4, 3, 2, 1, 0]
    assert await page(4, up=True) == [0, 1, 2, 3]
    assert await page(2, mine[3].id, up=False) == [2, 1]
    assert await page(2, mine[3].id, up=True) == [4, 5]
    assert await page(10, None, "vision", up=True) == [1, 3, 5]
    assert await page(10, mine[4].id, "user_data", up=False) == [2, 0]


async def test_only_the_owner_deletes(store: FileStore) -> None:
    await add(store, file(1), file(2))
    with pytest.raises(NotFound):
        await store.delete("file_001", BOB)
    await store.delete("file_001", ADA)
    with pytest.raises(NotFound):
        await store.delete("file_001", ADA)
    assert await store.usage(ADA) == (1, 10)


async def test_a_user_has_at_most_so_many_files_and_bytes(store: FileStore) -> None:
    await store.add(file(1), Quota(files=1, size_bytes=10))
    for quota in (Quota(files=1, size_bytes=0), Quota(files=0, size_bytes=19)):
        with pytest.raises(Forbidden) as refusal:
            await store.add(file(2), quota)
        assert refusal.value.code == "file_quota_exceeded"
    await store.add(file(3, BOB), Quota(files=1, size_bytes=10))
    await store.add(file(2), Quota(files=2, size_bytes=20))
    await store.add(file(4), Quota(files=0, size_bytes=0))
    assert await store.usage(ADA) == (3, 30)
    assert await store.usage("guest_nobody") == (0, 0)


async def test_of_uploads_at_once_no_more_are_kept_than_may_be(store: FileStore) -> None:
    quota = Quota(files=3)
    done = await asyncio.gather(*(store.add(file(it), quota) for it in range(10)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in done) == ["Forbidden"] * 7 + ["NoneType"] * 3
    assert await store.usage(ADA) == (3, 30)


async def test_nobody_uploads_who_is_no_more(store: FileStore) -> None:
    with pytest.raises(NotFound):
        await store.add(file(1, "user_deleted"), QUOTA)
    assert await store.known(["file_001"]) == []


async def test_the_oldest_are_forgotten(store: FileStore) -> None:
    await add(store, *(file(number) for number in range(5)))
    assert len(await store.forget(1003.0, 2)) == 2
    await store.forget(1003.0, 100)
    assert await store.forget(1003.0, 100) == []
    assert sorted(await store.known([f"file_{number:03}" for number in range(9)])) == ["file_003", "file_004"]
