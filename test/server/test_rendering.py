"""Markdown is rendered elsewhere, in order and in time, whatever becomes of who does it."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from cmd.wire.markdown import ROOT, rendering
from internal.biz.errors import Unavailable
from internal.server.markdown.cache import ENTRY_BYTES, HtmlCache
from internal.server.markdown.line import MAX_WAITING, MAX_WAITING_CHARS, MAX_WAITING_OF_ONE, Job, Line
from internal.server.markdown.process import Program
from internal.server.markdown.rendering import Rendering
from internal.service.markdown import plain

if TYPE_CHECKING:
    from test.conftest import Eventually

PATIENCE_S = 15.0
STUB = """
import os, socket, time
from internal.service.frames import HEAD_BYTES, frame, length_of

with socket.socket(fileno=os.dup(0)) as line, line.makefile("rb") as texts:
    line.sendall(frame(""))
    while head := texts.read(HEAD_BYTES):
        text = texts.read(length_of(head)).decode()
        if text == "hang":
            time.sleep(60)
        if text.startswith("slow"):
            time.sleep(0.25)
        if text == "die":
            os._exit(3)
        if text == "babble":
            line.sendall(bytes([255] * 4))
        if text == "nonsense":
            line.sendall(bytes([0, 0, 0, 1, 255]))
        line.sendall(frame(f"<p>{text}</p>"))
"""
"""Says what it is told to, unless it is told to go wrong."""
EVIL = "```csharp\n" + "a\n" * 32_000 + "```"
"""For one expression of its lexer this is minutes of work."""


def stub(source: str = STUB) -> Program:
    return Program([sys.executable, "-c", source], {"PYTHONPATH": str(ROOT)}, ROOT)


def real() -> Program:
    return Program([sys.executable, "-m", "cmd.renderer"], {"PYTHONPATH": str(ROOT)}, ROOT)


@contextlib.asynccontextmanager
async def running(rendering: Rendering) -> AsyncIterator[Rendering]:
    """Nothing of it is left behind this."""
    work = asyncio.create_task(rendering.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield rendering
    finally:
        pid = rendering.pid
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert rendering.pid is None
        assert pid is None or not psutil.pid_exists(pid)
    assert work.cancelled()


def paragraphs(*texts: str) -> list[str]:
    return [f"<p>{text}</p>" for text in texts]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], Sequence[str]]]:
    """What was logged of processes that were lost."""
    caplog.set_level(logging.INFO, "internal.server.markdown")

    def read() -> Sequence[str]:
        return [str(it.__dict__["because"]) for it in caplog.records if it.name.startswith("internal.server")]

    yield read
    assert not any(word in caplog.text for word in ("hang", "csharp", "babble"))


# ── the process ──────────────────────────────────────────────────────────────────────────────────


async def test_texts_come_back_in_their_order() -> None:
    async with running(rendering()) as it:
        assert it.pid is None, "it is started when it is needed"
        assert await it.render(["*a*", "", "`b`"], "x") == [
            "<p><em>a</em></p>\n",
            "",
            "<p><code>b</code></p>\n",
        ]
        assert await it.render(["ä \N{GRINNING FACE}"], "x") == ["<p>ä \N{GRINNING FACE}</p>\n"]
        large = "word " * 20_000
        assert await it.render([large], "x") == [f"<p>{large.strip()}</p>\n"]


async def test_requests_are_served_side_by_side_and_each_gets_its_own() -> None:
    async with running(rendering()) as it:
        answers = await asyncio.gather(*(it.render([f"# {number}"], str(number)) for number in range(30)))
        assert answers == [[f"<h1>{number}</h1>\n"] for number in range(30)]


async def test_it_knows_nothing_of_the_server_and_goes_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_AUTH__JWT_SECRET", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    async with running(rendering()) as it:
        await it.render(["a"], "x")
        process = psutil.Process(it.pid)
        assert "secret" not in process.environ().values()
        assert set(process.environ()) <= {"PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE"}
        assert process.nice() >= 10
        assert os.getsid(process.pid) != os.getsid(0)


async def test_it_has_nothing_open_that_the_server_has() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.set_inheritable(True)  # as that of a process which was started by a supervisor
    address = listener.getsockname()
    with listener:
        it = rendering()
        async with running(it):
            await it.render(["a"], "x")
            listener.close()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*address)


async def test_the_loop_goes_on_while_a_text_takes_all_that_it_may() -> None:
    # On a busy machine half a second of processor time may take longer than the usual.
    async with running(Rendering(real(), render_s=PATIENCE_S)) as it:
        await it.render(["a"], "x")
        evil = asyncio.create_task(it.render([EVIL, "*b*"], "x"))
        ticks = 0
        while not evil.done():
            await asyncio.sleep(0.005)
            ticks += 1
        assert ticks > 20
        html, other = await evil
        assert other == "<p><em>b</em></p>\n"
        assert html.startswith('<div class="code">')
        assert "<span class" not in html.partition("<code")[2]
        assert html.count("a\n") == 32_000


async def test_a_text_that_takes_too_long_costs_its_process_the_life(
    told: Callable[[], Sequence[str]],
) -> None:
    # In less time than colours may take.
    async with running(Rendering(real(), render_s=0.4)) as it:
        await it.render(["a"], "x")
        first = it.pid
        assert await it.render(["*a*", EVIL, "*c*"], "x") == [
            "<p><em>a</em></p>\n",
            plain(EVIL),
            plain("*c*"),
        ]
        # Once more it costs nothing, and keeps nothing that came with it from being rendered.
        assert await it.render([EVIL, "*c*"], "x") == [plain(EVIL), "<p><em>c</em></p>\n"]
        assert await it.render(["*b*", EVIL, "*c*"], "x") == [
            "<p><em>b</em></p>\n",
            plain(EVIL),
            "<p><em>c</em></p>\n",
        ]
        assert first is not None
        assert not psutil.pid_exists(first)
        assert told() == ["a text takes too long"]


@pytest.mark.parametrize("fault", ["hang", "die", "babble", "nonsense"])
async def test_what_goes_wrong_is_shown_as_it_is_and_the_next_is_not(
    told: Callable[[], Sequence[str]], fault: str
) -> None:
    async with running(Rendering(stub(), render_s=0.5)) as it:
        answer = await it.render(["a", fault, "b"], "x")
        assert answer == [*paragraphs("a"), plain(fault), plain("b")]
        assert await it.render(["a", fault, "b"], "x") == [*paragraphs("a"), plain(fault), *paragraphs("b")]
        assert len(told()) == 1


async def test_many_texts_of_some_time_are_not_set_aside() -> None:
    # The last of these that is begun took a quarter of all the time.
    texts = [f"slow {number}" for number in range(10)]
    async with running(Rendering(stub(), render_s=1.0)) as it:
        answer = await it.render(texts, "x")
        begun = len([html for html in answer if html.startswith("<p>")])
        assert 1 <= begun < 10
        assert answer == [*paragraphs(*texts[:begun]), *map(plain, texts[begun:])]
        assert await it.render([texts[begun]], "x") == paragraphs(texts[begun])


async def test_a_process_that_was_killed_meanwhile_is_replaced(
    eventually: "Eventually", settle: Callable[[], Awaitable[None]]
) -> None:
    async with running(Rendering(stub())) as it:
        await it.render(["a"], "x")
        first = it.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)

        async def is_gone() -> bool:
            return psutil.Process(first).status() == psutil.STATUS_ZOMBIE

        await eventually(is_gone)
        await settle()  # it has closed its end, which the loop hears now
        assert await it.render(["b"], "x") == paragraphs("b")
        assert it.pid != first
        assert not psutil.pid_exists(first)


@pytest.mark.parametrize(
    "program",
    [
        stub("raise SystemExit(3)"),
        stub("import time; time.sleep(60)"),
        Program(["/nowhere/at/all"], {}, ROOT),
    ],
    ids=["ends", "hangs", "is missing"],
)
async def test_without_a_process_texts_are_plain_and_not_every_one_tries_again(
    told: Callable[[], Sequence[str]], program: Program
) -> None:
    async with running(Rendering(program, start_s=0.5)) as it:
        for text in ("*a*", "<b>", "c"):
            assert await it.render([text], "x") == [plain(text)]
        assert it.pid is None
        assert len(told()) == 1
        assert told()[0].startswith("it cannot be started")


async def test_it_is_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("internal.server.markdown.rendering.RETRY_S", 0.0)
    mended = tmp_path / "mended"
    source = f"import pathlib\nif not pathlib.Path({str(mended)!r}).exists(): raise SystemExit(3)\n{STUB}"
    async with running(Rendering(stub(source))) as it:
        assert await it.render(["a"], "x") == [plain("a")]
        mended.touch()
        assert await it.render(["a"], "x") == paragraphs("a")


async def test_a_bug_of_ours_costs_nobody_an_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(Rendering(stub())) as it:

        def broken(*_: object) -> None:
            raise RuntimeError("bug")

        with monkeypatch.context() as patch:
            patch.setattr(HtmlCache, "put", broken)
            assert await it.render(["a"], "x") == [plain("a")]
        assert "could not be rendered" in caplog.text
        assert await it.render(["a"], "x") == paragraphs("a")


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


async def hanging(it: Rendering, *callers: str) -> "list[asyncio.Task[Sequence[str]]]":
    """The first of these requests is being served, and takes all the time that there is."""
    tasks = []
    for caller in callers:
        tasks.append(asyncio.create_task(it.render(["hang"], caller)))
        while it.pid is None or it.waiting != len(tasks) - 1:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.002)
    return tasks


async def test_at_the_end_all_who_wait_are_told() -> None:
    async with running(Rendering(stub(), render_s=60)) as it:
        tasks = await hanging(it, "a", "a", "b")
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, Unavailable)
        assert outcome.code == "restarting"
    with pytest.raises(Unavailable):
        await it.render(["a"], "x")


async def test_the_end_may_come_while_a_process_starts() -> None:
    it = Rendering(stub("import time; time.sleep(60)"), start_s=60)
    async with running(it):
        task = asyncio.create_task(it.render(["a"], "x"))
        while it.pid is None:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.002)
    with pytest.raises(Unavailable):
        await task


# ── who waits ────────────────────────────────────────────────────────────────────────────────────


async def refused(attempt: Awaitable[object]) -> None:
    with pytest.raises(Unavailable) as refusal:
        await attempt
    assert refusal.value.code == "markdown_busy"


async def test_a_flood_is_refused_and_harms_nobody_else() -> None:
    async with running(Rendering(stub(), render_s=60)) as it:
        tasks = await hanging(it, *["a"] * (MAX_WAITING_OF_ONE + 1))
        await refused(it.render(["b"], "a"))
        tasks.append(asyncio.create_task(it.render(["b"], "b")))
        await asyncio.sleep(0)
        assert it.waiting == MAX_WAITING_OF_ONE + 1
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {getattr(it, "code", it) for it in outcomes} == {"restarting"}


async def test_known_texts_come_at_once_whoever_waits() -> None:
    async with running(Rendering(stub(), render_s=60)) as it:
        await it.render(["a", "b"], "x")
        tasks = await hanging(it, *["x"] * (MAX_WAITING_OF_ONE + 1))
        assert await it.render(["b", "a", "b"], "x") == paragraphs("b", "a", "b")
        assert not tasks[0].done()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_leaves_gives_their_place_away() -> None:
    async with running(Rendering(stub(), render_s=60)) as it:
        tasks = await hanging(it, *["a"] * (MAX_WAITING_OF_ONE + 1))
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks[1:], return_exceptions=True)
        assert it.waiting == 0
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_leaves_while_they_are_served_holds_up_nobody() -> None:
    async with running(Rendering(stub(), render_s=0.3)) as it:
        (task,) = await hanging(it, "a")
        task.cancel()
        assert await it.render(["b"], "b") == paragraphs("b")


async def test_callers_take_turns() -> None:
    line = Line()
    for caller, text in [("a", "1"), ("a", "2"), ("a", "3"), ("b", "4"), ("c", "5"), ("b", "6")]:
        line.push(Job(caller, [text]))
    assert [(await line.pop()).texts[0] for _ in range(6)] == ["1", "4", "5", "2", "6", "3"]
    assert len(line) == 0


async def test_a_line_has_bounds() -> None:
    line = Line()
    for number in range(MAX_WAITING):
        line.push(Job(str(number), ["a"]))
    with pytest.raises(Unavailable):
        line.push(Job("b", ["b"]))
    await line.pop()
    line.push(Job("b", ["b"]))
    line = Line()
    line.push(Job("a", ["a" * (MAX_WAITING_CHARS + 1)]))
    with pytest.raises(Unavailable):
        line.push(Job("b", ["b"]))


async def test_a_line_waits_for_who_comes() -> None:
    line = Line()
    waiting = asyncio.create_task(line.pop())
    await asyncio.sleep(0)
    job = Job("a", ["a"])
    line.push(job)
    assert await waiting is job


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────


def test_a_cache_keeps_what_was_asked_for_last() -> None:
    size = sys.getsizeof("x" * 1000) + ENTRY_BYTES
    cache = HtmlCache(size * 10)
    for number in range(10):
        cache.put(str(number), "x" * 1000)
    assert cache.get("0")
    cache.put("10", "y" * 1000)
    assert [number for number in range(11) if cache.get(str(number)) is None] == [1]


def test_a_cache_has_a_bound_in_bytes() -> None:
    cache = HtmlCache(100_000)
    cache.put("large", "x" * 30_000)
    assert cache.get("large") is None
    for number in range(500):
        cache.put(str(number), "\N{GRINNING FACE}" * 1000)
    assert len(cache) == 100_000 // (sys.getsizeof("\N{GRINNING FACE}" * 1000) + ENTRY_BYTES)
    cache.put("499", "x")
    cache.put("499", "y" * 30_000)
    assert cache.get("499") is None


def test_a_cache_may_keep_something_for_a_while() -> None:
    now = 100.0
    cache = HtmlCache(now=lambda: now)
    cache.put("a", "x", 10.0)
    cache.put("b", "y")
    now = 109.0
    assert (cache.get("a"), cache.get("b")) == ("x", "y")
    now = 110.0
    assert (cache.get("a"), cache.get("b")) == (None, "y")
    assert len(cache) == 1


def test_a_cache_takes_any_text() -> None:
    cache = HtmlCache()
    cache.put("\ud800", "a")
    cache.put("\udc00", "b")
    assert (cache.get("\ud800"), cache.get("\udc00")) == ("a", "b")
