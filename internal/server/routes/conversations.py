"""/conversations: list, search, read, rename, go on from another turn, export, delete."""

import asyncio
from collections.abc import Sequence

from aiohttp import web

from internal.biz.conversations import Conversations
from internal.biz.errors import InvalidRequest
from internal.biz.models import Conversation, StoredMessage
from internal.server.answers import NOT_STORED
from internal.server.rest import Access, AnyRoute, Call, Route
from internal.service.api.base import Body, Query
from internal.service.api.conversations import (
    Begun,
    Change,
    ConversationList,
    Dialogue,
    Export,
    ExportQuery,
    ListQuery,
    NewConversation,
    Summary,
    file_name,
    markdown,
)


class ConversationRoutes:
    def __init__(self, conversations: Conversations) -> None:
        self._conversations = conversations

    @property
    def routes(self) -> list[AnyRoute]:
        return [
            Route(
                method="POST",
                path="/conversations",
                summary="Begin a conversation",
                tag="conversations",
                access=Access.CALLER,
                body=NewConversation,
                answer=Begun,
                status=201,
                spends=True,
                handler=self.create,
            ),
            Route(
                method="GET",
                path="/conversations",
                summary="Your conversations, those with news first",
                tag="conversations",
                access=Access.CALLER,
                query=ListQuery,
                answer=ConversationList,
                handler=self.page,
            ),
            Route(
                method="GET",
                path="/conversations/{id}/history",
                summary="What was said",
                tag="conversations",
                access=Access.CALLER,
                answer=Dialogue,
                handler=self.history,
            ),
            Route(
                method="GET",
                path="/v1/conversations/{id}/history",
                summary="What was said",
                description="The same as /conversations/{id}/history.",
                tag="conversations",
                access=Access.CALLER,
                answer=Dialogue,
                handler=self.history,
            ),
            Route(
                method="GET",
                path="/conversations/{id}/export",
                summary="What was said, as a file",
                tag="conversations",
                access=Access.CALLER,
                query=ExportQuery,
                answer=Export,
                also={"text/markdown": "With `format=markdown`."},
                handler=self.export,
            ),
            Route(
                method="PATCH",
                path="/conversations/{id}",
                summary="Name a conversation, or let it go on from another response",
                description="What is not on the way to that response stands aside: it is among the turns, "
                "and in no other list.",
                tag="conversations",
                access=Access.CALLER,
                body=Change,
                answer=Summary,
                errors=(409,),
                handler=self.change,
            ),
            Route(
                method="DELETE",
                path="/conversations/{id}",
                summary="Delete a conversation",
                tag="conversations",
                access=Access.CALLER,
                handler=self.delete,
            ),
        ]

    async def create(self, call: Call[NewConversation, Query]) -> Begun:
        conversation = await self._conversations.create(call.caller.user, call.body.title or "")
        return Begun(session_id=conversation.id, message="The conversation has begun.")

    async def page(self, call: Call[Body, ListQuery]) -> ConversationList:
        query = call.query
        search = (query.q or "").strip() or None
        found = await self._conversations.page(call.caller.user, query.limit, query.cursor, search)
        return ConversationList.of(found)

    async def history(self, call: Call[Body, Query]) -> web.Response:
        messages = await self._conversations.messages(call.id, call.caller.user)
        # A long one would take the event loop's time.
        return await asyncio.to_thread(_history, call.id, messages)

    async def export(self, call: Call[Body, ExportQuery]) -> web.Response:
        conversation = await self._conversations.get(call.id, call.caller.user)
        messages = await self._conversations.messages(call.id, call.caller.user)
        return await asyncio.to_thread(_export, conversation, messages, call.query.format)

    async def change(self, call: Call[Change, Query]) -> Summary:
        title, head, user = call.body.title, call.body.head, call.caller.user
        if head is not None:
            return Summary.of(await self._conversations.go_on_from(call.id, user, head, title))
        if title is None:
            raise InvalidRequest("give a title, or a head to go on from", param="title")
        return Summary.of(await self._conversations.rename(call.id, user, title))

    async def delete(self, call: Call[Body, Query]) -> None:
        await self._conversations.delete(call.id, call.caller.user)


def _history(conversation_id: str, messages: Sequence[StoredMessage]) -> web.Response:
    body = Dialogue.of(conversation_id, messages).model_dump_json().encode()
    return web.Response(body=body, content_type="application/json", headers=NOT_STORED)


def _export(conversation: Conversation, messages: Sequence[StoredMessage], format_: str) -> web.Response:
    export = Export.of(conversation, messages)
    if format_ == "markdown":
        return _file(markdown(export), "text/markdown", file_name(export, "md"))
    return _file(export.model_dump_json(indent=2), "application/json", file_name(export, "json"))


def _file(text: str, content_type: str, name: str) -> web.Response:
    headers = {**NOT_STORED, "Content-Disposition": f'attachment; filename="{name}"'}
    return web.Response(body=text.encode(), content_type=content_type, charset="utf-8", headers=headers)
