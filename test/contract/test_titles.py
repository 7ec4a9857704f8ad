"""Which conversations want a title: each is given out once, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import Unavailable
from internal.biz.models import ItemKind, OutputItem, Response, Settings, Status
from internal.biz.titles import Untitled
from internal.data.sql.database import Database
from internal.data.sql.history import SqlHistory
from internal.data.sql.titles import SqlTitles

if TYPE_CHECKING:
    from test.conftest import OpenDatabase, RequestFactory

SERVERS = 3
CONVERSATIONS = 40


@pytest.fixture
async def servers(
    storage_url: str, open_database: "OpenDatabase", watched_loop: None
) -> AsyncIterator[list[Database]]:
    """The same database, as several processes have it."""
    async with AsyncExitStack() as opened:
        yield [await opened.enter_async_context(open_database(storage_url)) for _ in range(SERVERS)]


class Talk:
    """Has exchanges stored."""

    def __init__(self, database: Database, make_request: "RequestFactory") -> None:
        self._history = SqlHistory(database)
        self._make_request = make_request

    async def begin(self, conversation: str, *, wants_title: bool = True) -> Response:
        """A conversation with a question that is not answered yet."""
        settings = Settings(conversation_id=conversation)
        request = self._make_request(f"what is {conversation}?", settings=settings)
        await self._history.begin(request, None, begins=True, wants_title=wants_title)
        output = (OutputItem(ItemKind.REASONING, "hm"), OutputItem(ItemKind.MESSAGE, f"{conversation}!"))
        return Response.of(request, Status.COMPLETED, output=output, attempt=1)

    async def exchange(self, conversation: str, *, wants_title: bool = True) -> None:
        await self._history.finish([await self.begin(conversation, wants_title=wants_title)])

    async def end(self, response: Response) -> None:
        await self._history.finish([response])


@pytest.fixture
def talk(servers: list[Database], make_request: "RequestFactory") -> Talk:
    return Talk(servers[0], make_request)


async def take_all(titles: SqlTitles) -> list[Untitled]:
    """As a server does that finds nothing to do in the end. A deadlock is another try."""
    taken: list[Untitled] = []
    while True:
        try:
            found = await titles.take_untitled(4)
        except Unavailable:
            continue
        if not found:
            return taken
        taken += found


async def test_of_servers_that_look_at_once_one_gets_each_conversation(
    servers: list[Database], talk: Talk
) -> None:
    names = {f"conv_{number}" for number in range(CONVERSATIONS)}
    await asyncio.gather(*(talk.exchange(name) for name in names))
    taken = [
        one for part in await asyncio.gather(*(take_all(SqlTitles(it)) for it in servers)) for one in part
    ]
    assert len(taken) == CONVERSATIONS
    assert {one.conversation_id for one in taken} == names


async def test_it_comes_with_what_was_said_first(servers: list[Database], talk: Talk) -> None:
    await talk.exchange("conv_1")
    (one,) = await SqlTitles(servers[1]).take_untitled(4)
    assert one == Untitled("conv_1", "m", "what is conv_1?", "conv_1!")
    assert not await SqlTitles(servers[2]).take_untitled(4)


async def test_only_what_was_answered_and_wants_a_title_is_given_out(
    servers: list[Database], talk: Talk
) -> None:
    titles = SqlTitles(servers[0])
    await talk.exchange("conv_1", wants_title=False)
    answer = await talk.begin("conv_2")
    assert not await titles.take_untitled(4)
    await talk.end(answer)
    assert [one.conversation_id for one in await titles.take_untitled(4)] == ["conv_2"]
