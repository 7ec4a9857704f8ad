"""/v1/conversations: the Conversations API. They are the same conversations as those of /conversations.

Beyond the API: their turns.
"""

import asyncio

from aiohttp import web

from internal.biz.conversations import Conversations
from internal.biz.dialogue import Dialogue
from internal.biz.turns import TurnPage, Turns
from internal.server.answers import NOT_STORED, json_answer
from internal.server.rest import Access, AnyRoute, Call, Route
from internal.service.api.base import Body, Query
from internal.service.api.responses import Item, ItemList, ItemsQuery
from internal.service.api.v1_conversations import (
    DeletedThread,
    Labels,
    NewItems,
    NewThread,
    Thread,
    TurnList,
    TurnsQuery,
)
from internal.service.codec.responses_items import behind, item_list, place_of, stored_item
from internal.service.codec.responses_request import messages
from internal.service.codec.turns import turn_list


class V1ConversationRoutes:
    def __init__(self, conversations: Conversations, dialogue: Dialogue, turns: Turns) -> None:
        self._conversations = conversations
        self._dialogue = dialogue
        self._turns = turns

    @property
    def routes(self) -> list[AnyRoute]:
        return [*self._threads(), *self._items()]

    def _threads(self) -> list[AnyRoute]:
        return [
            Route(
                method="POST",
                path="/v1/conversations",
                summary="Begin a conversation",
                tag="openai",
                access=Access.CALLER,
                body=NewThread,
                answer=Thread,
                spends=True,
                handler=self.create,
            ),
            Route(
                method="GET",
                path="/v1/conversations/{id}",
                summary="A conversation",
                tag="openai",
                access=Access.CALLER,
                answer=Thread,
                handler=self.show,
            ),
            Route(
                method="POST",
                path="/v1/conversations/{id}",
                summary="Replace a conversation's metadata",
                tag="openai",
                access=Access.CALLER,
                body=Labels,
                answer=Thread,
                handler=self.update,
            ),
            Route(
                method="DELETE",
                path="/v1/conversations/{id}",
                summary="Delete a conversation",
                tag="openai",
                access=Access.CALLER,
                answer=DeletedThread,
                handler=self.delete,
            ),
        ]

    def _items(self) -> list[AnyRoute]:
        return [
            Route(
                method="GET",
                path="/v1/conversations/{id}/items",
                summary="What was said in a conversation",
                tag="openai",
                access=Access.CALLER,
                query=ItemsQuery,
                answer=ItemList,
                handler=self.items,
            ),
            Route(
                method="POST",
                path="/v1/conversations/{id}/items",
                summary="Say something without asking for an answer",
                tag="openai",
                access=Access.CALLER,
                body=NewItems,
                answer=ItemList,
                errors=(409,),
                spends=True,
                handler=self.add,
            ),
            Route(
                method="GET",
                path="/v1/conversations/{id}/items/{item_id}",
                summary="A piece of what was said",
                tag="openai",
                access=Access.CALLER,
                answer=Item,
                handler=self.item,
            ),
            Route(
                method="DELETE",
                path="/v1/conversations/{id}/items/{item_id}",
                summary="Delete a piece of what was said",
                description="The model does not see it any more.",
                tag="openai",
                access=Access.CALLER,
                answer=Thread,
                errors=(409,),
                handler=self.delete_item,
            ),
            Route(
                method="GET",
                path="/v1/conversations/{id}/turns",
                summary="All turns of a conversation, also those that it does not continue",
                description="Those that were replaced, failed or still run are among them. A page holds "
                "fewer than `limit` where they are long.",
                tag="conversations",
                access=Access.CALLER,
                query=TurnsQuery,
                answer=TurnList,
                handler=self.turns,
            ),
        ]

    async def create(self, call: Call[NewThread, Query]) -> Thread:
        caller, items = call.caller, messages(call.body.items or [])
        conversation = await self._conversations.create(caller.user, metadata=call.body.metadata)
        if items:
            await self._dialogue.add(caller, conversation.id, items)
        return Thread.of(conversation)

    async def show(self, call: Call[Body, Query]) -> Thread:
        return Thread.of(await self._conversations.get(call.id, call.caller.user))

    async def update(self, call: Call[Labels, Query]) -> Thread:
        metadata = call.body.metadata or {}
        return Thread.of(await self._conversations.label(call.id, call.caller.user, metadata))

    async def delete(self, call: Call[Body, Query]) -> DeletedThread:
        await self._conversations.delete(call.id, call.caller.user)
        return DeletedThread(id=call.id)

    async def items(self, call: Call[Body, ItemsQuery]) -> web.Response:
        query = call.query
        found = await self._dialogue.page(
            call.id,
            call.caller.user,
            behind(query.after),
            query.limit + 1,
            newest_first=query.order == "desc",
        )
        return _json(item_list(found[: query.limit], has_more=len(found) > query.limit))

    async def add(self, call: Call[NewItems, Query]) -> web.Response:
        added = await self._dialogue.add(call.caller, call.id, messages(call.body.items))
        return _json(item_list(added))

    async def item(self, call: Call[Body, Query]) -> web.Response:
        place = place_of(call.request.match_info["item_id"])
        return _json(stored_item(await self._dialogue.get(call.id, call.caller.user, place)))

    async def delete_item(self, call: Call[Body, Query]) -> Thread:
        place = place_of(call.request.match_info["item_id"])
        await self._dialogue.delete(call.id, call.caller.user, place)
        return Thread.of(await self._conversations.get(call.id, call.caller.user))

    async def turns(self, call: Call[Body, TurnsQuery]) -> web.Response:
        query = call.query
        page = await self._turns.page(
            call.id, call.caller.user, query.after, query.limit, newest_first=query.order == "desc"
        )
        # A long one would take the event loop's time.
        return await asyncio.to_thread(_page, page)


def _page(page: TurnPage) -> web.Response:
    return _json(turn_list(page))


def _json(body: object) -> web.Response:
    answer = json_answer(body)
    answer.headers.update(NOT_STORED)
    return answer
