"""POST /chat: one message, and its answer, whole or as it is made."""

from typing import Protocol

from aiohttp import web

from internal.biz.accounts import Preferences
from internal.biz.chat import Ask, Chat
from internal.biz.errors import NotFound
from internal.biz.ids import new_id
from internal.biz.models import Caller, Message, Role, Sampling, Settings, Status, Truncation
from internal.biz.subscription import Reading
from internal.server.asking import asking
from internal.server.rest import Access, AnyRoute, Call, Route, WithHeaders
from internal.server.sse import send
from internal.server.streams import Streams
from internal.service.api.base import Query
from internal.service.api.chat import (
    STREAM,
    ChatMessage,
    ChatReply,
    ChatStream,
    ChatTurn,
    StreamedTurn,
    failure_error,
)
from internal.service.rate_limit import budget_headers


class HasPreferences(Protocol):
    async def preferences(self, user_id: str) -> Preferences: ...


class ChatRoutes:
    def __init__(self, chat: Chat, accounts: HasPreferences, streams: Streams) -> None:
        self._chat = chat
        self._accounts = accounts
        self._streams = streams

    @property
    def routes(self) -> list[AnyRoute]:
        return [
            Route(
                method="POST",
                path="/chat",
                summary="Say something, and get the answer",
                tag="chat",
                access=Access.CALLER,
                body=ChatTurn,
                answer=ChatReply,
                also={"text/event-stream": f"With `stream: true`. {STREAM}"},
                errors=(404, 409),
                handler=self.chat,
            ),
            Route(
                method="POST",
                path="/chat/message",
                summary="Say something, and get the answer as it is made",
                tag="chat",
                access=Access.CALLER,
                body=StreamedTurn,
                also={"text/event-stream": STREAM},
                errors=(404, 409),
                handler=self.message,
            ),
        ]

    async def chat(self, call: Call[ChatTurn, Query]) -> WithHeaders | web.StreamResponse:
        return await self._exchange(call.request, call.caller, call.body, stream=bool(call.body.stream))

    async def message(self, call: Call[StreamedTurn, Query]) -> WithHeaders | web.StreamResponse:
        return await self._exchange(call.request, call.caller, call.body, stream=True)

    async def _exchange(
        self, request: web.Request, caller: Caller, body: ChatMessage, *, stream: bool
    ) -> WithHeaders | web.StreamResponse:
        session_id = body.session_id or new_id("conv")
        begun = None if body.session_id else session_id
        ask = await self._ask(caller, body, session_id)
        try:
            async with asking(request, self._chat, self._streams, caller, ask, new_id("resp")) as (
                reading,
                budget,
            ):
                headers = budget_headers(budget)
                if stream:
                    headers["X-Session-Id"] = session_id
                    return await send(request, self._streams, reading, ChatStream(begun), headers)
                return WithHeaders(await self._wait(request, reading, session_id, body.message), headers)
        except NotFound as error:
            if error.code != "conversation_not_found":
                raise
            raise NotFound(error.message, code=error.code, param="session_id") from error
        return web.Response()  # which nobody gets

    async def _ask(self, caller: Caller, body: ChatMessage, session_id: str) -> Ask:
        """What was left out is as the user has set it; but for a model that this server has no more."""
        mine = await self._accounts.preferences(caller.user)
        settings = Settings(
            conversation_id=session_id,
            max_output_tokens=body.max_tokens or mine.max_output_tokens,
            sampling=Sampling(temperature=body.temperature),
            truncation=Truncation.AUTO,
        )
        model = body.model or self._usual(mine)
        return Ask((Message(Role.USER, body.message),), model, settings, begins=body.session_id is None)

    def _usual(self, mine: Preferences) -> str | None:
        """The model that the user has set, here or at an upstream of their own; None: the default."""
        if mine.upstream_url is not None and self._chat.own_model is not None:
            return self._chat.own_model
        return mine.model if mine.model in self._chat.models else None

    async def _wait(self, request: web.Request, reading: Reading, session_id: str, message: str) -> ChatReply:
        response = await self._streams.end(request, reading)
        if response.status is Status.FAILED:
            raise failure_error(response.failure)
        return ChatReply(
            session_id=session_id,
            user_message=message,
            assistant_reply=response.text,
            incomplete=response.incomplete_reason,
        )
