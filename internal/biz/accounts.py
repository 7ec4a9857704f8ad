"""The use cases of users: register, log in, keep API keys and settings, leave.

A **login** is what begins with a password: a chain of refresh tokens, each of which replaces the one before
it, and the access tokens that came with them. When it ends, it ends for all of them at once, on all servers:
whether it goes on is looked up in storage, and no clock has a say in it.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from internal.biz.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated, Unavailable
from internal.biz.guests import GUEST_PREFIX, Guests
from internal.biz.ids import new_id
from internal.biz.models import Caller
from internal.biz.names import as_hashed, checked_password, checked_username, username_key
from internal.biz.preferences import Preferences, check
from internal.biz.tokens import Claims, TokenSigner, TokenType
from internal.biz.users import (
    Account,
    AccountStore,
    ApiKey,
    Cipher,
    Draft,
    LoginLimiter,
    PasswordHasher,
    RefreshToken,
    Refusal,
    Tokens,
    User,
)

__all__ = ["AccountRules", "Accounts", "ApiKey", "Preferences", "Tokens", "User"]

log = logging.getLogger(__name__)

REUSE_GRACE_S = 10.0
"""For so long a refresh token works again: two tabs may refresh at the same moment, an answer may be lost."""
KEY_USE_INTERVAL_S = 60.0
"""How exactly `last_used_at` of a key is kept."""
MAX_KEYS = 100
"""API keys of a user."""
MAX_KEY_NAME_CHARS = 100

_KEY_PREFIX = "sk-"
_MAX_KEY_CHARS = 256


@dataclass(frozen=True, slots=True)
class AccountRules:
    """`registration`: anybody may register. `guests`: one need not be a user. An access token may not outlive
    the refresh token that came with it."""

    registration: bool = True
    guests: bool = True
    access_ttl_s: float = 3600.0
    refresh_ttl_s: float = 72 * 3600.0


class Accounts:
    """One per process."""

    def __init__(
        self,
        store: AccountStore,
        hasher: PasswordHasher,
        signer: TokenSigner,
        cipher: Cipher,
        limiter: LoginLimiter,
        rules: AccountRules,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._hasher = hasher
        self._signer = signer
        self._cipher = cipher
        self._limiter = limiter
        self.rules = rules
        self._guests = Guests(signer, allowed=rules.guests, clock=clock)
        self._clock = clock
        self._noting: set[str] = set()
        """Keys whose use is being noted; no more than there are requests."""

    # who they are

    async def register(
        self, username: str, email: str, password: str, address: str = "", guest: str | None = None
    ) -> User:
        """A new user, who gets what `guest`, a guest's id, has said and set, but for an upstream.

        Raises Forbidden, InvalidRequest, RateLimited, and Conflict when the name is taken.
        """
        if not self.rules.registration:
            raise Forbidden(
                "nobody can register here; ask whoever runs this server for an account",
                code="registration_closed",
            )
        draft = Draft.checked(username, email, password)
        await self._limiter.attempt_login("", address)
        account = draft.account(await self._hasher.hash(draft.password), self._clock())
        await self._store.add(account, _guest_or_none(guest))
        return account.user

    async def login(
        self, username: str, password: str, address: str = "", guest: str | None = None
    ) -> Tokens:
        """Begin a login; the user gets what `guest`, a guest's id, has said.

        Raises RateLimited, and Unauthenticated: the same, and as slowly, whatever is wrong.
        """
        key = _key_of(username)
        await self._limiter.attempt_login(key, address)
        account = await self._store.by_name(key) if key else None
        if not await self._is_password(account, password) or account is None or account.user.disabled:
            raise _wrong_credentials()
        if self._hasher.is_outdated(account.password_hash):
            renewed = await self._hasher.hash(as_hashed(password) or "")
            await self._store.rehash(account, renewed)
        return await self._begin_login(account, _guest_or_none(guest))

    async def refresh(self, refresh_token: str) -> Tokens:
        """New tokens of the same login. Raises Unauthenticated; a token that comes back later than
        REUSE_GRACE_S after its use was stolen, from one side or the other, and ends the login."""
        claims = self._signer.read(refresh_token, TokenType.REFRESH)
        now = self._clock()
        successor = self._refresh_token(claims.user_id, claims.login_id, now)
        refusal = await self._store.rotate(claims.token_id, successor, now, REUSE_GRACE_S)
        if refusal is Refusal.REUSED:
            log.warning("a used refresh token came back, its login is over", extra={"user": claims.user_id})
        if refusal is not None:
            raise Unauthenticated("this login has ended; log in again", code="login_ended")
        return self._tokens(successor, now)

    async def logout(self, refresh_token: str) -> None:
        """End the login of this token, whether or not it was used. Raises Unauthenticated."""
        claims = self._signer.read(refresh_token, TokenType.REFRESH)
        await self._store.end_login(claims.user_id, claims.login_id)

    async def change_password(
        self, user_id: str, current: str, new: str, *, revoke_keys: bool = False
    ) -> Tokens:
        """End all logins and begin one; API keys stay, unless they are to be revoked too.

        Raises InvalidRequest, RateLimited and Unauthenticated.
        """
        replacement = checked_password(new, "new_password")
        account = await self._proven(user_id, current)
        now = self._clock()
        hashed = await self._hasher.hash(replacement)
        if not await self._store.set_password(account, hashed, now, revoke_keys=revoke_keys):
            raise _wrong_credentials()  # somebody else has changed it
        return await self._begin_login(replace(account, valid_after=now))

    async def delete(self, user_id: str, password: str) -> Sequence[str]:
        """Delete the user, and everything that they own. Returns the ids of responses that have not ended.
        Raises RateLimited and Unauthenticated."""
        await self._proven(user_id, password)
        return await self._store.delete(user_id)

    async def get(self, user_id: str) -> User:
        """Raises NotFound."""
        account = await self._store.by_id(user_id)
        if account is None:
            raise NotFound("there is no such user")
        return account.user

    async def _proven(self, user_id: str, password: str) -> Account:
        # Who has stolen an access token must not be able to try passwords here.
        await self._limiter.attempt_password(user_id)
        account = await self._store.by_id(user_id)
        if not await self._is_password(account, password) or account is None or account.user.disabled:
            raise Unauthenticated("the password is wrong", code="invalid_credentials")
        return account

    async def _is_password(self, account: Account | None, text: str) -> bool:
        password = as_hashed(text)
        known = account.password_hash if account and password is not None else None
        return await self._hasher.verify(known, password or "")

    async def _begin_login(self, account: Account, guest: str | None = None) -> Tokens:
        now = self._clock()
        token = self._refresh_token(account.user.id, new_id("login"), now)
        if not await self._store.begin_login(account, token, guest):
            raise _wrong_credentials()
        return self._tokens(token, now)

    def _refresh_token(self, user_id: str, login_id: str, now: float) -> RefreshToken:
        return RefreshToken(new_id("rt"), user_id, login_id, now + self.rules.refresh_ttl_s)

    def _tokens(self, token: RefreshToken, now: float) -> Tokens:
        expires_at = now + self.rules.access_ttl_s
        access = Claims(TokenType.ACCESS, new_id("at"), token.user_id, now, expires_at, token.login_id)
        refresh = Claims(TokenType.REFRESH, token.id, token.user_id, now, token.expires_at, token.login_id)
        return Tokens(self._signer.sign(access), self._signer.sign(refresh), int(self.rules.access_ttl_s))

    # whether it is them

    def guest(self) -> tuple[str, Caller]:
        """A new guest, and the token that says so. Raises Unauthenticated where one has to be a user."""
        return self._guests.guest()

    async def identify(self, credential: str, address: str = "") -> Caller:
        """Who comes from `address` with an access token, a guest's token or an API key.

        Raises Unauthenticated for everything else, and for what was somebody's: codes `token_expired`,
        `login_ended` and `user_disabled`.
        """
        if credential.startswith(_KEY_PREFIX):
            return await self._identify_key(credential, address)
        claims = self._signer.read(credential, TokenType.ACCESS, TokenType.GUEST)
        if claims.type is TokenType.GUEST:
            return self._guests.caller(claims, address)
        if claims.user_id.startswith(GUEST_PREFIX):
            raise Unauthenticated("this token is not valid")
        account = await self._store.by_login(claims.user_id, claims.login_id)
        if account is None or account.user.disabled:
            raise Unauthenticated("this login has ended; log in again", code="login_ended")
        return Caller(
            claims.user_id, address, is_guest=False, until=claims.expires_at, login_id=claims.login_id
        )

    async def _identify_key(self, credential: str, address: str) -> Caller:
        found = None
        if len(credential) <= _MAX_KEY_CHARS and credential.isascii():
            found = await self._store.by_key(_hash_of(credential))
        if found is None:
            raise Unauthenticated(
                "there is no such API key; it may have been revoked", code="invalid_api_key"
            )
        account, key = found
        if account.user.disabled:
            raise Unauthenticated("the user of this API key may not come in any more", code="user_disabled")
        await self._note_use(key)
        return Caller(account.user.id, address, is_guest=False, key_id=key.id)

    async def _note_use(self, key: ApiKey) -> None:
        now = self._clock()
        if key.last_used_at is not None and now - key.last_used_at < KEY_USE_INTERVAL_S:
            return
        if key.id in self._noting:
            return
        self._noting.add(key.id)
        try:
            await self._store.key_used(key.id, now)
        except Unavailable:
            pass  # the next use will be noted; this one must not fail for it
        finally:
            self._noting.discard(key.id)

    async def still_valid(self, caller: Caller) -> bool:
        """Whether somebody who was identified earlier would be again. Raises Unavailable when that cannot be
        told."""
        if caller.until is not None and self._clock() >= caller.until:
            return False
        if caller.is_guest:
            return self._guests.allowed
        if caller.key_id is not None:
            account = await self._store.by_key_id(caller.user, caller.key_id)
        else:
            account = await self._store.by_login(caller.user, caller.login_id or "")
        return account is not None and not account.user.disabled

    # API keys

    async def create_key(self, user_id: str, name: str) -> tuple[ApiKey, str]:
        """A new key and its secret, which nobody can be told again.

        Raises InvalidRequest for a name that is none, and Conflict when the user has MAX_KEYS already.
        """
        line = " ".join(name[: 8 * MAX_KEY_NAME_CHARS].split())
        if not line or len(line) > MAX_KEY_NAME_CHARS or not line.isprintable():
            raise InvalidRequest(
                f"the name of a key has 1 to {MAX_KEY_NAME_CHARS} characters, all of them visible",
                param="name",
            )
        secret = _KEY_PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(new_id("key"), line, f"{secret[:6]}…{secret[-4:]}", self._clock())
        await self._store.add_key(user_id, key, _hash_of(secret), MAX_KEYS)
        return key, secret

    async def keys(self, user_id: str) -> Sequence[ApiKey]:
        """The oldest first."""
        return await self._store.keys(user_id)

    async def revoke_key(self, user_id: str, key_id: str) -> None:
        """It is refused from now on. Raises NotFound."""
        is_id = len(key_id) <= 64 and key_id.isascii() and key_id.isprintable()
        if not is_id or not await self._store.revoke_key(user_id, key_id):
            raise NotFound("there is no such API key")

    # settings

    async def preferences(self, user_id: str) -> Preferences:
        """Of a user or a guest, for the program: `upstream_key` is readable. One that was encrypted with
        another secret counts as not set."""
        stored = await self._store.preferences(user_id)
        if stored.upstream_key is None:
            return stored
        return replace(stored, upstream_key=self._cipher.decrypt(stored.upstream_key))

    async def set_preferences(self, user_id: str, preferences: Preferences) -> None:
        """Replace all of them. Raises InvalidRequest, and NotFound when there is no such user."""
        check(preferences)
        if preferences.upstream_key is not None:
            preferences = replace(preferences, upstream_key=self._cipher.encrypt(preferences.upstream_key))
        await self._store.set_preferences(user_id, preferences)


def _key_of(username: str) -> str:
    """Empty for what cannot be a name: nobody has it."""
    try:
        return username_key(checked_username(username))
    except InvalidRequest:
        return ""


def _guest_or_none(user_id: str | None) -> str | None:
    """Only guests can be taken over, whatever we are told."""
    return user_id if user_id and user_id.startswith(GUEST_PREFIX) else None


def _hash_of(key: str) -> str:
    """Plain SHA-256: a key is 256 random bits, which nobody guesses however fast each guess is, and it comes
    with every request. A password is neither."""
    return hashlib.sha256(key.encode()).hexdigest()


def _wrong_credentials() -> Unauthenticated:
    return Unauthenticated("the name or the password is wrong", code="invalid_credentials")
