"""What operators do with users. Needs no secret of the server's, and no user's leave."""

import time
from collections.abc import Sequence

from internal.biz.errors import Conflict, NotFound
from internal.biz.names import checked_password, username_key
from internal.biz.users import Account, AccountStore, Draft, PasswordHasher, User


class UserAdmin:
    """Those that take the name of a user take it in any case, and raise NotFound when nobody has it."""

    def __init__(self, store: AccountStore, hasher: PasswordHasher) -> None:
        self._store = store
        self._hasher = hasher

    async def add(self, draft: Draft) -> User:
        """A new user, also where nobody can register. Raises Conflict when the name is taken."""
        account = draft.account(await self._hasher.hash(draft.password), time.time())
        await self._store.add(account)
        return account.user

    async def users(self) -> Sequence[User]:
        """All of them, the oldest first."""
        return await self._store.users()

    async def find(self, username: str) -> User:
        return (await self._account(username)).user

    async def disable(self, username: str) -> User:
        """Keep them out: their logins end, and their API keys work no more until they are enabled."""
        return await self._set_disabled(username, True)

    async def enable(self, username: str) -> User:
        return await self._set_disabled(username, False)

    async def reset_password(self, username: str, password: str) -> User:
        """Another password; all their logins end, and their API keys are revoked: somebody else may have made
        them. Raises InvalidRequest, and Conflict when somebody else changes it at this moment."""
        replacement = checked_password(password)
        account = await self._account(username)
        hashed = await self._hasher.hash(replacement)
        if not await self._store.set_password(account, hashed, time.time(), revoke_keys=True):
            raise Conflict("somebody else has changed this user just now; try again")
        return account.user

    async def _set_disabled(self, username: str, disabled: bool) -> User:
        user = await self.find(username)
        await self._store.set_disabled(user.id, disabled, time.time())
        return await self.find(username)

    async def _account(self, username: str) -> Account:
        # What a shell hands over may be no text that a database takes.
        known = await self._store.by_name(username_key(username)) if username.isprintable() else None
        if known is None:
            raise NotFound(f"there is no user {username}")
        return known
