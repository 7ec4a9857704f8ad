"""Deletes what has been kept for long enough, a little at a time."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Table, and_, delete, exists, func, select, tuple_

from internal.biz.errors import Unavailable
from internal.biz.guests import GUEST, GUEST_PREFIX, GUEST_TTL_S
from internal.biz.ids import first_id
from internal.data.sql.database import Database
from internal.data.sql.tables import batches, conversations, refresh_tokens, responses, user_settings

log = logging.getLogger(__name__)

UNDELETE_S = 30 * 86400.0
"""How long a deleted conversation is still there for who has the database."""
INTERVAL_S = 60.0
CONVERSATIONS = 25
"""Of a transaction. All their responses and messages go with them."""
ROWS = 250
"""Of others, in a transaction."""
MARGIN_S = 600.0
"""How far the clocks of servers may differ, and a conversation be stored after its id was made."""
BREATH_S = 0.02
"""Between two transactions, for those who write."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What stays: the newest conversations of each user (0: all); for how long a response in no conversation
    does, and a guest's conversation after its last message (each 0: for ever)."""

    conversations: int = 500
    responses_s: float = 30 * 86400.0
    guests_s: float = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Deleted:
    conversations: int = 0
    responses: int = 0
    refresh_tokens: int = 0


class Retention:
    """Any number of processes may run one: they delete the same, and rows that are gone harm none.

    A user may have more conversations than are kept for as long as INTERVAL_S. What runs is never deleted.
    """

    def __init__(self, database: Database, keeping: Keeping, *, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._keeping = keeping
        self._now = now
        self._looked_at = 0.0
        """Who has begun no conversation since then has no more of them than at the last sweep."""

    async def run(self) -> None:
        """Delete now and then, until cancelled."""
        while True:
            # Not all servers at the same moment.
            await asyncio.sleep(INTERVAL_S * random.uniform(0.5, 1.0))
            try:
                deleted = await self.sweep()
            except Unavailable:  # whoever needs the storage says so
                continue
            except Exception:  # nobody's answers may end with this
                log.exception("the storage could not be tidied")
                continue
            if deleted != Deleted():
                log.info(
                    "the storage forgot %d conversations, %d responses, %d refresh tokens",
                    deleted.conversations,
                    deleted.responses,
                    deleted.refresh_tokens,
                )

    async def sweep(self) -> Deleted:
        """Delete all that has been kept for long enough. Raises Unavailable."""
        count = await self._delete(conversations, conversations.c.deleted_at < self._now() - UNDELETE_S)
        if self._keeping.guests_s:
            count += await self._delete_guests(self._now() - self._keeping.guests_s)
        if self._keeping.conversations:
            looks_at = self._now()
            count += await self._delete_beyond(self._keeping.conversations)
            self._looked_at = looks_at - MARGIN_S
        deleted = Deleted(count, await self._delete_responses(), await self._delete_tokens())
        await self._delete_batches()
        return deleted

    async def _delete_guests(self, before: float) -> int:
        """Guests whom nobody has heard of: most have lost the cookie that says who they are."""
        c = conversations.c
        count = await self._delete(
            conversations,
            and_(
                c.id < first_id("conv", before),
                c.updated_at < before,
                c.user_id.startswith(GUEST_PREFIX, autoescape=True),
            ),
        )
        # The token that they belong to has run out.
        mine, ended = user_settings.c.user_id, first_id(GUEST, self._now() - GUEST_TTL_S)
        await self._delete(user_settings, and_(mine.startswith(GUEST_PREFIX, autoescape=True), mine < ended))
        return count

    async def _delete_beyond(self, keep: int) -> int:
        c = conversations.c
        users = select(c.user_id).where(c.deleted_at.is_(None))
        if self._looked_at:
            active = select(c.user_id).where(c.id > first_id("conv", self._looked_at))
            users = users.where(c.user_id.in_(active))
        users = users.group_by(c.user_id).having(func.count() > keep)
        count = 0
        for (user,) in await self._database.read(users):
            newest = (
                select(c.updated_at, c.id)
                .where(c.user_id == user, c.deleted_at.is_(None))
                .order_by(c.updated_at.desc(), c.id.desc())
            )
            # Those that arrive meanwhile are newer: what is older than this one stays too old.
            if last := await self._database.read(newest.offset(keep - 1).limit(1)):
                older = tuple_(c.updated_at, c.id) < tuple_(last[0].updated_at, last[0].id)
                count += await self._delete(
                    conversations, and_(c.user_id == user, c.deleted_at.is_(None), older)
                )
        return count

    async def _delete_responses(self) -> int:
        """Those that nothing continues: a dialogue goes from its end, once that is old enough."""
        if not self._keeping.responses_s:
            return 0
        later = responses.alias("later")
        return await self._delete(
            responses,
            and_(
                responses.c.conversation_id.is_(None),
                responses.c.created_at < self._now() - self._keeping.responses_s,
                responses.c.ended_at.is_not(None),
                ~exists().where(later.c.previous_id == responses.c.id).correlate(responses),
            ),
        )

    async def _delete_batches(self) -> None:
        """Those in no conversation, with the last of their responses. The others go with the conversation."""
        if self._keeping.responses_s:
            left = exists().where(responses.c.batch_id == batches.c.id).correlate(batches)
            old = batches.c.created_at < self._now() - self._keeping.responses_s
            await self._delete(batches, and_(batches.c.conversation_id.is_(None), old, ~left))

    async def _delete_tokens(self) -> int:
        return await self._delete(refresh_tokens, refresh_tokens.c.expires_at < self._now())

    async def _delete(self, table: Table, which: ColumnElement[bool]) -> int:
        """Delete rows in batches until there are none, conversations with a response that runs left out."""
        if table is conversations:
            runs = exists().where(responses.c.conversation_id == table.c.id, responses.c.ended_at.is_(None))
            which = and_(which, ~runs.correlate(table))
        (key,) = table.primary_key
        query = select(key).where(which)
        if table is responses:
            # The last one of a dialogue is the first that can go.
            query = query.order_by(table.c.created_at.desc())
        query = query.limit(CONVERSATIONS if table is conversations else ROWS)
        count = 0
        while found := await self._database.read(query):
            ids = [row[0] for row in found]
            # Asked again: meanwhile somebody may have gone on with one of them.
            deleted = await self._database.change(delete(table).where(key.in_(ids), which))
            if not deleted:
                break
            count += deleted
            await asyncio.sleep(BREATH_S)
        return count
