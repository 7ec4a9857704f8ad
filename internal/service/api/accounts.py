"""Bodies of what is about users: registering, tokens, keys."""

import time
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr

from internal.biz.accounts import MAX_KEY_NAME_CHARS, ApiKey, Tokens, User
from internal.biz.models import Caller
from internal.biz.names import MAX_EMAIL_CHARS, MAX_PASSWORD_CHARS, MAX_USERNAME_CHARS
from internal.service.api.base import Answer, Body, Timestamp, timestamp

GUEST_TTL_S = 365 * 24 * 3600
"""How long a browser keeps a guest's token that does not end by itself."""

Username = Annotated[str, Field(min_length=1, max_length=4 * MAX_USERNAME_CHARS, examples=["ada"])]
Password = Annotated[SecretStr, Field(min_length=1, max_length=MAX_PASSWORD_CHARS)]
Token = Annotated[str, Field(min_length=1, max_length=4096)]


class SignIn(Answer):
    """`guests`: nobody has to log in. `registration`: anybody may become a user."""

    guests: bool
    registration: bool


class Registration(Body):
    username: Username
    email: Annotated[str, Field(min_length=3, max_length=MAX_EMAIL_CHARS, examples=["ada@example.org"])]
    password: Password


class Login(Body):
    username: Username
    password: Password


class RefreshToken(Body):
    refresh_token: Token


class PasswordChange(Body):
    current_password: Password
    new_password: Password
    revoke_keys: Annotated[bool, Field(description="Revoke all API keys, too.")] = False


class AccountDeletion(Body):
    password: Password


class NewKey(Body):
    name: Annotated[str, Field(min_length=1, max_length=MAX_KEY_NAME_CHARS, examples=["laptop"])]


class Registered(Answer):
    id: str
    username: str


class TokenPair(Answer):
    """`refresh_token` gets a new pair, once; `expires_in` is the seconds that `access_token` is valid."""

    access_token: str
    refresh_token: str
    token_type: Literal["bearer"] = "bearer"
    expires_in: int

    @classmethod
    def of(cls, tokens: Tokens) -> Self:
        return cls(access_token=tokens.access, refresh_token=tokens.refresh, expires_in=tokens.expires_in_s)


class GuestToken(Answer):
    """`expires_in`: seconds."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"
    expires_in: int

    @classmethod
    def of(cls, token: str, guest: Caller) -> Self:
        return cls(access_token=token, expires_in=guest_ttl_s(guest))


def guest_ttl_s(guest: Caller) -> int:
    """How long the guest's token is good for, in seconds."""
    return GUEST_TTL_S if guest.until is None else max(0, round(guest.until - time.time()))


class Me(Answer):
    id: str
    username: str
    email: str
    created_at: Timestamp

    @classmethod
    def of(cls, user: User) -> Self:
        created_at = timestamp(user.created_at)
        return cls(id=user.id, username=user.username, email=user.email, created_at=created_at)


class Key(Answer):
    """A key without its secret: `hint` is how that begins and ends."""

    id: str
    name: str
    hint: str
    created_at: Timestamp
    last_used_at: Timestamp | None

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        return cls.model_validate(_fields(key))


class CreatedKey(Key):
    """`key` is the secret. It is shown this once."""

    key: str

    @classmethod
    def with_secret(cls, key: ApiKey, secret: str) -> Self:
        return cls.model_validate({**_fields(key), "key": secret})


class Keys(Answer):
    keys: list[Key]


def _fields(key: ApiKey) -> dict[str, str | None]:
    return {
        "id": key.id,
        "name": key.name,
        "hint": key.hint,
        "created_at": timestamp(key.created_at),
        "last_used_at": None if key.last_used_at is None else timestamp(key.last_used_at),
    }
