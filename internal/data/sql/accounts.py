"""Users, their logins, keys and settings, in a database.

Whatever begins, continues or ends a login holds the user's row while it does: of a refresh and a logout at
the same moment, one sees what the other has done.
"""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from sqlalchemy import ColumnElement, and_, delete, exists, func, insert, or_, select, update
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import IntegrityError

from internal.biz.errors import Conflict, NotFound
from internal.biz.models import Status
from internal.biz.preferences import Preferences
from internal.biz.users import Account, ApiKey, RefreshToken, Refusal, User
from internal.data.sql.database import Database
from internal.data.sql.dialect import insert_or_ignore
from internal.data.sql.erasure import delete_user_data
from internal.data.sql.tables import (
    api_keys,
    batches,
    conversations,
    files,
    refresh_tokens,
    responses,
    user_settings,
    users,
)

MAX_REFRESH_TOKENS = 500
"""Of a user. The oldest make room, and the logins end that have no other: whoever logs in with every request
does not fill the table."""

_GUEST = "guest_"


class RemovesFiles(Protocol):
    """The part of the folder of files that is needed here."""

    async def remove(self, ids: Collection[str]) -> None:
        """Remove the bytes of these. Never raises."""


class SqlAccounts:
    """One per process."""

    def __init__(self, database: Database, files: RemovesFiles | None = None) -> None:
        """`files` has the bytes of what users have uploaded; without, they are left to who tidies there."""
        self._database = database
        self._files = files

    # ── users ────────────────────────────────────────────────────────────────────────────────────

    async def add(self, account: Account, guest: str | None = None) -> None:
        user = account.user
        values = {
            "id": user.id,
            "username": user.username,
            "username_key": account.username_key,
            "email": user.email,
            "password_hash": account.password_hash,
            "created_at": user.created_at,
            "valid_after": account.valid_after,
            "disabled": user.disabled,
        }

        def insert_user(connection: Connection) -> None:
            connection.execute(insert(users).values(values))
            if guest is not None:
                _hand_over(connection, guest, user.id)
                _hand_over_preferences(connection, guest, user.id)

        try:
            await self._database.transact(insert_user)
        except IntegrityError as error:
            raise Conflict("this name is taken", code="username_taken", param="username") from error

    async def by_name(self, username_key: str) -> Account | None:
        return await self._find(users.c.username_key == username_key)

    async def by_id(self, user_id: str) -> Account | None:
        return await self._find(users.c.id == user_id)

    async def by_login(self, user_id: str, login_id: str) -> Account | None:
        of_login = and_(refresh_tokens.c.user_id == users.c.id, refresh_tokens.c.family == login_id)
        return await self._find(users.c.id == user_id, exists().where(of_login))

    async def by_key_id(self, user_id: str, key_id: str) -> Account | None:
        of_key = and_(api_keys.c.user_id == users.c.id, api_keys.c.id == key_id)
        return await self._find(users.c.id == user_id, exists().where(of_key))

    async def by_key(self, key_hash: str) -> tuple[Account, ApiKey] | None:
        both = select(users, *_KEY).join(api_keys, api_keys.c.user_id == users.c.id)
        rows = await self._database.read(both.where(api_keys.c.hash == key_hash))
        return (_account(rows[0]), _key(rows[0])) if rows else None

    async def users(self) -> Sequence[User]:
        rows = await self._database.read(select(users).order_by(users.c.created_at, users.c.id))
        return [_account(row).user for row in rows]

    async def _find(self, *where: ColumnElement[bool]) -> Account | None:
        rows = await self._database.read(select(users).where(*where))
        return _account(rows[0]) if rows else None

    async def rehash(self, account: Account, password_hash: str) -> None:
        unchanged = and_(users.c.id == account.user.id, users.c.password_hash == account.password_hash)
        await self._database.change(update(users).where(unchanged).values(password_hash=password_hash))

    async def set_password(
        self, account: Account, password_hash: str, now: float, *, revoke_keys: bool
    ) -> bool:
        def change(connection: Connection) -> bool:
            if not _held_unchanged(connection, account):
                return False
            _end_all_logins(connection, account.user.id, now)
            if revoke_keys:
                connection.execute(delete(api_keys).where(api_keys.c.user_id == account.user.id))
            changed = update(users).where(users.c.id == account.user.id)
            connection.execute(changed.values(password_hash=password_hash))
            return True

        return await self._database.transact(change)

    async def set_disabled(self, user_id: str, disabled: bool, now: float) -> None:
        def change(connection: Connection) -> None:
            _hold(connection, user_id)
            _end_all_logins(connection, user_id, now)
            connection.execute(update(users).where(users.c.id == user_id).values(disabled=disabled))

        await self._database.transact(change)

    async def delete(self, user_id: str) -> Sequence[str]:
        running = select(responses.c.id).where(
            responses.c.user_id == user_id,
            responses.c.status.in_((Status.QUEUED, Status.IN_PROGRESS)),
        )

        def erase(connection: Connection) -> tuple[Sequence[str], Sequence[str]]:
            if _hold(connection, user_id) is None:
                raise NotFound("there is no such user")
            ids = connection.scalars(running).all()
            uploaded = delete_user_data(connection, user_id)
            connection.execute(delete(users).where(users.c.id == user_id))
            return ids, uploaded

        ids, uploaded = await self._database.transact(erase)
        if uploaded and self._files is not None:
            await self._files.remove(uploaded)
        return ids

    # ── logins ───────────────────────────────────────────────────────────────────────────────────

    async def begin_login(self, account: Account, token: RefreshToken, guest: str | None = None) -> bool:
        def begin(connection: Connection) -> bool:
            if not _held_unchanged(connection, account):
                return False
            _add_token(connection, token)
            if guest is not None:
                _hand_over(connection, guest, account.user.id)
                _forget_preferences(connection, guest)
            return True

        return await self._database.transact(begin)

    async def rotate(
        self, token_id: str, successor: RefreshToken, now: float, grace_s: float
    ) -> Refusal | None:
        tokens, login_id = refresh_tokens, successor.login_id
        of_login = and_(tokens.c.user_id == successor.user_id, tokens.c.family == login_id)
        unused = and_(of_login, tokens.c.id == token_id, tokens.c.used_at.is_(None))

        def replace(connection: Connection) -> Refusal | None:
            row = _hold(connection, successor.user_id)
            if row is None or row.disabled:
                return Refusal.ENDED
            used = connection.execute(update(tokens).where(unused).values(used_at=now))
            if not used.rowcount:
                left = connection.execute(select(tokens.c.id, tokens.c.used_at).where(of_login))
                used_at = {it.id: it.used_at for it in left}
                if not used_at:
                    return Refusal.ENDED
                # Those that were used longer ago may be gone: that it is none of the others is enough.
                before = used_at.get(token_id)
                if before is None or before < now - grace_s:
                    connection.execute(delete(tokens).where(of_login))
                    return Refusal.REUSED
            connection.execute(delete(tokens).where(of_login, tokens.c.used_at < now - grace_s))
            _add_token(connection, successor)
            return None

        return await self._database.transact(replace)

    async def end_login(self, user_id: str, login_id: str) -> None:
        tokens = refresh_tokens

        def end(connection: Connection) -> None:
            _hold(connection, user_id)
            connection.execute(delete(tokens).where(tokens.c.user_id == user_id, tokens.c.family == login_id))

        await self._database.transact(end)

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────

    async def add_key(self, user_id: str, key: ApiKey, key_hash: str, limit: int) -> None:
        count = select(func.count()).select_from(api_keys).where(api_keys.c.user_id == user_id)
        values = {"id": key.id, "user_id": user_id, "name": key.name, "hint": key.hint, "hash": key_hash}
        times = {"created_at": key.created_at, "last_used_at": key.last_used_at}

        def add(connection: Connection) -> None:
            if _hold(connection, user_id) is None:
                raise NotFound("there is no such user")
            if connection.execute(count).scalar_one() >= limit:
                raise Conflict(
                    f"one user has at most {limit} API keys; revoke one that is not used any more",
                    code="too_many_keys",
                )
            connection.execute(insert(api_keys).values({**values, **times}))

        await self._database.transact(add)

    async def keys(self, user_id: str) -> Sequence[ApiKey]:
        found = select(*_KEY).where(api_keys.c.user_id == user_id)
        rows = await self._database.read(found.order_by(api_keys.c.created_at, api_keys.c.id))
        return [_key(row) for row in rows]

    async def revoke_key(self, user_id: str, key_id: str) -> bool:
        of_user = delete(api_keys).where(api_keys.c.id == key_id, api_keys.c.user_id == user_id)
        return await self._database.change(of_user) > 0

    async def key_used(self, key_id: str, now: float) -> None:
        """In a transaction of its own: a group of writes that shares it with others could wait for them in a
        circle, when two processes note the same keys in another order."""
        earlier = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < now)
        used = update(api_keys).where(api_keys.c.id == key_id, earlier).values(last_used_at=now)
        await self._database.change(used)

    # ── settings ─────────────────────────────────────────────────────────────────────────────────

    async def preferences(self, user_id: str) -> Preferences:
        rows = await self._database.read(select(user_settings).where(user_settings.c.user_id == user_id))
        return _preferences(rows[0]) if rows else Preferences()

    async def set_preferences(self, user_id: str, preferences: Preferences) -> None:
        def replace(connection: Connection) -> None:
            if not user_id.startswith(_GUEST) and _hold(connection, user_id) is None:
                raise NotFound("there is no such user")
            _set_preferences(connection, user_id, preferences)

        await self._database.transact(replace)


def _hold(connection: Connection, user_id: str) -> Row[Any] | None:
    """The user's row, which nobody else holds until the transaction ends. SQLite has one writer anyway.

    `key_share`: rows that refer to it may come meanwhile.
    """
    held = select(users).where(users.c.id == user_id).with_for_update(key_share=True)
    return connection.execute(held).one_or_none()


def _held_unchanged(connection: Connection, account: Account) -> bool:
    """Whether all logins were ended since `account` was read: who disables or gives a password does that."""
    row = _hold(connection, account.user.id)
    return row is not None and row.valid_after == account.valid_after


def _add_token(connection: Connection, token: RefreshToken) -> None:
    values = {"id": token.id, "user_id": token.user_id, "family": token.login_id}
    connection.execute(insert(refresh_tokens).values({**values, "expires_at": token.expires_at}))
    of_user = select(refresh_tokens.c.id).where(refresh_tokens.c.user_id == token.user_id)
    # Ids sort by time.
    too_many = of_user.order_by(refresh_tokens.c.id.desc()).offset(MAX_REFRESH_TOKENS)
    if surplus := connection.scalars(too_many).all():
        connection.execute(delete(refresh_tokens).where(refresh_tokens.c.id.in_(surplus)))


def _end_all_logins(connection: Connection, user_id: str, now: float) -> None:
    connection.execute(delete(refresh_tokens).where(refresh_tokens.c.user_id == user_id))
    connection.execute(update(users).where(users.c.id == user_id).values(valid_after=now))


def _hand_over(connection: Connection, guest: str, user_id: str) -> None:
    for table in (conversations, responses, batches, files):
        connection.execute(update(table).where(table.c.user_id == guest).values(user_id=user_id))


def _hand_over_preferences(connection: Connection, guest: str, user_id: str) -> None:
    """To a user who has none yet; but no upstream. Somebody else may have put the guest's cookie into this
    browser, and would be sent all that the user says."""
    of_guest = select(user_settings).where(user_settings.c.user_id == guest)
    row = connection.execute(of_guest).one_or_none()
    if row is not None:
        _set_preferences(connection, user_id, Preferences(row.model, row.max_output_tokens))
        _forget_preferences(connection, guest)


def _forget_preferences(connection: Connection, guest: str) -> None:
    connection.execute(delete(user_settings).where(user_settings.c.user_id == guest))


def _set_preferences(connection: Connection, user_id: str, preferences: Preferences) -> None:
    values = {
        "model": preferences.model,
        "max_output_tokens": preferences.max_output_tokens,
        "upstream_url": preferences.upstream_url,
        "upstream_key": preferences.upstream_key,
    }
    of_user = {"user_id": user_id, **values}
    connection.execute(insert_or_ignore(user_settings).values(of_user))
    # Of what others insert at the same moment, the last one stays.
    connection.execute(update(user_settings).where(user_settings.c.user_id == user_id).values(values))


_KEY = (
    api_keys.c.id.label("key_id"),
    api_keys.c.name,
    api_keys.c.hint,
    api_keys.c.created_at.label("key_created_at"),
    api_keys.c.last_used_at,
)


def _account(row: Row[Any]) -> Account:
    user = User(row.id, row.username, row.email, row.created_at, row.disabled)
    return Account(user, row.username_key, row.password_hash, row.valid_after)


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(row.key_id, row.name, row.hint, row.key_created_at, row.last_used_at)


def _preferences(row: Row[Any]) -> Preferences:
    return Preferences(row.model, row.max_output_tokens, row.upstream_url, row.upstream_key)
