"""Users as values, and what their use cases need from outside."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from internal.biz.ids import new_id
from internal.biz.names import checked_email, checked_password, checked_username, username_key
from internal.biz.preferences import Preferences

# ── values ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a name and a password. `created_at` is Unix seconds."""

    id: str
    username: str
    email: str
    created_at: float
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class Account:
    """A user as storage keeps them. `username_key`: the name as it is compared. `valid_after`: when all
    logins were last ended, Unix seconds."""

    user: User
    username_key: str
    password_hash: str = field(repr=False)
    valid_after: float


@dataclass(frozen=True, slots=True)
class Draft:
    """A user to be: everything checked, nothing stored."""

    username: str
    email: str
    password: str = field(repr=False)

    @classmethod
    def checked(cls, username: str, email: str | None, password: str) -> "Draft":
        """Raises InvalidRequest. `email` None: they have none."""
        address = "" if email is None else checked_email(email)
        return cls(checked_username(username), address, checked_password(password))

    def account(self, password_hash: str, now: float) -> Account:
        user = User(new_id("user"), self.username, self.email, now)
        return Account(user, username_key(self.username), password_hash, valid_after=now)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token as storage keeps it. `expires_at` is Unix seconds."""

    id: str
    user_id: str
    login_id: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that a user has made, without its secret: `hint` is how it begins and ends. Times are Unix
    seconds, None: never."""

    id: str
    name: str
    hint: str
    created_at: float
    last_used_at: float | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a login gives: `access` is valid for `expires_in_s`, `refresh` gets new ones, once."""

    access: str = field(repr=False)
    refresh: str = field(repr=False)
    expires_in_s: int


# ── ports ────────────────────────────────────────────────────────────────────────────────────────


class Refusal(Enum):
    """Why a refresh token gets no other."""

    ENDED = "its login has ended"
    REUSED = "it was used before, and now its login has ended"


class AccountStore(Protocol):
    """Users and what they own. Every call is one transaction, and raises Unavailable while the storage cannot
    be reached."""

    async def add(self, account: Account, guest: str | None = None) -> None:
        """Store a new user; what `guest` owns is theirs from now on: conversations and responses, and of
        their settings model and length of answers. Raises Conflict when the name is taken."""

    async def by_name(self, username_key: str) -> Account | None: ...

    async def by_id(self, user_id: str) -> Account | None: ...

    async def by_login(self, user_id: str, login_id: str) -> Account | None:
        """The user, unless that login has ended."""

    async def by_key(self, key_hash: str) -> tuple[Account, ApiKey] | None: ...

    async def by_key_id(self, user_id: str, key_id: str) -> Account | None:
        """The user, unless that key was revoked."""

    async def users(self) -> Sequence[User]:
        """All of them, the oldest first."""

    async def rehash(self, account: Account, password_hash: str) -> None:
        """Keep the same password another way, unless it has changed since `account` was read."""

    async def set_password(
        self, account: Account, password_hash: str, now: float, *, revoke_keys: bool
    ) -> bool:
        """Replace the password, end all logins, and revoke all API keys if told to; False when logins were
        ended since `account` was read."""

    async def set_disabled(self, user_id: str, disabled: bool, now: float) -> None:
        """Let the user in or keep them out, and end all logins."""

    async def delete(self, user_id: str) -> Sequence[str]:
        """Delete the user and everything that they own. Returns the ids of responses that have not ended.
        Raises NotFound."""

    async def begin_login(self, account: Account, token: RefreshToken, guest: str | None = None) -> bool:
        """Store the first token of a login; the conversations and responses of `guest` are the user's from
        now on, and the guest's settings are nobody's. False when the user was disabled, deleted or given
        another password since `account` was read."""

    async def rotate(
        self, token_id: str, successor: RefreshToken, now: float, grace_s: float
    ) -> Refusal | None:
        """Use a token up and store its successor. Of several calls at once all get through: one uses it, for
        the others it was used within `grace_s`. One that was used before ends its login."""

    async def end_login(self, user_id: str, login_id: str) -> None:
        """Harmless when it has ended."""

    async def add_key(self, user_id: str, key: ApiKey, key_hash: str, limit: int) -> None:
        """Raises Conflict when the user has `limit` keys already, NotFound when there is no such user."""

    async def keys(self, user_id: str) -> Sequence[ApiKey]:
        """All of them, the oldest first."""

    async def revoke_key(self, user_id: str, key_id: str) -> bool:
        """False when the user has no such key."""

    async def key_used(self, key_id: str, now: float) -> None:
        """Remember when it was last used."""

    async def preferences(self, user_id: str) -> Preferences:
        """With the key as it was stored: encrypted."""

    async def set_preferences(self, user_id: str, preferences: Preferences) -> None:
        """For a user or a guest. Raises NotFound when there is no such user."""


class PasswordHasher(Protocol):
    """Slow on purpose, off the event loop. Raises Unavailable when too many wait for it."""

    async def hash(self, password: str) -> str: ...

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """With None as slow as with any hash, and False."""

    def is_outdated(self, password_hash: str) -> bool:
        """It was made with other parameters than would be used today."""


class Cipher(Protocol):
    def encrypt(self, text: str) -> str: ...

    def decrypt(self, text: str) -> str | None:
        """None for what was encrypted with another secret."""


class LoginLimiter(Protocol):
    async def attempt_login(self, username: str, address: str) -> None:
        """Somebody at `address` is about to prove that they are `username`. Either may be empty: unknown, it
        does not count. Raises RateLimited."""

    async def attempt_password(self, user_id: str) -> None:
        """A user who is logged in is about to prove that they know their password. Raises RateLimited."""
