"""A real browser, and servers for it. One Chromium for all tests, a context of its own for each visitor.

Everything here runs in one event loop, which lives as long as the browser: Playwright cannot change it. Async
fixtures say so with `loop_scope`. The modules beside this file can be imported by their names.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, ViewportSize, async_playwright, expect
from pytest_asyncio import is_async_test

HERE = Path(__file__).parent

sys.path.insert(0, str(HERE))

from cable import Cable  # noqa: E402
from chromium import MISSING, find_chromium, launch  # noqa: E402
from scripted import Upstream  # noqa: E402
from visitor import DESK, PATIENCE_MS, Colours, Locale, Site, Visitor  # noqa: E402

if TYPE_CHECKING:
    from test.conftest import Child, RunServer, Server, StartProgram

JSON = dict[str, Any]
START_DEADLINE_S = 60.0

SCRIPTED = ("scripted", "other")
"""Models whose words are the upstream's, see there."""
ECHOES: list[JSON] = [
    {"name": "echo", "generator": "echo", "options": {"interval": "2ms"}},
    {"name": "thinker", "generator": "echo", "options": {"interval": "2ms", "thinking": 3}},
    {"name": "slow", "generator": "echo", "options": {"chunks": 60, "interval": "50ms"}},
]
SECTIONS: JSON = {
    # To find one would be another question to the upstream.
    "storage": {"titles": False},
    "limits": {"login_attempts": 1000},
    "shutdown": {"timeout": "5s"},
}

expect.set_options(timeout=PATIENCE_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(loop_scope="session")
async def clients_loop() -> AsyncIterator[None]:
    """Also the loop of the tests before: only what this one has left counts."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - before if not _is_for_all_tests(task)}
    left -= {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


def _is_for_all_tests(task: asyncio.Task[object]) -> bool:
    """One of the browser's, or a connection that a server keeps open to the upstream."""
    code = getattr(task.get_coro(), "cr_code", None)
    path = Path(code.co_filename) if code is not None else Path()
    return "playwright" in path.parts or path.parts[-2:] == ("aiohttp", "web_protocol.py")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    if (program := find_chromium()) is None:
        pytest.skip(MISSING)
    async with async_playwright() as playwright:
        browser = await launch(playwright, program)
        yield browser
        await browser.close()


class Visit(Protocol):
    async def __call__(
        self,
        site: Site,
        path: str | None = "/",
        *,
        locale: Locale = "en",
        colours: Colours = "light",
        viewport: ViewportSize = DESK,
    ) -> Visitor:
        """Somebody new comes, and opens `path` (None: an empty tab). They leave when the test ends, and must
        not have had anything to complain of."""


@pytest_asyncio.fixture(loop_scope="session")
async def visit(browser: Browser) -> AsyncIterator[Visit]:
    visitors: list[Visitor] = []

    async def visit(
        site: Site,
        path: str | None = "/",
        *,
        locale: Locale = "en",
        colours: Colours = "light",
        viewport: ViewportSize = DESK,
    ) -> Visitor:
        visitor = await Visitor.arrive(browser, site, locale=locale, colours=colours, viewport=viewport)
        visitors.append(visitor)
        if path is not None:
            await visitor.open(path)
        return visitor

    yield visit
    complaints = [complaint for visitor in visitors for complaint in await visitor.leave()]
    assert not complaints, "\n".join(["the browser complains:", *complaints])


# ── pages of a few lines ─────────────────────────────────────────────────────────────────────────


STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


class Pages:
    """A server of pages with a strict policy. Implements Site."""

    def __init__(self) -> None:
        self.script = ""
        self.body = ""
        self.port = 0

    def http(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def show(self, script: str = "", body: str = "<h1>Here</h1>") -> "Pages":
        self.script, self.body = script, body
        return self

    async def answer(self, request: web.Request) -> web.StreamResponse:
        match request.path:
            case "/":
                html = (
                    '<!doctype html><html lang="en"><title>A page</title><link rel="icon" href="data:,">'
                    f'<script type="module" src="/page.js"></script><main>{self.body}</main></html>'
                )
                headers = {"Content-Security-Policy": STRICT}
                return web.Response(text=html, content_type="text/html", headers=headers)
            case "/page.js":
                return web.Response(text=self.script, content_type="text/javascript")
            case "/socket":
                socket = web.WebSocketResponse()
                await socket.prepare(request)
                async for message in socket:
                    await socket.send_str(f"heard {message.data}")
                return socket
        raise web.HTTPNotFound


@pytest_asyncio.fixture(loop_scope="session")
async def pages() -> AsyncIterator[Pages]:
    pages = Pages()
    application = web.Application()
    application.router.add_get("/{path:.*}", pages.answer)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    pages.port = runner.addresses[0][1]
    yield pages
    await runner.cleanup()


# ── servers ──────────────────────────────────────────────────────────────────────────────────────


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def all_upstream() -> AsyncIterator[Upstream]:
    """Where scripted models are. Only `upstream` is for tests."""
    upstream = Upstream()
    await upstream.start()
    yield upstream
    await upstream.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def upstream(all_upstream: Upstream) -> AsyncIterator[Upstream]:
    """What the scripted models say."""
    yield all_upstream
    await all_upstream.forget()


@pytest.fixture(scope="session")
def models(all_upstream: Upstream) -> list[JSON]:
    """Two scripted ones, the first of which is the default, and echoes."""
    return [*(all_upstream.model(name) for name in SCRIPTED), *ECHOES]


@pytest.fixture(scope="session")
def server(run_server: "RunServer", models: list[JSON]) -> Iterator["Server"]:
    """One for all tests: to each visitor it is empty."""
    with run_server({**SECTIONS, "models": models}) as server:
        yield server


@pytest.fixture(scope="session")
def closed_server(run_server: "RunServer", models: list[JSON]) -> Iterator["Server"]:
    """For users only."""
    auth = {"required": True, "jwt_secret": "a-secret-of-the-tests-which-is-long-enough"}
    with run_server({**SECTIONS, "models": models, "auth": auth}) as server:
        yield server


@pytest.fixture(scope="session")
def real_server(run_server: "RunServer") -> Iterator["Server"]:
    """With the bundled model. Tests that want it are marked `real_model`."""
    options = {"slots": 2, "threads": 1, "temperature": 0, "max_output_tokens": 60}
    model = {"name": "smollm2", "generator": "llamacpp", "options": options}
    with run_server({**SECTIONS, "models": [model]}) as server:
        yield server


class Stack:
    """A server and a worker on a real Redis. What is killed may be started again, the server on its port.

    Implements Site.
    """

    def __init__(self, server: "Server", start: "StartProgram") -> None:
        self.server = server
        self._start = start
        self._log_file = server.config_file.with_name("worker.log")
        self._worker: Child | None = None

    def http(self, path: str = "") -> str:
        return self.server.http(path)

    async def kill_server(self) -> None:
        """As a crash does."""
        await asyncio.to_thread(self.server.kill)

    async def start_server(self) -> None:
        """Returns when it is ready."""
        await asyncio.to_thread(self.server.start_again)

    async def kill_worker(self) -> None:
        assert self._worker
        await asyncio.to_thread(self._kill, self._worker)

    async def start_worker(self) -> None:
        """Returns when it works."""
        await asyncio.to_thread(self.employ)

    def employ(self) -> None:
        words = ("-m", "cmd.worker", "-conf", str(self.server.config_file))
        with self._log_file.open("ab") as log:
            self._worker = self._start(words, stdout=log, stderr=log)
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._works():
            assert self._worker.poll() is None, f"the worker ended:\n{self._log_file.read_text()}"
            assert time.monotonic() < deadline, f"the worker does not work:\n{self._log_file.read_text()}"
            time.sleep(0.02)

    def _works(self) -> bool:
        with contextlib.suppress(OSError):
            models: JSON = self.server.get("/readyz").json["models"]
            return all(model["workers"] for model in models.values())
        return False

    def stop_worker(self) -> None:
        """As an operator does."""
        if self._worker is not None and self._worker.poll() is None:
            self._worker.terminate()
            assert self._worker.wait(START_DEADLINE_S) == 0, self._log_file.read_text()

    def abandon(self) -> None:
        if self._worker is not None:
            self._kill(self._worker)

    @staticmethod
    def _kill(worker: "Child") -> None:
        worker.kill()
        worker.wait()


@pytest.fixture
def stack(
    run_server: "RunServer",
    start_program: "StartProgram",
    models: list[JSON],
    redis_url: str,
    redis_prefix: str,
) -> Iterator[Stack]:
    """It runs when the test starts. A worker that dies is missed after a second."""
    queue = {"driver": "redis", "url": redis_url, "prefix": redis_prefix, "lease": "1s"}
    with run_server({**SECTIONS, "models": models, "queue": queue}) as server:
        stack = Stack(server, start_program)
        try:
            stack.employ()
            yield stack
            stack.stop_worker()
        finally:
            stack.abandon()


class RunOwn(Protocol):
    def __call__(self, **sections: object) -> "Server":
        """Run a server of the test's own, to be treated badly. `sections` are added to its configuration."""


@pytest.fixture
def run_own(run_server: "RunServer", models: list[JSON]) -> Iterator[RunOwn]:
    """Comes before `visit` among what a test wants: visitors leave before their server does."""
    with contextlib.ExitStack() as servers:

        def run(**sections: object) -> "Server":
            return servers.enter_context(run_server({**SECTIONS, "models": models, **sections}))

        yield run


@pytest.fixture
def own_server(run_own: RunOwn) -> "Server":
    """What runs there is lost with it: the queue is in its memory. Comes before `visit`, too."""
    return run_own()


@pytest_asyncio.fixture(loop_scope="session")
async def cable(server: "Server", clients_loop: None) -> AsyncIterator[Cable]:
    """Leads to `server`. Comes before `visit` among what a test wants: visitors leave before it ends."""
    cable = Cable(server.port)
    await cable.mend()
    yield cable
    await cable.end()
