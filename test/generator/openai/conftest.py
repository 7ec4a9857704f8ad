"""An upstream of the tests' own, which behaves as each of them wants."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import orjson
import pytest
from aiohttp import web

from internal.generator.openai.engine import OpenAIGenerator
from internal.generator.openai.options import NodeOptions, OpenAIOptions

if TYPE_CHECKING:
    from test.conftest import Sink

KEY = "sk-do-not-tell-4711"
Script = Callable[["Call"], Awaitable[web.StreamResponse]]


DONE = b"data: [DONE]\n\n"


class Call:
    """A request that the upstream has got."""

    def __init__(self, request: web.Request, body: Any) -> None:
        self.request = request
        self.body = body
        self.left = asyncio.Event()
        """The client has closed the connection before the answer was complete."""

    async def stream(
        self, content_type: str = "text/event-stream; charset=utf-8", **headers: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": content_type, **headers})
        await response.prepare(self.request)
        return response

    def cut(self) -> None:
        assert self.request.transport is not None
        self.request.transport.abort()


class Upstream:
    """A server that answers each request by the next script, and from then on by the last one."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.checks = 0
        self.is_well = True
        self._scripts: list[Script] = []
        self._came = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def bodies(self) -> list[Any]:
        return [call.body for call in self.calls]

    def move(self, port: int) -> None:
        """It is expected there from now on."""
        self._port = port

    def will(self, *scripts: Script) -> None:
        self._scripts = list(scripts)

    async def start(self) -> None:
        application = web.Application(client_max_size=1 << 24)
        application.router.add_post("/v1/chat/completions", self._complete)
        application.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def called(self, times: int = 1) -> Call:
        """The request of this number, as soon as it is here."""
        async with asyncio.timeout(5):
            while len(self.calls) < times:
                self._came.clear()
                await self._came.wait()
        return self.calls[times - 1]

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        call = Call(request, orjson.loads(await request.read()))
        self.calls.append(call)
        self._came.set()
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        try:
            return await script(call)
        except (asyncio.CancelledError, ConnectionError):
            call.left.set()
            raise

    async def _models(self, request: web.Request) -> web.Response:
        self.checks += 1
        self._came.set()
        if not self.is_well:
            raise web.HTTPServiceUnavailable
        return web.json_response({"object": "list", "data": []})

    async def checked(self, times: int) -> None:
        """Return when it was asked whether it is well, so many times more."""
        times += self.checks
        async with asyncio.timeout(5):
            while self.checks < times:
                self._came.clear()
                await self._came.wait()

    # ── what it says ─────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def event(value: Any) -> bytes:
        return b"data: " + orjson.dumps(value) + b"\n\n"

    @classmethod
    def chunk(cls, delta: dict[str, Any] | None = None, reason: str | None = None, **fields: Any) -> bytes:
        """One event of an answer."""
        choices = [{"index": 0, "delta": delta or {}, "finish_reason": reason}]
        return cls.event({"id": "c", "object": "chat.completion.chunk", "choices": choices, **fields})

    @classmethod
    def texts(cls, *texts: str) -> list[bytes]:
        return [cls.chunk({"role": "assistant", "content": text}) for text in texts]

    @classmethod
    def usage(cls, prompt: int, answer: int, **details: Any) -> bytes:
        counts = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        return cls.event({"id": "c", "choices": [], "usage": {**counts, **details}})

    @classmethod
    def say(cls, *texts: str, reason: str = "stop") -> Script:
        """A whole answer."""
        return cls.write(*cls.texts("", *texts), cls.chunk(reason=reason), DONE)

    @staticmethod
    def write(
        *pieces: bytes, content_type: str = "text/event-stream", then: Literal["end", "cut", "hang"] = "end"
    ) -> Script:
        """These bytes; then the end, or the connection breaks, or nothing comes until the client leaves."""

        async def script(call: Call) -> web.StreamResponse:
            response = await call.stream(content_type)
            for piece in pieces:
                await response.write(piece)
            if then == "cut":
                call.cut()
            if then == "hang":
                await asyncio.Event().wait()
            return response

        return script

    @staticmethod
    async def hang(call: Call) -> web.StreamResponse:
        """Not even a status."""
        await asyncio.Event().wait()
        raise AssertionError

    @staticmethod
    def refuse(status: int, message: str = "no", /, headers: Any = None, **error: Any) -> Script:
        async def script(call: Call) -> web.StreamResponse:
            body = orjson.dumps({"error": {"message": message, **error}})
            return web.Response(status=status, body=body, content_type="application/json", headers=headers)

        return script


# ── who asks it ──────────────────────────────────────────────────────────────────────────────────


class Engines:
    """Engines whose pauses between tries are short, and what they count."""

    def __init__(self, sink: "Sink", first: Upstream) -> None:
        self._sink = sink
        self._engines: list[OpenAIGenerator] = []
        self._upstreams = [first]
        self.now_s = 1000.0
        """What breakers take for the time."""
        self.up: dict[str, bool] = {}
        self.retries = 0

    def upstream_up(self, model: str, node: str, *, is_up: bool) -> None:
        assert model == "ours"
        self.up[node] = is_up

    def upstream_retried(self, model: str) -> None:
        self.retries += 1

    async def upstream(self) -> Upstream:
        """Another one."""
        upstream = Upstream()
        self._upstreams.append(upstream)
        await upstream.start()
        return upstream

    async def start(
        self, *upstreams: Upstream, sink: Any = None, slots: int = 4, **options: Any
    ) -> OpenAIGenerator:
        nodes = tuple(NodeOptions(one.url, KEY, slots) for one in upstreams or self._upstreams)
        given = replace(OpenAIOptions("m", nodes, check_interval_s=0.0), **options)
        engine = OpenAIGenerator("ours", given, self, lambda: self.now_s, lambda: 0.0)
        self._engines.append(engine)
        await engine.start(sink or self._sink, lambda _: None)
        return engine

    async def stop(self) -> None:
        for engine in self._engines:
            await engine.stop()
        for upstream in self._upstreams:
            await upstream.stop()


@pytest.fixture
async def upstream(watched_loop: None) -> AsyncIterator[Upstream]:
    upstream = Upstream()
    await upstream.start()
    yield upstream
    await upstream.stop()


@pytest.fixture
async def engines(
    upstream: Upstream, sink: "Sink", monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Engines]:
    monkeypatch.setattr("internal.generator.openai.run.FIRST_PAUSE_S", 0.01)
    engines = Engines(sink, upstream)
    yield engines
    await engines.stop()
