"""What is known of uploaded files, as SQL. The bytes are elsewhere."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import BigInteger, Double, String, bindparam, delete, func, or_, select
from sqlalchemy.engine import Row

from internal.biz.errors import NotFound, unknown_file
from internal.biz.files import File, Quota
from internal.biz.guests import GUEST_PREFIX
from internal.data.sql.database import Database, Values, Write
from internal.data.sql.dialect import insert_or_ignore
from internal.data.sql.tables import files, users
from internal.data.sql.types import Line

_c = files.c
_USAGE = select(
    func.count().label("files"), func.coalesce(func.sum(_c.size_bytes), 0).label("size_bytes")
).where(_c.user_id == bindparam("b_user_id", type_=Line()))


def _new(name: str, type_: Any) -> Any:
    return bindparam(f"b_{name}", type_=type_)


_NEW = {
    "id": _new("id", Line()),
    "user_id": _new("user_id", Line()),
    "name": _new("name", Line()),
    "media_type": _new("media_type", Line()),
    "purpose": _new("purpose", String()),
    "size_bytes": _new("size_bytes", BigInteger()),
    "created_at": _new("created_at", Double()),
}


def _total(column: Any) -> Any:
    return select(column).where(_c.user_id == _NEW["user_id"]).scalar_subquery()


# Of several uploads at once, those of one process are counted one after another; another's may be missed.
_INSERT = Write(
    0,
    insert_or_ignore(files).from_select(
        list(_NEW),
        select(*_NEW.values()).where(
            _total(func.count()) < _new("max_files", BigInteger()),
            _total(func.coalesce(func.sum(_c.size_bytes), 0)) + _NEW["size_bytes"]
            <= _new("max_bytes", BigInteger()),
            or_(
                _NEW["user_id"].startswith(GUEST_PREFIX, autoescape=True),
                # Who is being deleted is waited for: they leave no file behind.
                select(users.c.id).where(users.c.id == _NEW["user_id"]).with_for_update(read=True).exists(),
            ),
        ),
    ),
)
_DELETE = Write(1, delete(files).where(_c.id == _NEW["id"]))
_STORED = select(_c.id).where(_c.id.in_(bindparam("ids", expanding=True)))
_NO_LIMIT = 2**62


class SqlFiles:
    """Implements FileStore. One per process."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, file: File, quota: Quota) -> None:
        limits = {"b_max_files": quota.files or _NO_LIMIT, "b_max_bytes": quota.size_bytes or _NO_LIMIT}
        row = {**_row(file), **limits}
        if await self._database.write((_INSERT, [row]), confirm=(_STORED, file.id)):
            return
        count, size_bytes = await self.usage(file.user)
        quota.require_room(count + 1, size_bytes + file.size_bytes)
        raise NotFound("there is no such user")

    async def usage(self, user: str) -> tuple[int, int]:
        (row,) = await self._database.read(_USAGE, {"b_user_id": user})
        return row.files, int(row.size_bytes)

    async def get(self, file_id: str, user: str) -> File:
        rows = await self._database.read(select(files).where(_c.id == file_id, _c.user_id == user))
        if not rows:
            raise unknown_file(file_id)
        return _file(rows[0])

    async def page(
        self, user: str, limit: int, after: str | None, purpose: str | None, *, oldest_first: bool
    ) -> Sequence[File]:
        found = select(files).where(_c.user_id == user).limit(limit)
        found = found.order_by(_c.id.asc() if oldest_first else _c.id.desc())
        if after is not None:
            found = found.where(_c.id > after if oldest_first else _c.id < after)
        if purpose is not None:
            found = found.where(_c.purpose == purpose)
        return [_file(row) for row in await self._database.read(found)]

    async def delete(self, file_id: str, user: str) -> None:
        await self.get(file_id, user)
        await self._database.write((_DELETE, [{"b_id": file_id}]))

    async def forget(self, before: float, limit: int) -> Sequence[str]:
        old = select(_c.id).where(_c.created_at < before).limit(limit)
        ids = [row.id for row in await self._database.read(old)]
        if ids:
            await self._database.write((_DELETE, [{"b_id": file_id} for file_id in ids]))
        return ids

    async def known(self, ids: Collection[str]) -> Collection[str]:
        return [row.id for row in await self._database.read(_STORED, {"ids": list(ids)})]


def _row(file: File) -> Values:
    return {
        "b_id": file.id,
        "b_user_id": file.user,
        "b_name": file.name,
        "b_media_type": file.media_type,
        "b_purpose": file.purpose,
        "b_size_bytes": file.size_bytes,
        "b_created_at": file.created_at,
    }


def _file(row: Row[Any]) -> File:
    return File(row.id, row.user_id, row.name, row.media_type, row.purpose, row.size_bytes, row.created_at)
