"""One request to one node: connect, send, read to the end, and how long each may take.

Source: https://docs.aiohttp.org/en/stable/client_quickstart.html#streaming-response-content
"""

import asyncio
import io
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson

from internal.biz.generation import Output
from internal.biz.version import VERSION
from internal.generator.openai.addresses import ForbiddenAddress
from internal.generator.openai.answer import Answer
from internal.generator.openai.faults import Fault, broken, forbidden, misaddressed, refused
from internal.generator.openai.nodes import Node, Visit
from internal.generator.openai.options import NodeOptions, OpenAIOptions
from internal.generator.openai.pace import Pace
from internal.generator.openai.sse import EventParser

MAX_REFUSAL_BYTES = 64 << 10
COUNT_WAIT_S = 5.0
"""How long the count of tokens may come behind the end of the answer."""
END_WAIT_S = 0.25
"""How long the end of the stream may come behind its last event. A connection that saw it serves again."""
LENIENCE = 1.1
"""How much longer a silence may last than it should."""
REFUSAL_WAIT_S = 5.0
"""How long the reason may come behind a status."""

Tell = Callable[[Sequence[Output]], bool]
"""Hands over what the model says. True: there is no room for more."""


@dataclass(slots=True)
class Transit:
    """How a request travels."""

    is_reused: bool = False
    """On a connection that has served before."""
    is_answered: bool = False


async def _reused(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.is_reused = True


class HttpClient:
    """The connections to the nodes of one upstream. Made and used on the event loop."""

    def __init__(self, options: OpenAIOptions, connector: aiohttp.BaseConnector | None = None) -> None:
        """`connector` makes the connections, and is closed with them; by itself it goes anywhere."""
        self._options = options
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_reused)
        self._session = aiohttp.ClientSession(
            trace_configs=[tracing],
            # No limit: nobody connects without a place at a node.
            connector=connector or aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, connect=options.connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            # What is asked for is not compressed; what is all the same could be a bomb.
            auto_decompress=False,
            headers={"User-Agent": f"Sluice/{VERSION}", "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        await self._session.close()

    def _headers(self, node: NodeOptions) -> dict[str, str]:
        key = {"Authorization": f"Bearer {node.api_key}"} if node.api_key else {}
        return {**key, **self._options.headers}

    def post(self, node: Node, body: bytes, transit: Transit) -> Any:
        """The response to a request for an answer, as an async context."""
        return self._session.post(
            f"{node.options.base_url}/chat/completions",
            data=io.BytesIO(body),
            headers={**self._headers(node.options), "Content-Type": "application/json"},
            # A key is for the address that it was configured for.
            allow_redirects=False,
            trace_request_ctx=transit,
        )

    async def is_alive(self, node: Node) -> bool:
        """Whether the node answers; that it has nothing at that path is an answer too."""
        url = f"{node.options.base_url}{self._options.check_path}"
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                headers = self._headers(node.options)
                async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                    return response.status < 500
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False


class Exchange:
    """One try. `first_token_by_s` and `end_by_s` are times of the event loop."""

    def __init__(
        self,
        client: HttpClient,
        options: OpenAIOptions,
        visit: Visit,
        answer: Answer,
        tell: Tell,
        room: Callable[[], Awaitable[None]],
        first_token_by_s: float,
        end_by_s: float,
    ) -> None:
        self._client = client
        self._options = options
        self._visit = visit
        self._answer = answer
        self._tell = tell
        self._room = room
        self._first_token_by_s = first_token_by_s
        self._end_by_s = end_by_s
        self._time = asyncio.get_running_loop().time
        self._timer = asyncio.timeout_at(min(first_token_by_s, end_by_s))

    async def run(self, body: dict[str, Any]) -> None:
        """Returns when the answer has ended well. Raises Fault; cancelling it closes the connection."""
        try:
            async with self._timer:
                # With images it may be megabytes.
                data, transit = await asyncio.to_thread(orjson.dumps, body), Transit()
                while not await self._ask(data, transit):
                    transit = Transit()
        except aiohttp.ConnectionTimeoutError as error:
            if self._options.is_discreet:
                raise self._unreachable(error) from None
            raise broken("the model's server cannot be reached in time", "upstream_timeout") from None
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            raise self._unreachable(error) from None
        except TimeoutError:
            if not self._answer.has_ended:
                raise self._late() from None
        except (aiohttp.ClientError, OSError) as error:
            if not self._answer.has_ended:
                message = "the model's server broke off its answer"
                raise broken(message, detail=f"{message}: {type(error).__name__}") from None

    def _unreachable(self, error: Exception) -> Fault:
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ForbiddenAddress):
            return forbidden()
        if isinstance(error, aiohttp.InvalidURL):
            return misaddressed()
        return broken("the model's server cannot be reached", "upstream_unavailable", str(error))

    async def _ask(self, data: bytes, transit: Transit) -> bool:
        """False: it has to be asked again, as the node had closed the connection while nobody used it. Each
        time that is another one, until none is left and a new one is made."""
        try:
            async with self._client.post(self._visit.node, data, transit) as response:
                transit.is_answered = True
                if response.status != 200:
                    said = await _read_refusal(response)
                    raise refused(response.status, response.headers, said, self._options.secrets)
                await self._read(response)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if transit.is_answered or not transit.is_reused:
                raise
            return False
        return True

    def _late(self) -> Fault:
        if self._time() >= self._end_by_s:
            message = f"the answer took longer than {self._options.timeout_s:g} s"
            return Fault(broken(message, "upstream_timeout").error)
        if not self._answer.has_begun:
            message = f"the model said nothing for {self._options.first_token_timeout_s:g} s"
        else:
            message = f"the model fell silent for {self._options.token_timeout_s:g} s"
        return broken(message, "upstream_timeout")

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        match response.content_type:
            case "text/event-stream":
                await self._read_stream(response.content)
            case "application/json":
                body = await _read_up_to(response, self._options.bounds.answer_bytes)
                await self._say(self._answer.read_whole(body))
            case _:
                raise broken("the model's server answers with something else: its address is probably wrong")

    async def _read_stream(self, content: aiohttp.StreamReader) -> None:
        bounds = self._options.bounds
        parser, pace = EventParser(bounds.event_bytes), Pace(bounds.bytes_per_s, self._time)
        while read := await content.readany():
            # Tokens that came together are handed over together.
            if events := parser.feed(read):
                await self._say(self._answer.feed(events))
            if (pause_s := pace.read(len(read))) > 0:
                await asyncio.sleep(pause_s)
        if not self._answer.is_done:
            await self._say(self._answer.feed(parser.end()))

    async def _say(self, outputs: Sequence[Output]) -> None:
        answer = self._answer
        if answer.has_begun:
            self._visit.spoke()
        if outputs and self._tell(outputs):
            # Until there is room nothing is read, and soon the upstream has to wait as well: that is not its
            # silence.
            self._timer.reschedule(self._end_by_s)
            await self._room()
        if answer.fault is not None:
            raise answer.fault
        self._rewind()

    def _rewind(self) -> None:
        """Begin to wait for the next event. To set the timer costs as much as to read a token: it is set a
        little longer, and less often."""
        now_s = self._time()
        wait_s = min(self._patience_s(now_s), self._end_by_s - now_s)
        until_s = self._timer.when() or 0.0
        if not wait_s <= until_s - now_s <= wait_s * LENIENCE:
            self._timer.reschedule(min(self._end_by_s, now_s + wait_s * LENIENCE))

    def _patience_s(self, now_s: float) -> float:
        """How long the next event may take."""
        if self._answer.is_done:
            return END_WAIT_S
        if self._answer.has_ended:
            return COUNT_WAIT_S
        if not self._answer.has_begun:
            return self._first_token_by_s - now_s
        return self._options.token_timeout_s


async def _read_refusal(response: aiohttp.ClientResponse) -> bytes:
    try:
        async with asyncio.timeout(REFUSAL_WAIT_S):
            return await _read_up_to(response, MAX_REFUSAL_BYTES)
    except (TimeoutError, aiohttp.ClientError):
        return b""


async def _read_up_to(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body; of a longer one its beginning."""
    body = bytearray()
    async for read in response.content.iter_any():
        body += read
        if len(body) > max_bytes:
            break
    return bytes(body[:max_bytes])
