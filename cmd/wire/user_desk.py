"""What an operator works with on users."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from cmd.wire.storage import Storage
from internal.biz.user_admin import UserAdmin
from internal.conf import settings as conf
from internal.data.credentials.passwords import Argon2Hasher
from internal.data.sql.accounts import SqlAccounts


@dataclass(frozen=True, slots=True)
class UserDesk:
    """What an operator's command on users works with, while it is `connected`."""

    storage: Storage
    admin: UserAdmin

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Raises SluiceError, with the reason, when the database cannot be reached."""
        try:
            await self.storage.connect()
            yield
        finally:
            await self.storage.close()


def build_user_desk(settings: conf.Settings) -> UserDesk:
    """What an operator needs for users. Must be called on the event loop that will run it."""
    storage = Storage(settings.storage)
    assert storage.database is not None
    # No secret: made here it would belong to whoever runs the command, and the server could not read it.
    return UserDesk(storage, UserAdmin(SqlAccounts(storage.database), Argon2Hasher()))
