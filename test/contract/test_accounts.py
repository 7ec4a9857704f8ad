"""What users are promised when they live in a database: names of their own, logins that end, nothing left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import argon2
import pytest
from sqlalchemy import func, select

from internal.biz.accounts import REUSE_GRACE_S, AccountRules, Accounts
from internal.biz.errors import Conflict, NotFound, SluiceError, Unauthenticated
from internal.biz.files import File, Quota
from internal.biz.limits import NoLimits
from internal.biz.models import Message, Request, Response, Role, Seat, Settings, Status
from internal.biz.preferences import Preferences
from internal.biz.tokens import TokenType
from internal.biz.user_admin import UserAdmin
from internal.biz.users import ApiKey, Draft, RefreshToken, Refusal, Tokens, User
from internal.data.credentials.cipher import SecretCipher
from internal.data.credentials.passwords import Argon2Hasher
from internal.data.credentials.tokens import JwtSigner
from internal.data.sql import accounts as sql_accounts
from internal.data.sql.accounts import SqlAccounts
from internal.data.sql.database import Database
from internal.data.sql.files import SqlFiles
from internal.data.sql.history import SqlHistory
from internal.data.sql.tables import (
    api_keys,
    batches,
    conversations,
    files,
    messages,
    metadata,
    refresh_tokens,
    responses,
    user_settings,
    users,
)

if TYPE_CHECKING:
    from test.conftest import OpenDatabase

SECRET = b"0123456789abcdef0123456789abcdef"
PASSWORD = "correct horse"
CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
NOW = 1_700_000_000.25


class Site:
    """Two servers on one database."""

    def __init__(self, databases: Sequence[Database]) -> None:
        self.now = NOW
        self.removed: list[str] = []
        self.database = databases[0]
        self.store = SqlAccounts(databases[0])
        self.here, self.there = map(self._accounts, databases)
        self.admin = UserAdmin(self.store, Argon2Hasher(CHEAP))

    def _accounts(self, database: Database) -> Accounts:
        def clock() -> float:
            return self.now

        return Accounts(
            SqlAccounts(database, self),
            Argon2Hasher(CHEAP),
            JwtSigner(SECRET, clock),
            SecretCipher(SECRET),
            NoLimits(),
            AccountRules(),
            clock,
        )

    async def remove(self, ids: Collection[str]) -> None:
        """As the folder of files does."""
        self.removed += ids

    async def add(self, name: str) -> User:
        return await self.here.register(name, f"{name}@example.org", PASSWORD)

    async def count(self, table: Any) -> int:
        return int((await self.database.read(select(func.count()).select_from(table)))[0][0])

    async def converse(self, owner: str, name: str) -> None:
        """A conversation with a batch of one response to two messages."""
        turn = (Message(Role.SYSTEM, "be brief"), Message(Role.USER, "hello"))
        settings = Settings(conversation_id=f"conv_{name}")
        request = Request(f"resp_{name}", "m", owner, NOW, turn, settings, Seat(f"batch_{name}", 0))
        await SqlHistory(self.database).begin_batch([request], None, begins=True, wants_title=False)

    async def upload(self, owner: str, name: str) -> None:
        file = File(f"file_{name}", owner, f"{name}.txt", "text/plain", "user_data", 10, NOW)
        await SqlFiles(self.database).add(file, Quota())

    async def owners(self, table: Any) -> set[str]:
        return {row.user_id for row in await self.database.read(select(table.c.user_id))}


@pytest.fixture
async def site(
    watched_loop: None, database: Database, storage_url: str, open_database: "OpenDatabase"
) -> AsyncIterator[Site]:
    async with open_database(storage_url) as other:
        yield Site([database, other])


async def is_let_in(accounts: Accounts, credential: str) -> bool:
    try:
        await accounts.identify(credential)
    except Unauthenticated:
        return False
    return True


async def outcomes(calls: Sequence[Awaitable[Any]]) -> list[str]:
    done = await asyncio.gather(*calls, return_exceptions=True)
    unexpected = [one for one in done if isinstance(one, BaseException) and not isinstance(one, SluiceError)]
    assert not unexpected
    return sorted(type(one).__name__ for one in done)


# ── users ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_user_is_found_by_name_and_by_id(site: Site) -> None:
    ada = await site.add("Ädä")
    assert ada == await site.there.get(ada.id)
    assert await site.admin.find("ÄDÄ") == ada
    assert await site.store.by_name("bob") is None
    assert await site.store.by_id("user_1") is None
    bob = await site.admin.add(Draft.checked("bob", None, PASSWORD))
    assert list(await site.admin.users()) == [ada, bob]


async def test_of_many_who_register_a_name_at_once_one_gets_it(site: Site) -> None:
    names = ["ada", "ADA", "Ada", "aDA", "ａｄａ"] * 2
    calls = [(site.here, site.there)[n % 2].register(name, "a@b", PASSWORD) for n, name in enumerate(names)]
    assert await outcomes(calls) == ["Conflict"] * 9 + ["User"]
    assert await site.count(users) == 1


async def test_longest_names_and_addresses_fit(site: Site) -> None:
    for name in ("x" * 64, "小" * 64, "🙂" * 64):
        user = await site.here.register(name, "x" * 252 + "@b", PASSWORD)
        assert (await site.there.login(name, PASSWORD)).access
        await site.here.create_key(user.id, "🙂" * 100)
        whole = Preferences("m" * 64, 2**31 - 1, "https://" + "x" * 2040, "k" * 4096)
        await site.here.set_preferences(user.id, whole)
        assert await site.there.preferences(user.id) == whole


@pytest.mark.parametrize("name", ["a\x00da", "\ud800abc", "x' OR 1=1 --", "%", "_da", "x" * 100_000, ""])
async def test_no_name_breaks_a_login(site: Site, name: str) -> None:
    await site.add("ada")
    with pytest.raises(Unauthenticated):
        await site.here.login(name, PASSWORD)


# ── logins ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_login_begins_here_and_goes_on_there(site: Site) -> None:
    ada = await site.add("ada")
    first = await site.here.login("ADA", PASSWORD)
    second = await site.there.refresh(first.refresh)
    third = await site.here.refresh(second.refresh)
    for tokens in (first, second, third):
        assert (await site.there.identify(tokens.access)).user == ada.id


async def test_of_many_who_refresh_at_once_all_get_tokens_of_their_own(site: Site) -> None:
    await site.add("ada")
    tokens = await site.here.login("ada", PASSWORD)
    both = (site.here, site.there)
    got = await asyncio.gather(*(both[n % 2].refresh(tokens.refresh) for n in range(8)))
    assert len({one.refresh for one in got}) == 8
    site.now += 1800
    again = await asyncio.gather(*(site.there.refresh(one.refresh) for one in got))
    for one in again:
        assert await is_let_in(site.here, one.access)


async def test_one_of_many_uses_a_token_up(site: Site) -> None:
    """With no grace, nobody else gets through, and the login ends."""
    await site.add("ada")
    account = await site.store.by_name("ada")
    assert account
    token = RefreshToken("rt_0", account.user.id, "login_1", NOW + 60)
    assert await site.store.begin_login(account, token)
    # The clock has gone on between any two of them.
    calls = [
        site.store.rotate("rt_0", replace(token, id=f"rt_{n}"), NOW + n, grace_s=0.5) for n in range(1, 9)
    ]
    got = await asyncio.gather(*calls)
    assert got.count(None) == 1
    assert got.count(Refusal.REUSED) == 1
    assert got.count(Refusal.ENDED) == 6
    assert await site.count(refresh_tokens) == 0


async def test_a_token_that_comes_back_late_ends_its_login_and_no_other(site: Site) -> None:
    await site.add("ada")
    other = await site.here.login("ada", PASSWORD)
    stolen = await site.here.login("ada", PASSWORD)
    fresh = await site.there.refresh(stolen.refresh)
    for _ in range(3):
        site.now += REUSE_GRACE_S + 1
        fresh = await site.there.refresh(fresh.refresh)
    with pytest.raises(Unauthenticated):
        await site.here.refresh(stolen.refresh)
    with pytest.raises(Unauthenticated):
        await site.there.refresh(fresh.refresh)
    assert not await is_let_in(site.there, fresh.access)
    assert await is_let_in(site.there, other.access)
    assert (await site.here.refresh(other.refresh)).access


async def test_used_tokens_do_not_pile_up(site: Site) -> None:
    await site.add("ada")
    tokens = await site.here.login("ada", PASSWORD)
    for _ in range(20):
        site.now += REUSE_GRACE_S + 1
        tokens = await site.here.refresh(tokens.refresh)
    assert await site.count(refresh_tokens) <= 2


async def test_the_oldest_logins_of_a_user_make_room(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_accounts, "MAX_REFRESH_TOKENS", 3)
    await site.add("ada")
    await site.add("bob")
    other = await site.here.login("bob", PASSWORD)
    logins = []
    for _ in range(5):
        logins.append(await site.here.login("ada", PASSWORD))
        await asyncio.sleep(0.002)  # ids sort by the millisecond
    assert [await is_let_in(site.here, one.access) for one in logins] == [False, False, True, True, True]
    assert await is_let_in(site.here, other.access)
    assert await site.count(refresh_tokens) == 4


async def test_a_login_that_ends_while_it_is_refreshed_stays_ended(site: Site) -> None:
    ada = await site.add("ada")
    ends: tuple[Callable[[Tokens], Awaitable[object]], ...] = (
        lambda tokens: site.there.logout(tokens.refresh),
        lambda _: site.admin.reset_password("ada", PASSWORD),
        lambda _: site.admin.disable("ada"),
    )
    for end in ends * 4:
        tokens = await site.here.login("ada", PASSWORD)
        refreshing = [site.here.refresh(tokens.refresh) for _ in range(3)]
        done = await asyncio.gather(*refreshing, end(tokens), return_exceptions=True)
        for one in (tokens, *(one for one in done if isinstance(one, Tokens))):
            assert not await is_let_in(site.here, one.access)
            with pytest.raises(Unauthenticated):
                await site.here.refresh(one.refresh)
        await site.store.set_disabled(ada.id, False, site.now)
        site.now += 1
    assert await site.count(refresh_tokens) == 0


async def test_what_ends_all_logins_ends_them_on_every_server_at_once(site: Site) -> None:
    ada = await site.add("ada")
    for end in (
        lambda: site.there.change_password(ada.id, PASSWORD, PASSWORD),
        lambda: site.admin.reset_password("ada", PASSWORD),
        lambda: site.admin.disable("ada"),
    ):
        tokens = await site.here.login("ada", PASSWORD)
        caller = await site.here.identify(tokens.access)
        site.now += 0.001
        await end()
        assert not await is_let_in(site.here, tokens.access)
        assert not await site.here.still_valid(caller)
        with pytest.raises(Unauthenticated):
            await site.here.refresh(tokens.refresh)
    with pytest.raises(Unauthenticated):
        await site.here.login("ada", PASSWORD)
    await site.admin.enable("ada")
    assert (await site.here.login("ada", PASSWORD)).access


async def test_of_two_passwords_at_once_one_counts(site: Site) -> None:
    ada = await site.add("ada")
    calls = [
        accounts.change_password(ada.id, PASSWORD, f"horse number {n}")
        for n, accounts in enumerate((site.here, site.there))
    ]
    site.now += 1
    assert await outcomes(calls) == ["Tokens", "Unauthenticated"]


async def test_a_rehash_does_not_bring_a_former_password_back(site: Site) -> None:
    await site.add("ada")
    before = await site.store.by_name("ada")
    assert before
    site.now += 1
    await site.admin.reset_password("ada", "another horse")
    await site.store.rehash(before, "$argon2id$former")
    assert (await site.here.login("ada", "another horse")).access


async def test_moments_are_kept_to_the_microsecond(site: Site) -> None:
    ada = await site.add("ada")
    await site.store.set_disabled(ada.id, False, 1_700_000_000.123456)
    account = await site.store.by_id(ada.id)
    assert account
    assert account.valid_after == 1_700_000_000.123456


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_is_its_owners_alone(site: Site) -> None:
    ada, bob = await site.add("ada"), await site.add("bob")
    key, secret = await site.here.create_key(ada.id, "ci")
    caller = await site.there.identify(secret)
    assert (caller.user, caller.key_id) == (ada.id, key.id)
    assert await site.here.keys(ada.id) == [replace(key, last_used_at=NOW)]
    assert await site.here.keys(bob.id) == []
    with pytest.raises(NotFound):
        await site.here.revoke_key(bob.id, key.id)
    assert await site.here.still_valid(caller)
    assert not await site.here.still_valid(replace(caller, user=bob.id))
    await site.here.revoke_key(ada.id, key.id)
    assert not await site.there.still_valid(caller)
    assert not await is_let_in(site.there, secret)
    with pytest.raises(NotFound):
        await site.here.revoke_key(ada.id, key.id)


async def test_a_key_outlives_another_password_but_not_being_disabled(site: Site) -> None:
    ada = await site.add("ada")
    _, secret = await site.here.create_key(ada.id, "ci")
    await site.here.change_password(ada.id, PASSWORD, "another horse")
    caller = await site.here.identify(secret)
    await site.admin.disable("ada")
    assert not await is_let_in(site.here, secret)
    assert not await site.here.still_valid(caller)
    await site.admin.enable("ada")
    assert await is_let_in(site.here, secret)


async def test_the_number_of_keys_is_bounded_also_when_they_are_made_at_once(site: Site) -> None:
    ada = await site.add("ada")
    keys = [ApiKey(f"key_{n}", "ci", "sk-…", NOW) for n in range(10)]
    calls = [site.store.add_key(ada.id, key, f"hash {key.id}", limit=3) for key in keys]
    assert await outcomes(calls) == ["Conflict"] * 7 + ["NoneType"] * 3
    assert len(await site.here.keys(ada.id)) == 3


async def test_nobody_who_is_not_there_gets_a_key_or_settings(site: Site) -> None:
    with pytest.raises(NotFound):
        await site.here.create_key("user_1", "ci")
    with pytest.raises(NotFound):
        await site.here.create_key("guest_1", "ci")
    with pytest.raises(NotFound):
        await site.here.set_preferences("user_1", Preferences(model="m"))


async def test_when_a_key_was_used_never_goes_back(site: Site) -> None:
    ada = await site.add("ada")
    key, _ = await site.here.create_key(ada.id, "ci")
    for now in (NOW + 5, NOW + 3, NOW + 4):
        await site.store.key_used(key.id, now)
    assert [one.last_used_at for one in await site.here.keys(ada.id)] == [NOW + 5]


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


async def test_settings_are_replaced_as_a_whole(site: Site) -> None:
    ada = await site.add("ada")
    for preferences in (
        Preferences("m", 5, "https://x", "key"),
        Preferences(max_output_tokens=7),
        Preferences(),
    ):
        await site.here.set_preferences(ada.id, preferences)
        assert await site.there.preferences(ada.id) == preferences
    assert await site.count(user_settings) == 1


async def test_settings_of_guests_can_be_set_by_many_at_once(site: Site) -> None:
    calls = [site.here.set_preferences("guest_1", Preferences(max_output_tokens=n)) for n in range(1, 9)]
    assert await outcomes(calls) == ["NoneType"] * 8
    assert await site.count(user_settings) == 1


async def test_an_upstreams_key_is_unreadable_in_the_database(site: Site) -> None:
    await site.here.set_preferences("guest_1", Preferences(upstream_key="secret-key"))
    (row,) = await site.database.read(select(user_settings))
    assert "secret-key" not in row.upstream_key


@pytest.mark.parametrize("revoke_keys", [False, True])
async def test_a_new_password_takes_only_the_user_s_own_keys_along(site: Site, revoke_keys: bool) -> None:
    ada, bob = await site.add("ada"), await site.add("bob")
    _, hers = await site.here.create_key(ada.id, "ci")
    _, his = await site.here.create_key(bob.id, "ci")
    await site.here.change_password(ada.id, PASSWORD, "another horse", revoke_keys=revoke_keys)
    assert await is_let_in(site.there, hers) is not revoke_keys
    assert await is_let_in(site.there, his)


# ── guests who become users ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["register", "login"])
async def test_what_a_guest_had_is_the_users(site: Site, way: str) -> None:
    _, guest = site.here.guest()
    await site.converse(guest.user, "mine")
    await site.converse("guest_other", "theirs")
    await site.upload(guest.user, "mine")
    await site.upload("guest_other", "theirs")
    await site.here.set_preferences(guest.user, Preferences("m", 5, "https://x", "key"))
    if way == "register":
        user = await site.here.register("ada", "a@b", PASSWORD, guest=guest.user)
    else:
        user = await site.add("ada")
        await site.here.login("ada", PASSWORD, guest=guest.user)
    for table in (conversations, responses, batches, files):
        assert await site.owners(table) == {user.id, "guest_other"}
    kept = Preferences("m", 5) if way == "register" else Preferences()
    assert await site.here.preferences(user.id) == kept
    assert await site.here.preferences(guest.user) == Preferences()
    assert await site.count(messages) == 4


@pytest.mark.parametrize(
    "own", [Preferences(), Preferences(model="own"), Preferences("own", 1, "https://own", "own-key")]
)
async def test_a_login_changes_no_settings(site: Site, own: Preferences) -> None:
    """The guest's cookie may be one that somebody else has put into the user's browser."""
    ada = await site.add("ada")
    await site.here.set_preferences(ada.id, own)
    await site.here.set_preferences("guest_1", Preferences("m", 5, "https://x", "key"))
    await site.here.login("ada", PASSWORD, guest="guest_1")
    assert await site.there.preferences(ada.id) == own


async def test_a_registration_that_fails_takes_nothing_from_the_guest(site: Site) -> None:
    await site.add("ada")
    await site.converse("guest_1", "mine")
    with pytest.raises(Conflict):
        await site.here.register("ADA", "a@b", PASSWORD, guest="guest_1")
    with pytest.raises(Unauthenticated):
        await site.here.login("ada", "wrong horse", guest="guest_1")
    assert await site.owners(conversations) == {"guest_1"}


# ── leaving ──────────────────────────────────────────────────────────────────────────────────────


async def test_who_leaves_leaves_nothing_behind_and_others_keep_all(site: Site) -> None:
    ada, bob = await site.add("ada"), await site.add("bob")
    for user in (ada, bob):
        await site.converse(user.id, user.username)
        await site.upload(user.id, user.username)
        await site.here.create_key(user.id, "ci")
        await site.here.login(user.username, PASSWORD)
        await site.here.set_preferences(user.id, Preferences(model="m"))
    before = {table.name: await site.count(table) for table in metadata.sorted_tables}
    with pytest.raises(Unauthenticated):
        await site.here.delete(ada.id, "wrong horse")
    assert before == {table.name: await site.count(table) for table in metadata.sorted_tables}
    assert list(await site.here.delete(ada.id, PASSWORD)) == ["resp_ada"]
    after = {table.name: await site.count(table) for table in metadata.sorted_tables}
    assert {name: 2 * count for name, count in after.items()} == before
    assert site.removed == ["file_ada"]
    for table in (conversations, responses, files, user_settings, api_keys, refresh_tokens):
        assert await site.owners(table) == {bob.id}
    with pytest.raises(NotFound):
        await site.there.get(ada.id)
    assert (await site.add("ada")).id != ada.id


async def test_who_leaves_is_told_what_still_runs(site: Site) -> None:
    ada, bob = await site.add("ada"), await site.add("bob")
    for owner, name in ((ada, "one"), (ada, "two"), (bob, "three")):
        await site.converse(owner.id, name)
    request = Request("resp_one", "m", ada.id, NOW, (), Settings(conversation_id="conv_one"))
    await SqlHistory(site.database).finish([Response.of(request, Status.COMPLETED)])
    assert list(await site.here.delete(ada.id, PASSWORD)) == ["resp_two"]


async def test_who_leaves_while_they_do_other_things_leaves_nothing_behind(site: Site) -> None:
    ada = await site.add("ada")
    tokens = await site.here.login("ada", PASSWORD)
    done = await outcomes(
        [
            *(site.here.set_preferences(ada.id, Preferences(model="m")) for _ in range(4)),
            *(site.there.create_key(ada.id, "ci") for _ in range(4)),
            site.upload(ada.id, "early"),
            site.here.delete(ada.id, PASSWORD),
            *(site.there.refresh(tokens.refresh) for _ in range(4)),
            *(site.here.login("ada", PASSWORD) for _ in range(4)),
            site.upload(ada.id, "late"),
            *(site.there.create_key(ada.id, "ci") for _ in range(4)),
        ]
    )
    assert set(done) <= {"NoneType", "NotFound", "list", "Tokens", "Unauthenticated", "tuple"}
    for table in metadata.sorted_tables:
        assert await site.count(table) == 0, table.name


async def test_of_two_who_delete_an_account_at_once_both_are_told(site: Site) -> None:
    ada = await site.add("ada")
    done = await outcomes([accounts.delete(ada.id, PASSWORD) for accounts in (site.here, site.there)])
    assert done in (["NotFound", "list"], ["Unauthenticated", "list"])


async def test_a_token_of_the_signers_own_is_no_login(site: Site) -> None:
    """A signature alone lets nobody in: the login must be there."""
    ada = await site.add("ada")
    tokens = await site.here.login("ada", PASSWORD)
    signer = JwtSigner(SECRET, lambda: site.now)
    claims = signer.read(tokens.access, TokenType.ACCESS)
    for forged in (
        replace(claims, login_id=""),
        replace(claims, login_id="login_1"),
        replace(claims, user_id="user_1"),
        replace(claims, user_id=(await site.add("bob")).id),
    ):
        assert not await is_let_in(site.here, signer.sign(forged))
    assert (await site.here.identify(signer.sign(claims))).user == ada.id
