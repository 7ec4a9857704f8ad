"""A model elsewhere whose every word the test chooses: what it says, in which pieces, and when.

Speaks OpenAI's Chat Completions to whoever has its address in a model of generator `openai`. Knows nothing of
Sluice but how such a model is configured.
"""

import asyncio
import json
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

PATIENCE_S = 20.0
"""How long it waits for what must happen. Never reached by a test that passes."""

JSON = dict[str, Any]
Script = Callable[["Turn"], Awaitable[None]]


def pieces(text: str) -> list[str]:
    """As tokens might cut it: a word each, with the space before it. Joined they are the text."""
    return re.findall(r"\s*\S+|\s+", text)


def prose(count: int) -> str:
    """So many pieces of text, each of its own, in paragraphs of a hundred."""
    return "".join(
        f"word{n}" if n == 1 else f"\n\nword{n}" if n % 100 == 1 else f" word{n}" for n in range(1, count + 1)
    )


class Turn:
    """One request, and its answer: whatever is said leaves at once."""

    def __init__(self, request: web.Request, body: JSON, script: Script | None) -> None:
        self.body = body
        self.script = script
        """Answers it in the test's stead."""
        self.over = asyncio.Event()
        """It was answered, or the server has left."""
        self.left = False
        self._request = request
        self._response: web.StreamResponse | None = None
        self._said = 0

    async def respond(self) -> web.StreamResponse:
        """Returns when it is over. Cancelled when the server leaves."""
        try:
            if self.script is not None:
                await self.script(self)
            await self.over.wait()
        except BaseException:
            self.left = True
            raise
        finally:
            self.over.set()
        assert self._response is not None
        return self._response

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def question(self) -> str:
        """What was said last."""
        return str(self.body["messages"][-1]["content"])

    async def open(self) -> None:
        """It begins, and says nothing yet."""
        if self._response is None:
            self._response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await self._response.prepare(self._request)

    async def say(self, *texts: str) -> None:
        """Each text is a piece of its own; those of one call leave together."""
        await self._deltas([{"content": text} for text in texts])

    async def think(self, *texts: str) -> None:
        await self._deltas([{"reasoning_content": text} for text in texts])

    async def stream(self, text: str, per_second: float, *, at_once: int = 0) -> None:
        """The pieces of a text, so many a second, by the clock; the first `at_once` of them as fast as the
        server takes them."""
        parts = pieces(text)
        for start in range(0, at_once, 1000):
            await self.say(*parts[start : min(start + 1000, at_once)])
        clock = asyncio.get_running_loop().time
        begun = clock()
        for number, part in enumerate(parts[at_once:], 1):
            await asyncio.sleep(max(0.0, begun + number / per_second - clock()))
            await self.say(part)

    async def finish(self, reason: str = "stop") -> None:
        """The end of the answer. `length`: it was cut short."""
        asked = sum(len(pieces(str(message.get("content")))) for message in self.body["messages"])
        usage = {"prompt_tokens": asked, "completion_tokens": self._said, "total_tokens": asked + self._said}
        await self._write([_chunk({}, reason), {"id": "c", "choices": [], "usage": usage}])
        assert self._response is not None
        await self._response.write(b"data: [DONE]\n\n")
        await self._response.write_eof()
        self.over.set()

    async def answer(self, *texts: str) -> None:
        """All of it."""
        await self.say(*texts)
        await self.finish()

    async def refuse(self, status: int, message: str = "no", **error: object) -> None:
        """Instead of an answer."""
        assert self._response is None, "it has begun"
        body = json.dumps({"error": {"message": message, **error}}).encode()
        self._response = web.Response(status=status, body=body, content_type="application/json")
        await self._response.prepare(self._request)
        await self._response.write_eof()
        self.over.set()

    async def fail(self, message: str = "it broke") -> None:
        """In the middle of what it says."""
        await self._write([{"error": {"message": message, "type": "server_error"}}])
        await self.cut()

    async def cut(self) -> None:
        """The connection breaks."""
        if self._request.transport is not None:
            self._request.transport.abort()
        await self.was_left()

    async def was_left(self) -> None:
        """Wait until the server wants no more: the answer was stopped."""
        async with asyncio.timeout(PATIENCE_S):
            await self.over.wait()
        assert self.left, "it was answered"

    async def _deltas(self, deltas: Sequence[JSON]) -> None:
        self._said += len(deltas)
        await self._write([_chunk(delta) for delta in deltas])

    async def _write(self, events: Sequence[JSON]) -> None:
        await self.open()
        assert self._response is not None
        await self._response.write(b"".join(b"data: %b\n\n" % json.dumps(it).encode() for it in events))


def _chunk(delta: JSON, reason: str | None = None) -> JSON:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}


class Upstream:
    """Answers each request by the next script, or else as the test goes on: what it says is said in the turn
    at hand, which is the oldest one that is not over; it waits for one to come."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        """All that came in this test."""
        self._scripts: deque[Script] = deque()
        self._taken: set[Turn] = set()
        self._news = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def model(self, name: str, **options: object) -> JSON:
        """A model for the configuration of a server. It fails at the first try, and is never left alone."""
        usual = {"base_url": self.url, "slots": 64, "retries": 0, "breaker": {"failures": 1_000_000}}
        return {"name": name, "generator": "openai", "options": {**usual, **options}}

    def will(self, *scripts: Script) -> None:
        """How the next requests are answered, one script for each."""
        self._scripts.extend(scripts)

    async def start(self) -> None:
        application = web.Application(client_max_size=1 << 24)
        application.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def forget(self) -> None:
        """Break off what is still said, and start afresh."""
        self._scripts.clear()
        for turn in self.turns:
            if not turn.over.is_set():
                await turn.cut()
        self.turns, self._taken = [], set()

    async def asked(self, model: str | None = None) -> Turn:
        """The oldest request that this has not told of yet, of one model or of any, as soon as it is here."""
        found = await self._turn(lambda turn: turn not in self._taken and model in (None, turn.model))
        self._taken.add(found)
        return found

    async def say(self, *texts: str) -> None:
        await (await self._at_hand()).say(*texts)

    async def think(self, *texts: str) -> None:
        await (await self._at_hand()).think(*texts)

    async def stream(self, text: str, per_second: float, *, at_once: int = 0) -> None:
        await (await self._at_hand()).stream(text, per_second, at_once=at_once)

    async def finish(self, reason: str = "stop") -> None:
        await (await self._at_hand()).finish(reason)

    async def answer(self, *texts: str) -> None:
        await (await self._at_hand()).answer(*texts)

    async def refuse(self, status: int, message: str = "no", **error: object) -> None:
        await (await self._at_hand()).refuse(status, message, **error)

    async def _at_hand(self) -> Turn:
        return await self._turn(lambda turn: turn.script is None and not turn.over.is_set())

    async def _turn(self, fits: Callable[[Turn], bool]) -> Turn:
        """The oldest one that fits."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while (found := next(filter(fits, self.turns), None)) is None:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"nobody asks; so far: {[turn.question for turn in self.turns]}") from None
        return found

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        script = self._scripts.popleft() if self._scripts else None
        turn = Turn(request, json.loads(await request.read()), script)
        self.turns.append(turn)
        self._news.set()
        return await turn.respond()
