"""The use cases of users, on storage that is a few dicts: what they promise, and who is kept out."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest

from internal.biz.accounts import MAX_KEYS, REUSE_GRACE_S, AccountRules, Accounts
from internal.biz.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from internal.biz.guests import GUEST_TTL_S, Guests
from internal.biz.models import Caller
from internal.biz.preferences import Preferences
from internal.biz.tokens import Claims, TokenType
from internal.biz.user_admin import UserAdmin
from internal.biz.users import Account, ApiKey, Draft, RefreshToken, Refusal, Tokens, User

PASSWORD = "correct horse"
NOW = 1_700_000_000.25


class FakeStore:
    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.tokens: dict[str, RefreshToken] = {}
        self.used: dict[str, float] = {}
        self.api_keys: dict[str, tuple[str, ApiKey]] = {}
        self.settings: dict[str, Preferences] = {}
        self.handed_over: list[tuple[str, str]] = []
        self.away = False
        self.key_writes = 0

    async def add(self, account: Account, guest: str | None = None) -> None:
        if await self.by_name(account.username_key):
            raise Conflict("this name is taken", code="username_taken")
        self.accounts[account.user.id] = account
        self._hand_over(guest, account.user.id)

    def _hand_over(self, guest: str | None, user_id: str) -> None:
        if guest is not None:
            self.handed_over.append((guest, user_id))

    async def by_name(self, username_key: str) -> Account | None:
        return next((one for one in self.accounts.values() if one.username_key == username_key), None)

    async def by_id(self, user_id: str) -> Account | None:
        if self.away:
            raise Unavailable("away")
        return self.accounts.get(user_id)

    async def by_login(self, user_id: str, login_id: str) -> Account | None:
        if not any((one.user_id, one.login_id) == (user_id, login_id) for one in self.tokens.values()):
            return None
        return await self.by_id(user_id)

    async def by_key(self, key_hash: str) -> tuple[Account, ApiKey] | None:
        found = self.api_keys.get(key_hash)
        account = await self.by_id(found[0]) if found else None
        return (account, found[1]) if account and found else None

    async def by_key_id(self, user_id: str, key_id: str) -> Account | None:
        is_there = any(key.id == key_id for key in await self.keys(user_id))
        return await self.by_id(user_id) if is_there else None

    async def users(self) -> Sequence[User]:
        return [account.user for account in self.accounts.values()]

    async def rehash(self, account: Account, password_hash: str) -> None:
        self.accounts[account.user.id] = replace(account, password_hash=password_hash)

    async def set_password(
        self, account: Account, password_hash: str, now: float, *, revoke_keys: bool
    ) -> bool:
        if self.accounts.get(account.user.id) != account:
            return False
        if revoke_keys:
            self.api_keys = {key: one for key, one in self.api_keys.items() if one[0] != account.user.id}
        self.end_all(account.user.id)
        self.accounts[account.user.id] = replace(account, password_hash=password_hash, valid_after=now)
        return True

    async def set_disabled(self, user_id: str, disabled: bool, now: float) -> None:
        self.end_all(user_id)
        account = self.accounts[user_id]
        user = replace(account.user, disabled=disabled)
        self.accounts[user_id] = replace(account, user=user, valid_after=now)

    def end_all(self, user_id: str) -> None:
        self.tokens = {key: one for key, one in self.tokens.items() if one.user_id != user_id}

    async def delete(self, user_id: str) -> Sequence[str]:
        self.end_all(user_id)
        if self.accounts.pop(user_id, None) is None:
            raise NotFound("there is no such user")
        return ()

    async def begin_login(self, account: Account, token: RefreshToken, guest: str | None = None) -> bool:
        known = self.accounts.get(account.user.id)
        if known is None or known.valid_after != account.valid_after:
            return False
        self.tokens[token.id] = token
        self._hand_over(guest, account.user.id)
        return True

    async def rotate(
        self, token_id: str, successor: RefreshToken, now: float, grace_s: float
    ) -> Refusal | None:
        if await self.by_login(successor.user_id, successor.login_id) is None:
            return Refusal.ENDED
        if self.used.setdefault(token_id, now) < now - grace_s:
            await self.end_login(successor.user_id, successor.login_id)
            return Refusal.REUSED
        self.tokens[successor.id] = successor
        return None

    async def end_login(self, user_id: str, login_id: str) -> None:
        self.tokens = {key: one for key, one in self.tokens.items() if one.login_id != login_id}

    async def add_key(self, user_id: str, key: ApiKey, key_hash: str, limit: int) -> None:
        if len(await self.keys(user_id)) >= limit:
            raise Conflict("too many")
        self.api_keys[key_hash] = (user_id, key)

    async def keys(self, user_id: str) -> Sequence[ApiKey]:
        return [key for owner, key in self.api_keys.values() if owner == user_id]

    async def revoke_key(self, user_id: str, key_id: str) -> bool:
        for key_hash, (owner, key) in list(self.api_keys.items()):
            if (owner, key.id) == (user_id, key_id):
                del self.api_keys[key_hash]
                return True
        return False

    async def key_used(self, key_id: str, now: float) -> None:
        self.key_writes += 1
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("away")
        for key_hash, (owner, key) in self.api_keys.items():
            if key.id == key_id:
                self.api_keys[key_hash] = (owner, replace(key, last_used_at=now))

    async def preferences(self, user_id: str) -> Preferences:
        return self.settings.get(user_id, Preferences())

    async def set_preferences(self, user_id: str, preferences: Preferences) -> None:
        self.settings[user_id] = preferences


class FakeHasher:
    """Counts, and is quick. `version` is how it hashes today."""

    def __init__(self) -> None:
        self.version = 1
        self.hashed = 0
        self.verified: list[tuple[str | None, str]] = []

    async def hash(self, password: str) -> str:
        self.hashed += 1
        return f"v{self.version}:{password}"

    async def verify(self, password_hash: str | None, password: str) -> bool:
        self.verified.append((password_hash, password))
        return password_hash is not None and password_hash.partition(":")[2] == password

    def is_outdated(self, password_hash: str) -> bool:
        return not password_hash.startswith(f"v{self.version}:")


class FakeSigner:
    """A token is the number of what it says."""

    def __init__(self) -> None:
        self.signed: list[Claims] = []
        self.now = NOW

    def sign(self, claims: Claims) -> str:
        self.signed.append(claims)
        return str(len(self.signed) - 1)

    def read(self, token: str, *types: TokenType) -> Claims:
        if not token.isdecimal() or int(token) >= len(self.signed):
            raise Unauthenticated("this token is not valid")
        claims = self.signed[int(token)]
        if claims.type not in types or self.now >= claims.expires_at:
            raise Unauthenticated("this token is not valid")
        return claims


class FakeCipher:
    secret = "1"

    def encrypt(self, text: str) -> str:
        return f"{self.secret}{text[::-1]}"

    def decrypt(self, text: str) -> str | None:
        return text[:0:-1] if text[0] == self.secret else None


class FakeLimiter:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.proving: list[str] = []
        self.spent = False

    async def attempt_login(self, username: str, address: str) -> None:
        self.asked.append((username, address))
        self._refuse()

    async def attempt_password(self, user_id: str) -> None:
        self.proving.append(user_id)
        self._refuse()

    def _refuse(self) -> None:
        if self.spent:
            raise RateLimited("too often", limit=5, remaining=0, reset_s=60, retry_after_s=12)


class Site:
    """Users, and what lies below them."""

    def __init__(self) -> None:
        self.store, self.hasher, self.signer = FakeStore(), FakeHasher(), FakeSigner()
        self.cipher, self.limiter = FakeCipher(), FakeLimiter()
        self.admin = UserAdmin(self.store, self.hasher)
        self.accounts = self.opened(AccountRules())

    def opened(self, rules: AccountRules) -> Accounts:
        return Accounts(
            self.store,
            self.hasher,
            self.signer,
            self.cipher,
            self.limiter,
            rules,
            clock=lambda: self.signer.now,
        )

    def later(self, seconds: float) -> None:
        self.signer.now += seconds

    async def ada(self) -> User:
        return await self.accounts.register("Ada", "ada@example.org", PASSWORD, "::1")

    async def login(self, name: str = "ada", password: str = PASSWORD) -> Tokens:
        return await self.accounts.login(name, password, "::1")

    async def is_let_in(self, credential: str) -> bool:
        try:
            await self.accounts.identify(credential)
        except Unauthenticated:
            return False
        return True


@pytest.fixture
def site() -> Site:
    return Site()


# ── register ─────────────────────────────────────────────────────────────────────────────────────


async def test_who_registers_can_log_in_in_any_case(site: Site) -> None:
    user = await site.ada()
    assert (user.username, user.email, user.created_at) == ("Ada", "ada@example.org", NOW)
    assert user.id.startswith("user_")
    assert await site.accounts.get(user.id) == user
    for name in ("Ada", "ADA", "ａｄａ"):
        tokens = await site.login(name)
        caller = await site.accounts.identify(tokens.access, "10.0.0.1")
        assert (caller.user, caller.address, caller.is_guest) == (user.id, "10.0.0.1", False)


async def test_a_name_is_given_once_whatever_its_case(site: Site) -> None:
    await site.ada()
    with pytest.raises(Conflict):
        await site.accounts.register("ADA", "other@example.org", PASSWORD)


async def test_nobody_registers_where_only_operators_add_users(site: Site) -> None:
    closed = site.opened(AccountRules(registration=False))
    with pytest.raises(Forbidden, match="ask whoever runs this server"):
        await closed.register("ada", "ada@example.org", PASSWORD)
    user = await site.admin.add(Draft.checked("ada", None, PASSWORD))
    assert user.email == ""
    assert (await closed.login("ada", PASSWORD)).access


@pytest.mark.parametrize(
    ("username", "email", "password", "param"),
    [
        ("a", "a@b", PASSWORD, "username"),
        ("ada", "", PASSWORD, "email"),
        ("ada", "a@b", "1234567", "password"),
    ],
)
async def test_what_is_no_user_is_refused_before_anything_is_hashed(
    site: Site, username: str, email: str, password: str, param: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        await site.accounts.register(username, email, password)
    assert error.value.param == param
    assert site.hasher.hashed == 0


async def test_registering_counts_against_the_address(site: Site) -> None:
    await site.ada()
    assert site.limiter.asked == [("", "::1")]
    site.limiter.spent = True
    with pytest.raises(RateLimited):
        await site.accounts.register("bob", "bob@example.org", PASSWORD)
    assert site.hasher.hashed == 1


# ── log in ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("bob", PASSWORD),
        ("ada", "wrong horse"),
        ("ada", ""),
        ("ada", "x" * 100_000),
        ("ada", "\ud800"),
        ("", PASSWORD),
        ("a\x00da", PASSWORD),
        ("\ud800" * 3, PASSWORD),
        ("x" * 100_000, PASSWORD),
        ("ada'--", PASSWORD),
    ],
)
async def test_a_refused_login_does_not_tell_why_and_takes_as_long(
    site: Site, name: str, password: str, disabled: bool
) -> None:
    user = await site.ada()
    if disabled:
        await site.store.set_disabled(user.id, True, NOW)
    with pytest.raises(Unauthenticated) as error:
        await site.login(name, password)
    assert (error.value.message, error.value.code) == (
        "the name or the password is wrong",
        "invalid_credentials",
    )
    assert len(site.hasher.verified) == 1
    assert not site.store.tokens


async def test_a_disabled_user_is_refused_as_if_the_password_were_wrong(site: Site) -> None:
    await site.ada()
    await site.admin.disable("ADA")
    with pytest.raises(Unauthenticated, match="the name or the password is wrong"):
        await site.login()
    assert len(site.hasher.verified) == 1
    await site.admin.enable("ada")
    assert (await site.login()).access


async def test_the_limiter_is_asked_before_anything_is_hashed(site: Site) -> None:
    await site.ada()
    site.limiter.spent = True
    for name in ("ADA", "bob", "a b"):
        with pytest.raises(RateLimited):
            await site.login(name)
    assert site.limiter.asked[1:] == [("ada", "::1"), ("bob", "::1"), ("", "::1")]
    assert not site.hasher.verified


async def test_a_password_is_hashed_anew_when_the_parameters_have_changed(site: Site) -> None:
    user = await site.ada()
    site.hasher.version = 2
    await site.login()
    assert site.store.accounts[user.id].password_hash == f"v2:{PASSWORD}"
    await site.login()
    assert site.hasher.hashed == 2


async def test_a_login_is_refused_when_the_password_changes_while_it_is_checked(site: Site) -> None:
    user = await site.ada()
    verify = site.hasher.verify

    async def slowly(password_hash: str | None, password: str) -> bool:
        right = await verify(password_hash, password)
        account = site.store.accounts[user.id]
        assert await site.store.set_password(account, "v1:another", NOW + 1, revoke_keys=False)
        return right

    site.hasher.verify = slowly  # type: ignore[method-assign]
    with pytest.raises(Unauthenticated):
        await site.login()


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────


async def test_an_access_token_says_until_when(site: Site) -> None:
    await site.ada()
    tokens = await site.login()
    assert tokens.expires_in_s == 3600
    caller = await site.accounts.identify(tokens.access)
    assert caller.until == NOW + 3600
    site.later(3599)
    assert await site.accounts.still_valid(caller)
    site.later(1)
    assert not await site.accounts.still_valid(caller)
    assert not await site.is_let_in(tokens.access)


async def test_no_token_stands_in_for_another(site: Site) -> None:
    await site.ada()
    tokens = await site.login()
    guest, _ = site.accounts.guest()
    assert not await site.is_let_in(tokens.refresh)
    for token in (tokens.access, guest, "", "nonsense"):
        with pytest.raises(Unauthenticated):
            await site.accounts.refresh(token)
        with pytest.raises(Unauthenticated):
            await site.accounts.logout(token)


async def test_a_guests_token_for_a_user_is_none_and_the_other_way_round(site: Site) -> None:
    user = await site.ada()
    tokens = await site.login()
    login_id = site.signer.signed[int(tokens.access)].login_id
    for kind, subject in ((TokenType.GUEST, user.id), (TokenType.ACCESS, "guest_1")):
        token = site.signer.sign(Claims(kind, "t", subject, NOW, NOW + 60, login_id))
        assert not await site.is_let_in(token)


async def test_a_refresh_token_gives_new_tokens_of_the_same_login(site: Site) -> None:
    user = await site.ada()
    first = await site.login()
    site.later(1800)
    second = await site.accounts.refresh(first.refresh)
    assert {first.access, first.refresh}.isdisjoint({second.access, second.refresh})
    assert await site.is_let_in(first.access)
    caller = await site.accounts.identify(second.access)
    assert (caller.user, caller.until) == (user.id, NOW + 1800 + 3600)
    await site.accounts.logout(second.refresh)
    assert not await site.is_let_in(first.access)
    assert not await site.is_let_in(second.access)


async def test_a_lost_answer_or_another_tab_does_not_end_the_login(site: Site) -> None:
    await site.ada()
    tokens = await site.login()
    first, second = await asyncio.gather(*(site.accounts.refresh(tokens.refresh) for _ in range(2)))
    site.later(REUSE_GRACE_S)
    third = await site.accounts.refresh(tokens.refresh)
    site.later(3600)
    for one in (first, second, third):
        again = await site.accounts.refresh(one.refresh)
        assert await site.is_let_in(again.access)


async def test_a_stolen_refresh_token_ends_the_login(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    await site.ada()
    other = await site.login()
    tokens = await site.login()
    fresh = await site.accounts.refresh(tokens.refresh)
    site.later(REUSE_GRACE_S + 0.01)
    with caplog.at_level(logging.INFO), pytest.raises(Unauthenticated) as error:
        await site.accounts.refresh(tokens.refresh)
    assert error.value.code == "login_ended"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(Unauthenticated):
        await site.accounts.refresh(fresh.refresh)
    assert not await site.is_let_in(fresh.access)
    assert await site.is_let_in(other.access)


async def test_logging_out_ends_one_login_at_once(site: Site) -> None:
    await site.ada()
    here, there = await site.login(), await site.login()
    caller = await site.accounts.identify(here.access)
    await site.accounts.logout(here.refresh)
    await site.accounts.logout(here.refresh)
    assert not await site.accounts.still_valid(caller)
    assert not await site.is_let_in(here.access)
    with pytest.raises(Unauthenticated):
        await site.accounts.refresh(here.refresh)
    assert await site.is_let_in(there.access)
    assert (await site.accounts.refresh(there.refresh)).access


async def test_another_password_ends_all_other_logins_at_once(site: Site) -> None:
    user = await site.ada()
    before = await site.login()
    caller = await site.accounts.identify(before.access)
    site.later(0.001)
    after = await site.accounts.change_password(user.id, PASSWORD, "another horse")
    assert not await site.is_let_in(before.access)
    assert not await site.accounts.still_valid(caller)
    with pytest.raises(Unauthenticated):
        await site.accounts.refresh(before.refresh)
    assert await site.is_let_in(after.access)
    assert (await site.accounts.refresh(after.refresh)).access
    with pytest.raises(Unauthenticated):
        await site.login()
    assert (await site.login("ada", "another horse")).access


@pytest.mark.parametrize("revoke_keys", [False, True])
async def test_a_new_password_takes_the_keys_along_if_told_to(site: Site, revoke_keys: bool) -> None:
    user = await site.ada()
    _, key = await site.accounts.create_key(user.id, "ci")
    await site.accounts.change_password(user.id, PASSWORD, "another horse", revoke_keys=revoke_keys)
    assert await site.is_let_in(key) is not revoke_keys


async def test_an_operator_s_reset_takes_the_keys_along(site: Site) -> None:
    user = await site.ada()
    _, key = await site.accounts.create_key(user.id, "ci")
    await site.admin.reset_password("ada", "another horse")
    assert not await site.is_let_in(key)


async def test_another_servers_clock_keeps_nobody_out(site: Site) -> None:
    user = await site.ada()
    tokens = await site.login()
    await site.store.set_disabled(user.id, False, NOW + 3600)
    assert not await site.is_let_in(tokens.access)
    assert await site.is_let_in((await site.login()).access)


@pytest.mark.parametrize("current", ["wrong horse", "", "x" * 100_000])
async def test_only_who_knows_the_password_changes_it_or_deletes_the_account(
    site: Site, current: str
) -> None:
    user = await site.ada()
    with pytest.raises(Unauthenticated):
        await site.accounts.change_password(user.id, current, "another horse")
    with pytest.raises(Unauthenticated):
        await site.accounts.delete(user.id, current)
    assert site.limiter.proving == [user.id, user.id]
    assert len(site.limiter.asked) == 1  # to register
    assert (await site.login()).access


async def test_a_guest_has_no_password_to_change(site: Site) -> None:
    _, guest = site.accounts.guest()
    with pytest.raises(Unauthenticated):
        await site.accounts.change_password(guest.user, "", "another horse")
    with pytest.raises(Unauthenticated):
        await site.accounts.delete(guest.user, "")


async def test_of_two_who_change_a_password_at_once_one_does(site: Site) -> None:
    user = await site.ada()
    both = (site.accounts.change_password(user.id, PASSWORD, f"horse number {n}") for n in range(2))
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(one).__name__ for one in outcomes) == ["Tokens", "Unauthenticated"]


async def test_who_was_deleted_or_disabled_is_out_at_once(site: Site) -> None:
    ada = await site.ada()
    bob = await site.accounts.register("bob", "bob@example.org", PASSWORD)
    callers, credentials = [], []
    for user, name in ((ada, "ada"), (bob, "bob")):
        _, key = await site.accounts.create_key(user.id, "ci")
        credentials += [(await site.login(name)).access, key]
    for credential in credentials:
        callers.append(await site.accounts.identify(credential))
        assert await site.accounts.still_valid(callers[-1])
    await site.accounts.delete(ada.id, PASSWORD)
    await site.admin.disable("bob")
    for credential, caller in zip(credentials, callers, strict=True):
        assert not await site.is_let_in(credential)
        assert not await site.accounts.still_valid(caller)
    codes = []
    for credential in credentials:
        with pytest.raises(Unauthenticated) as error:
            await site.accounts.identify(credential)
        codes.append(error.value.code)
    assert codes == ["login_ended", "invalid_api_key", "login_ended", "user_disabled"]
    with pytest.raises(NotFound):
        await site.accounts.get(ada.id)


# ── guests ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_guest_is_somebody_for_a_year(site: Site) -> None:
    token, caller = site.accounts.guest()
    assert caller.is_guest
    assert caller.user.startswith("guest_")
    assert caller.until == NOW + GUEST_TTL_S
    assert await site.accounts.identify(token, "::1") == replace(caller, address="::1")
    assert await site.accounts.still_valid(caller)
    assert site.accounts.guest()[1].user != caller.user
    site.later(GUEST_TTL_S)
    assert not await site.is_let_in(token)


async def test_where_one_has_to_be_a_user_no_guest_is_let_in(site: Site) -> None:
    token, caller = site.accounts.guest()
    site.accounts = site.opened(AccountRules(guests=False))
    assert not await site.is_let_in(token)
    assert not await site.accounts.still_valid(caller)
    with pytest.raises(Unauthenticated):
        site.accounts.guest()


async def test_without_accounts_guests_are_known_and_nobody_else(site: Site) -> None:
    guests = Guests(site.signer, clock=lambda: NOW)
    token, caller = site.accounts.guest()
    assert await guests.identify(token) == caller
    for type_ in TokenType:
        claims = Claims(type_, "t", "user_1", NOW, NOW + 60, "login_1")
        with pytest.raises(Unauthenticated):
            await guests.identify(site.signer.sign(claims))


async def test_who_registers_or_logs_in_takes_over_what_they_had_as_a_guest(site: Site) -> None:
    user = await site.accounts.register("ada", "a@b", PASSWORD, guest="guest_1")
    await site.accounts.login("ada", PASSWORD, guest="guest_2")
    assert site.store.handed_over == [("guest_1", user.id), ("guest_2", user.id)]


async def test_nobody_takes_over_what_a_user_has(site: Site) -> None:
    user = await site.ada()
    await site.accounts.register("eve", "e@x", PASSWORD, guest=user.id)
    await site.accounts.login("eve", PASSWORD, guest=user.id)
    await site.accounts.login("eve", PASSWORD, guest="")
    assert not site.store.handed_over


# ── API keys ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_lets_its_owner_in_until_it_is_revoked(site: Site) -> None:
    user = await site.ada()
    key, secret = await site.accounts.create_key(user.id, "  my\n laptop ")
    assert secret.startswith("sk-")
    assert len(secret) >= 3 + 43
    assert (key.name, key.last_used_at) == ("my laptop", None)
    assert key.hint == f"{secret[:6]}…{secret[-4:]}"
    caller = await site.accounts.identify(secret, "::1")
    assert caller == Caller(user.id, "::1", is_guest=False, until=None, key_id=key.id)
    assert await site.accounts.still_valid(caller)
    await site.accounts.revoke_key(user.id, key.id)
    assert not await site.is_let_in(secret)
    assert not await site.accounts.still_valid(caller)
    assert await site.accounts.keys(user.id) == []


async def test_a_key_is_stored_as_a_hash_only(site: Site) -> None:
    user = await site.ada()
    _, secret = await site.accounts.create_key(user.id, "ci")
    assert secret[3:] not in repr(vars(site.store))
    assert await site.is_let_in(secret)


@pytest.mark.parametrize(
    "credential",
    [
        "sk-",
        "sk-" + "x" * 43,
        "sk-" + "x" * 100_000,
        "sk-ä",
        "sk-\ud800",
        "sk-\x00",
        "SK-x",
        "",
        " ",
        "Bearer x",
    ],
)
async def test_what_is_no_key_is_refused(site: Site, credential: str) -> None:
    user = await site.ada()
    await site.accounts.create_key(user.id, "ci")
    assert not await site.is_let_in(credential)


async def test_nobody_revokes_anothers_key(site: Site) -> None:
    user = await site.ada()
    key, secret = await site.accounts.create_key(user.id, "ci")
    for owner, key_id in (("user_2", key.id), (user.id, "key_1"), (user.id, "\x00"), (user.id, "ä" * 999)):
        with pytest.raises(NotFound):
            await site.accounts.revoke_key(owner, key_id)
    assert await site.is_let_in(secret)


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\x00", "a\x1b[31m", "\ud800", "x " * 1_000_000])
async def test_a_key_has_a_name(site: Site, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await site.accounts.create_key("user_1", name)


async def test_a_user_has_a_bounded_number_of_keys(site: Site) -> None:
    for number in range(MAX_KEYS):
        await site.accounts.create_key("user_1", str(number))
    with pytest.raises(Conflict):
        await site.accounts.create_key("user_1", "one more")


async def test_when_a_key_was_used_is_written_once_a_minute(site: Site) -> None:
    user = await site.ada()
    _, secret = await site.accounts.create_key(user.id, "ci")
    await asyncio.gather(*(site.accounts.identify(secret) for _ in range(100)))
    assert site.store.key_writes == 1
    site.later(59)
    await site.accounts.identify(secret)
    assert site.store.key_writes == 1
    site.later(1)
    await site.accounts.identify(secret)
    (key,) = await site.accounts.keys(user.id)
    assert (site.store.key_writes, key.last_used_at) == (2, NOW + 60)


async def test_a_key_works_when_its_use_cannot_be_noted(site: Site) -> None:
    user = await site.ada()
    _, secret = await site.accounts.create_key(user.id, "ci")
    noting = site.store.key_used

    async def away(key_id: str, now: float) -> None:
        raise Unavailable("away")

    site.store.key_used = away  # type: ignore[method-assign]
    assert await site.is_let_in(secret)
    site.store.key_used = noting  # type: ignore[method-assign]
    await site.accounts.identify(secret)
    assert site.store.key_writes == 1


async def test_nobody_is_let_in_while_it_cannot_be_told_who_they_are(site: Site) -> None:
    user = await site.ada()
    _, secret = await site.accounts.create_key(user.id, "ci")
    tokens = await site.login()
    caller = await site.accounts.identify(secret)
    site.store.away = True
    for credential in (secret, tokens.access):
        with pytest.raises(Unavailable):
            await site.accounts.identify(credential)
    with pytest.raises(Unavailable):
        await site.accounts.still_valid(caller)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────

WHOLE = Preferences("smollm2", 100, "https://llm.example/v1", "secret-key")


async def test_settings_are_kept_and_the_key_of_an_upstream_encrypted(site: Site) -> None:
    assert await site.accounts.preferences("user_1") == Preferences()
    await site.accounts.set_preferences("user_1", WHOLE)
    assert await site.accounts.preferences("user_1") == WHOLE
    assert "secret-key" not in str(site.store.settings["user_1"].upstream_key)


async def test_a_key_that_was_encrypted_with_another_secret_counts_as_not_set(site: Site) -> None:
    await site.accounts.set_preferences("user_1", WHOLE)
    site.cipher.secret = "2"
    assert await site.accounts.preferences("user_1") == replace(WHOLE, upstream_key=None)


def test_another_address_does_not_get_the_key_of_the_former_one() -> None:
    assert WHOLE.changed(model="echo") == replace(WHOLE, model="echo")
    assert WHOLE.changed(upstream_url=WHOLE.upstream_url) == WHOLE
    assert WHOLE.changed(upstream_url="https://evil.example").upstream_key is None
    moved = WHOLE.changed(upstream_url="https://new.example", upstream_key="new")
    assert (moved.upstream_url, moved.upstream_key) == ("https://new.example", "new")


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        *((Preferences(model=model), "model") for model in ("", "x" * 65, "a\x00")),
        *((Preferences(max_output_tokens=tokens), "max_output_tokens") for tokens in (0, -1, 2**31)),
        *(
            (Preferences(upstream_url=url), "upstream_url")
            for url in (
                *(
                    "",
                    "llm.example",
                    "file:///etc/passwd",
                    "ftp://x",
                    "http://",
                    "https:///v1",
                    "http://[::1",
                ),
                *(
                    "http://ada:pw@x",
                    "http://x:99999",
                    "http://x:0",
                    "http://x/ y",
                    "http://x/\n",
                    "http://ü/",
                    "http://x/v1?version=1",
                    "http://x/v1#",
                ),
                "http://x/" + "y" * 2048,
            )
        ),
        *(
            (Preferences(upstream_key=key), "upstream_key")
            for key in ("", "a b", "a\r\nX: y", "ä", "x" * 4097)
        ),
    ],
)
async def test_settings_that_cannot_be_are_refused(site: Site, wrong: Preferences, param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        await site.accounts.set_preferences("user_1", wrong)
    assert error.value.param == param


# ── operators ────────────────────────────────────────────────────────────────────────────────────


async def test_an_operator_resets_a_password_also_of_somebody_disabled(site: Site) -> None:
    user = await site.ada()
    tokens = await site.login()
    await site.admin.disable("ada")
    await site.admin.reset_password("ADA", "another horse")
    await site.admin.enable("ada")
    assert not await site.is_let_in(tokens.access)
    assert (await site.accounts.identify((await site.login("ada", "another horse")).access)).user == user.id
    assert [one.username for one in await site.admin.users()] == ["Ada"]


@pytest.mark.parametrize("name", ["bob", "", "\x00", "\ud800"])
async def test_an_operator_is_told_when_there_is_no_such_user(site: Site, name: str) -> None:
    for call in (site.admin.disable(name), site.admin.enable(name), site.admin.find(name)):
        with pytest.raises(NotFound, match="there is no user"):
            await call
    with pytest.raises(NotFound):
        await site.admin.reset_password(name, PASSWORD)


# ── what is told ─────────────────────────────────────────────────────────────────────────────────


async def test_nothing_that_is_printed_or_logged_holds_a_secret(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        user = await site.ada()
        tokens = Tokens("access-secret", "refresh-secret", 3600)
        key, secret = await site.accounts.create_key(user.id, "ci")
        await site.accounts.set_preferences(user.id, WHOLE)
        told = repr((user, tokens, key, WHOLE, site.store.accounts, Draft.checked("bob", None, PASSWORD)))
        with pytest.raises(Unauthenticated) as error:
            await site.login("ada", "wrong horse")
    for hidden in ("access-secret", "refresh-secret", secret, "secret-key", PASSWORD, "wrong horse"):
        assert hidden not in told + caplog.text + error.value.message
