"""What is deleted for good, when, and what stays."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import Table, insert, select, update

from internal.biz.errors import Unavailable
from internal.biz.ids import first_id
from internal.data.sql import retention
from internal.data.sql.database import Database
from internal.data.sql.erasure import delete_user_data
from internal.data.sql.retention import Deleted, Keeping, Retention
from internal.data.sql.tables import (
    batches,
    conversations,
    messages,
    refresh_tokens,
    responses,
    user_settings,
    users,
)

DAY_S = 86400.0
NOW = 1000 * DAY_S
ADA, BOB = "user_ada", "user_bob"


class Shelf:
    """Puts rows there, and says which are left."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def add(self, table: Table, *rows: dict[str, Any]) -> None:
        await self.database.transact(lambda connection: connection.execute(insert(table), list(rows)))

    async def conversation(
        self, name: str, *, user: str = ADA, updated_at: float = NOW, deleted_at: float | None = None
    ) -> None:
        row = {"id": name, "user_id": user, "title": name, "has_title": False, "wants_title": False}
        await self.add(
            conversations, row | {"created_at": 0.0, "updated_at": updated_at, "deleted_at": deleted_at}
        )

    async def response(
        self,
        name: str,
        conversation: str | None = None,
        *,
        user: str = ADA,
        previous: str | None = None,
        created_at: float = NOW,
        runs: bool = False,
        batch: str | None = None,
    ) -> None:
        """With one message."""
        row: dict[str, Any] = {
            "id": name,
            "user_id": user,
            "conversation_id": conversation,
            "previous_id": previous,
            "batch_id": batch,
        }
        row |= {"model": "m", "status": "in_progress" if runs else "completed", "settings": "{}"}
        row |= {"input_chars": 5, "output_chars": 0}
        row |= {"created_at": created_at, "ended_at": None if runs else created_at + 1}
        await self.add(responses, row)
        said = {"id": f"msg_{name}", "response_id": name, "position": 0, "kind": "input", "role": "user"}
        await self.add(messages, said | {"content": "hello", "created_at": created_at})

    async def batch(
        self, name: str, conversation: str | None = None, *, created_at: float = NOW, responses: int = 2
    ) -> None:
        row = {"id": name, "user_id": ADA, "conversation_id": conversation, "prompt": "hello"}
        await self.add(batches, row | {"created_at": created_at})
        for number in range(responses):
            await self.response(f"{name}_{number}", conversation, created_at=created_at, batch=name)

    async def ids(self, table: Table) -> set[str]:
        return {row[0] for row in await self.database.read(select(next(iter(table.primary_key))))}


@pytest.fixture
def shelf(database: Database) -> Shelf:
    return Shelf(database)


def sweeper(shelf: Shelf, keeping: Keeping | None = None) -> Retention:
    return Retention(shelf.database, keeping or Keeping(), now=lambda: NOW)


def numbered(prefix: str, numbers: Iterable[int]) -> set[str]:
    return {f"{prefix}{number}" for number in numbers}


async def test_a_deleted_conversation_goes_after_thirty_days_with_all_that_was_said(shelf: Shelf) -> None:
    await shelf.conversation("old", deleted_at=NOW - 31 * DAY_S)
    await shelf.conversation("recent", deleted_at=NOW - 29 * DAY_S)
    await shelf.conversation("there")
    for name in ("old", "recent", "there"):
        await shelf.response(f"of {name}", name)
    assert await sweeper(shelf).sweep() == Deleted(conversations=1)
    assert await shelf.ids(conversations) == {"recent", "there"}
    assert await shelf.ids(responses) == {"of recent", "of there"}
    assert await shelf.ids(messages) == {"msg_of recent", "msg_of there"}


async def test_of_each_user_the_newest_conversations_stay(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "CONVERSATIONS", 2)
    for number in range(8):
        await shelf.conversation(f"a{number}", updated_at=float(number))
    for number in range(3):
        await shelf.conversation(f"b{number}", user=BOB)
    await shelf.conversation("gone", updated_at=99.0, deleted_at=NOW)  # does not count
    assert await sweeper(shelf, Keeping(conversations=3)).sweep() == Deleted(conversations=5)
    assert await shelf.ids(conversations) == {"a5", "a6", "a7", "gone"} | numbered("b", range(3))
    assert await sweeper(shelf, Keeping(conversations=3)).sweep() == Deleted()


async def test_of_conversations_of_the_same_moment_as_many_stay_as_may(shelf: Shelf) -> None:
    for number in range(5):
        await shelf.conversation(f"a{number}", updated_at=7.0)
    await sweeper(shelf, Keeping(conversations=2)).sweep()
    assert await shelf.ids(conversations) == {"a3", "a4"}


async def test_a_conversation_in_which_something_runs_stays_until_it_has_ended(shelf: Shelf) -> None:
    await shelf.conversation("running", updated_at=1.0)
    await shelf.response("r", "running", runs=True)
    await shelf.conversation("deleted", deleted_at=1.0)
    await shelf.response("d", "deleted", runs=True)
    for number in range(3):
        await shelf.conversation(f"a{number}", updated_at=2.0 + number)
    sweep = sweeper(shelf, Keeping(conversations=2)).sweep
    assert await sweep() == Deleted(conversations=1)
    assert await shelf.ids(conversations) == {"running", "deleted", "a1", "a2"}
    await shelf.database.change(update(responses).values(ended_at=NOW))
    assert await sweep() == Deleted(conversations=2)
    assert await shelf.ids(conversations) == {"a1", "a2"}


async def test_zero_keeps_all(shelf: Shelf) -> None:
    for number in range(5):
        await shelf.conversation(f"a{number}")
    await shelf.response("r", created_at=0.0)
    assert await sweeper(shelf, Keeping(0, 0.0)).sweep() == Deleted()


async def test_a_response_in_no_conversation_goes_when_it_is_old(shelf: Shelf) -> None:
    await shelf.conversation("c")
    await shelf.response("in one", "c", created_at=0.0)
    await shelf.response("old", created_at=NOW - 31 * DAY_S)
    await shelf.response("running", created_at=NOW - 31 * DAY_S, runs=True)
    await shelf.response("recent", created_at=NOW - 29 * DAY_S)
    assert await sweeper(shelf).sweep() == Deleted(responses=1)
    assert await shelf.ids(responses) == {"in one", "running", "recent"}
    assert await shelf.ids(messages) == {"msg_in one", "msg_running", "msg_recent"}


async def test_what_a_younger_response_continues_stays_with_it(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ROWS", 1)
    for chain, last_at in (("old", NOW - 31 * DAY_S), ("live", NOW)):
        previous = None
        for number in range(4):
            name = f"{chain}{number}"
            created_at = last_at if number == 3 else NOW - (100 - number) * DAY_S
            await shelf.response(name, previous=previous, created_at=created_at)
            previous = name
    assert await sweeper(shelf).sweep() == Deleted(responses=4)
    assert await shelf.ids(responses) == numbered("live", range(4))


async def test_a_batch_goes_with_its_conversation_or_with_the_last_of_its_responses(shelf: Shelf) -> None:
    await shelf.conversation("there")
    await shelf.conversation("deleted", deleted_at=NOW - 31 * DAY_S)
    old, new = NOW - 31 * DAY_S, NOW - 29 * DAY_S
    await shelf.batch("in one", "there", created_at=old)
    await shelf.batch("in none", "deleted", created_at=new)
    await shelf.batch("old", created_at=old)
    await shelf.batch("continued", created_at=old)
    await shelf.response("later", previous="continued_1", created_at=new)
    await shelf.batch("recent", created_at=new)
    await sweeper(shelf).sweep()
    assert await shelf.ids(batches) == {"in one", "continued", "recent"}
    assert "continued_0" not in await shelf.ids(responses)


async def test_refresh_tokens_go_when_they_have_expired(shelf: Shelf) -> None:
    user = {"id": ADA, "username": "ada", "username_key": "ada", "email": "", "password_hash": ""}
    await shelf.add(users, user | {"created_at": 0.0, "valid_after": 0.0, "disabled": False})
    for name, expires_at in (("old", NOW - 1), ("valid", NOW + 1)):
        await shelf.add(refresh_tokens, {"id": name, "user_id": ADA, "family": "f", "expires_at": expires_at})
    assert await sweeper(shelf).sweep() == Deleted(refresh_tokens=1)
    assert await shelf.ids(refresh_tokens) == {"valid"}


async def test_several_servers_that_sweep_at_once_delete_everything_once(shelf: Shelf) -> None:
    for number in range(60):
        await shelf.conversation(f"a{number:02}", updated_at=float(number))
        await shelf.response(f"r{number:02}", created_at=0.0)
    deleted = await asyncio.gather(*(sweeper(shelf, Keeping(conversations=10)).sweep() for _ in range(4)))
    assert sum(one.conversations for one in deleted) == 50
    assert sum(one.responses for one in deleted) == 60
    assert len(await shelf.ids(conversations)) == 10


async def test_it_goes_on_when_the_storage_is_back(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr(retention, "INTERVAL_S", 0.002)
    await shelf.response("old", created_at=0.0)
    real, attempts = shelf.database.read, 0

    async def flaky(*arguments: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise Unavailable("away")
        return await real(*arguments)

    monkeypatch.setattr(shelf.database, "read", flaky)
    running = asyncio.create_task(sweeper(shelf).run())

    async def is_gone() -> bool:
        return not await real(select(responses.c.id))

    await eventually(is_gone)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_of_a_user_who_leaves_nothing_stays_and_of_others_all(shelf: Shelf) -> None:
    for user, name in ((ADA, "a"), (BOB, "b")):
        await shelf.conversation(name, user=user)
        await shelf.conversation(f"{name} deleted", user=user, deleted_at=NOW)
        await shelf.response(f"{name} in", name, user=user, runs=True)
        await shelf.response(f"{name} alone", user=user)
        await shelf.add(
            batches, {"id": f"{name} batch", "user_id": user, "prompt": "hello", "created_at": NOW}
        )
        await shelf.add(user_settings, {"user_id": user, "model": "m"})
    await shelf.database.transact(lambda connection: delete_user_data(connection, ADA))
    assert await shelf.ids(conversations) == {"b", "b deleted"}
    assert await shelf.ids(responses) == {"b in", "b alone"}
    assert await shelf.ids(batches) == {"b batch"}
    assert await shelf.ids(messages) == {"msg_b in", "msg_b alone"}
    assert await shelf.ids(user_settings) == {BOB}


# ── guests ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_guests_conversation_goes_when_nobody_has_been_there_for_long(shelf: Shelf) -> None:
    old, new = NOW - 40 * DAY_S, NOW - 20 * DAY_S
    for name, user, made_at, updated_at in (
        ("left", "guest_1", old, old),
        ("used", "guest_2", old, new),
        ("new", "guest_3", new, new),
        ("ada's", ADA, old, old),
    ):
        conversation_id = f"{first_id('conv', made_at)}{name}"
        await shelf.conversation(conversation_id, user=user, updated_at=updated_at)
        await shelf.response(f"resp_{name}", conversation_id, user=user)
    assert (await sweeper(shelf, Keeping(guests_s=0)).sweep()).conversations == 0
    assert (await sweeper(shelf).sweep()).conversations == 1
    assert await shelf.ids(responses) == {"resp_used", "resp_new", "resp_ada's"}


async def test_what_a_guest_has_set_goes_with_their_token(shelf: Shelf) -> None:
    guests = [first_id("guest", NOW - days * DAY_S) for days in (366, 364)]
    await shelf.add(user_settings, *({"user_id": user, "model": "m"} for user in (*guests, ADA)))
    await sweeper(shelf).sweep()
    assert await shelf.ids(user_settings) == {guests[1], ADA}


async def test_after_the_first_sweep_only_those_are_looked_at_who_have_begun_something(shelf: Shelf) -> None:
    sweeping = sweeper(shelf, Keeping(conversations=1))
    ada, bob = ([f"{first_id('conv', NOW - 3600)}{user}{n}" for n in range(2)] for user in "ab")
    for n in range(2):
        await shelf.conversation(ada[n], user=ADA, updated_at=NOW + n)
    assert (await sweeping.sweep()).conversations == 1
    for n in range(2):
        await shelf.conversation(bob[n], user=BOB, updated_at=NOW + n)
    assert (await sweeping.sweep()).conversations == 0  # as if they had always been there
    await shelf.conversation(first_id("conv", NOW), user=BOB, updated_at=NOW + 9)
    assert (await sweeping.sweep()).conversations == 2
    assert await shelf.ids(conversations) == {ada[1], first_id("conv", NOW)}
