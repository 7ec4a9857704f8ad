"""/v1/responses: the Responses API over HTTP. Its WebSocket is the application's."""

import asyncio
import contextlib
import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from internal.biz.chat import Ask, Chat
from internal.biz.errors import ContextLengthExceeded, InvalidRequest
from internal.biz.ids import new_id
from internal.biz.log import ResponseLog
from internal.biz.models import Caller, Response
from internal.biz.responses import Responses
from internal.biz.subscription import Subscription
from internal.server import deadline
from internal.server.answers import NOT_STORED, described, json_answer
from internal.server.asking import asking
from internal.server.rest import Access, AnyRoute, Call, Route
from internal.server.sse import send
from internal.server.streams import Streams
from internal.service.api.base import Body, Query
from internal.service.api.responses import (
    STREAM,
    DeletedResponse,
    ItemList,
    ItemsQuery,
    NewResponse,
    ResponseObject,
    ResponseQuery,
)
from internal.service.codec.responses_items import behind, item_list
from internal.service.codec.responses_objects import response_object
from internal.service.codec.responses_stream import ResponseStream
from internal.service.rate_limit import budget_headers


class ResponseRoutes:
    def __init__(self, chat: Chat, responses: Responses, streams: Streams) -> None:
        self._chat = chat
        self._responses = responses
        self._streams = streams

    @property
    def routes(self) -> list[AnyRoute]:
        return [
            Route(
                method="POST",
                path="/v1/responses",
                summary="Ask a model",
                tag="openai",
                access=Access.CALLER,
                body=NewResponse,
                answer=ResponseObject,
                also={"text/event-stream": f"With `stream: true`. {STREAM}"},
                errors=(404, 409),
                handler=self.create,
            ),
            Route(
                method="GET",
                path="/v1/responses/{id}",
                summary="A response as it stands",
                description="Also while it is being generated, and for a while if it is not stored.",
                tag="openai",
                access=Access.CALLER,
                query=ResponseQuery,
                answer=ResponseObject,
                also={
                    "text/event-stream": f"With `stream=true`. {STREAM} `Last-Event-ID` says the same as "
                    "`starting_after`. Of one that ended long ago only the last event is left."
                },
                handler=self.show,
            ),
            Route(
                method="DELETE",
                path="/v1/responses/{id}",
                summary="Delete a response with what was asked and answered, and stop it if it runs",
                description="A conversation that it is part of goes on without it.",
                tag="openai",
                access=Access.CALLER,
                answer=DeletedResponse,
                errors=(409,),
                handler=self.delete,
            ),
            Route(
                method="POST",
                path="/v1/responses/{id}/cancel",
                summary="Stop a response",
                tag="openai",
                access=Access.CALLER,
                answer=ResponseObject,
                handler=self.cancel,
            ),
            Route(
                method="GET",
                path="/v1/responses/{id}/input_items",
                summary="What a stored response was asked",
                tag="openai",
                access=Access.CALLER,
                query=ItemsQuery,
                answer=ItemList,
                handler=self.input_items,
            ),
        ]

    async def create(self, call: Call[NewResponse, Query]) -> web.StreamResponse:
        ask, response_id = call.body.ask(), new_id("resp")
        if call.body.stream:
            return await self._begin_stream(call.request, call.caller, ask, response_id)
        if ask.settings.background:
            return await self._begin(call.caller, ask, response_id)
        return await self._wait(call.request, call.caller, ask, response_id)

    async def _begin(self, caller: Caller, ask: Ask, response_id: str) -> web.Response:
        with self._streams.running(caller.address):
            headers = budget_headers(await self._chat.submit(caller, ask, response_id))
            cursor = await self._chat.follow(caller, response_id, -1, Subscription())
            cursor.close()
            return await _object(cursor.log.asked, headers)

    async def _wait(self, request: web.Request, caller: Caller, ask: Ask, response_id: str) -> web.Response:
        # Who leaves has not heard the id yet, and cannot come back: it is stopped at once.
        async with asking(request, self._chat, self._streams, caller, ask, response_id) as (reading, budget):
            response = await self._streams.end(request, reading)
            failure = response.failure
            if failure is not None and failure.code == ContextLengthExceeded.default_code:
                # The request is to blame, not the model.
                raise ContextLengthExceeded(failure.message, param="input")
            return await _object(response, budget_headers(budget))
        return web.Response()  # which nobody gets

    async def _begin_stream(
        self, request: web.Request, caller: Caller, ask: Ask, response_id: str
    ) -> web.StreamResponse:
        with self._streams.running(caller.address):
            try:
                headers = budget_headers(await self._chat.submit(caller, ask, response_id))
            except asyncio.CancelledError:
                if not ask.settings.background:
                    self._streams.abandon(response_id)
                raise
            deadline.lift(request)
            return await self._stream(request, caller, response_id, -1, headers)

    async def _stream(
        self, request: web.Request, caller: Caller, response_id: str, after: int, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """The events behind number `after`. Who leaves may come back to them for a while."""
        subscription = Subscription()
        cursor = await self._responses.follow(caller, response_id, after, subscription)
        if cursor.done:
            # Nothing more will come: with this status a browser stops asking.
            cursor.close()
            return web.Response(status=204, headers={**NOT_STORED, **headers})
        deadline.lift(request)
        log, encoder = cursor.log, ResponseStream(cursor, after)
        try:
            async with contextlib.aclosing(subscription.read(cursor)) as reading:
                return await send(request, self._streams, reading, encoder, headers)
        except ConnectionError:
            self._leave(log)
            return web.Response()  # which nobody gets
        except asyncio.CancelledError:
            self._leave(log)
            raise

    def _leave(self, log: ResponseLog) -> None:
        if not (log.ended or log.asked.settings.background):
            self._streams.abandon(log.response_id, resumable=True)

    async def show(self, call: Call[Body, ResponseQuery]) -> web.StreamResponse:
        request, caller, query = call.request, call.caller, call.query
        if query.stream == "true":
            with self._streams.running(caller.address):
                return await self._stream(request, caller, call.id, _last_seen(request, query), {})
        if query.starting_after is not None:
            raise InvalidRequest("starting_after is for stream=true", param="starting_after")
        return await _object(await self._responses.get(caller, call.id))

    async def delete(self, call: Call[Body, Query]) -> DeletedResponse:
        await self._responses.delete(call.caller, call.id)
        return DeletedResponse(id=call.id)

    async def cancel(self, call: Call[Body, Query]) -> web.Response:
        return await _object(await self._responses.cancel(call.caller, call.id))

    async def input_items(self, call: Call[Body, ItemsQuery]) -> web.Response:
        query, after = call.query, behind(call.query.after)
        items = list(await self._responses.input(call.caller, call.id))
        if query.order == "desc":
            items.reverse()
        if after is not None:
            ahead = [item for item in items if item.place != after]
            items = [it for it in ahead if (it.place < after) == (query.order == "desc")]
        return _json(item_list(items[: query.limit], has_more=len(items) > query.limit))


def _last_seen(request: web.Request, query: ResponseQuery) -> int:
    """The number of the last event that the client has; -1: none. A browser that connects again says it in a
    header, beside the address that it began with."""
    told = query.starting_after if query.starting_after is not None else -1
    header = request.headers.get("Last-Event-ID", "")
    if not header:
        return told
    if not re.fullmatch(r"[0-9]{1,9}", header):
        raise InvalidRequest("Last-Event-ID: write a whole number", param="Last-Event-ID")
    return max(told, int(header))


async def _object(response: Response, headers: Mapping[str, str] = NOT_STORED) -> web.Response:
    return _json(await described(response, response_object), headers)


def _json(body: dict[str, Any], headers: Mapping[str, str] = NOT_STORED) -> web.Response:
    answer = json_answer(body)
    answer.headers.update({**NOT_STORED, **headers})
    return answer
