"""Asks a model for an HTTP request that waits, and stops the model when nobody waits any more."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from internal.biz.chat import Ask, Chat
from internal.biz.limits import Budget
from internal.biz.models import Caller
from internal.biz.subscription import Reading, Subscription
from internal.server import deadline
from internal.server.streams import Streams


@contextlib.asynccontextmanager
async def asking(
    request: web.Request, chat: Chat, streams: Streams, caller: Caller, ask: Ask, response_id: str
) -> AsyncIterator[tuple[Reading, Budget | None]]:
    """The answer from its start, and what the caller has left. The request may take as long as it needs.

    Raises as `Chat.submit` and `Streams.running`. A ConnectionError inside means that the client has left:
    it ends here, and what comes behind is the answer to nobody. Then, and when it is cancelled, the response
    is abandoned.
    """
    with streams.running(caller.address):
        try:
            budget = await chat.submit(caller, ask, response_id)
            deadline.lift(request)
            subscription = Subscription()
            cursor = await chat.follow(caller, response_id, -1, subscription)
            async with contextlib.aclosing(subscription.read(cursor)) as reading:
                yield reading, budget
        except ConnectionError:
            streams.abandon(response_id)
        except asyncio.CancelledError:
            streams.abandon(response_id)
            raise
