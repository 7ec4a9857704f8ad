"""POST /v1/chat/completions: a whole dialogue, and how a model goes on with it, at once or as it is made."""

import asyncio

from aiohttp import web

from internal.biz.chat import Chat
from internal.biz.events import Event, ResponseCreated, ResponseFailed, ResponseInProgress, ResponseQueued
from internal.biz.ids import new_id
from internal.biz.models import Status
from internal.biz.subscription import Reading
from internal.server.answers import described
from internal.server.asking import asking
from internal.server.rest import Access, AnyRoute, Call, Route, WithHeaders
from internal.server.sse import KEEP_ALIVE_S, send
from internal.server.streams import Streams
from internal.service.api.base import Query
from internal.service.api.chat import failure_error
from internal.service.codec.chat_completions import STREAM, ChatCompletion, CompletionStream
from internal.service.codec.chat_completions_request import ChatCompletionCreate
from internal.service.rate_limit import budget_headers


class CompletionRoutes:
    def __init__(self, chat: Chat, streams: Streams) -> None:
        self._chat = chat
        self._streams = streams

    @property
    def routes(self) -> list[AnyRoute]:
        return [
            Route(
                method="POST",
                path="/v1/chat/completions",
                summary="Go on with a dialogue",
                description="As the OpenAI API has it. The completion `chatcmpl-X` is the response `resp_X`, "
                "as `X-Response-Id` says too. It is stored with `store: true` only.",
                tag="openai",
                access=Access.CALLER,
                body=ChatCompletionCreate,
                answer=ChatCompletion,
                also={"text/event-stream": f"With `stream: true`. {STREAM}"},
                errors=(404,),
                handler=self.create,
            )
        ]

    async def create(self, call: Call[ChatCompletionCreate, Query]) -> WithHeaders | web.StreamResponse:
        request, body = call.request, call.body
        response_id = new_id("resp")
        async with asking(request, self._chat, self._streams, call.caller, body.ask(), response_id) as (
            reading,
            budget,
        ):
            headers = {"X-Response-Id": response_id, **budget_headers(budget)}
            if body.stream:
                early = await self._first_words(request, reading)
                encoder = CompletionStream(wants_usage=body.wants_usage)
                return await send(request, self._streams, reading, encoder, headers, early)
            response = await self._streams.end(request, reading)
            if response.status is Status.FAILED:
                raise failure_error(response.failure)
            return WithHeaders(await described(response, ChatCompletion.of), headers)
        return web.Response()  # which nobody gets

    async def _first_words(self, request: web.Request, reading: Reading) -> list[Event]:
        """All up to what a client gets to see, unless that takes longer than a stream may be silent.

        Until then a failure, of a prompt that is too long for example, is an answer with a status of its own.
        """
        clock = asyncio.get_running_loop().time
        began_at, events = clock(), list[Event]()
        while clock() - began_at < KEEP_ALIVE_S and (
            (news := await self._streams.news(request, reading)) is not None
        ):
            events += news
            match events[-1] if events else None:
                case ResponseFailed(response):
                    raise failure_error(response.failure)
                case None | ResponseQueued() | ResponseCreated() | ResponseInProgress():
                    continue
            break
        return events
