"""Renders Markdown for whoever asks, one request after another, in a process that is started for the first.

A text that takes too long costs that process its life, and is shown as it is; so is all else that cannot be
rendered. Knows no HTTP.
"""

import asyncio
import logging
from collections.abc import Sequence

from internal.biz.errors import Unavailable
from internal.server.markdown.cache import HtmlCache
from internal.server.markdown.line import Job, Line
from internal.server.markdown.process import Lost, Program, RenderingProcess, start
from internal.service.markdown import MAX_HTML_CHARS, plain

log = logging.getLogger(__name__)

START_S = 4.0
"""How long a process may take until it is ready."""
RENDER_S = 2.0
"""How long one may take for all texts of a request."""
SET_ASIDE_S = 60.0
"""A text that took most of that, or the process with it, is plain for so long: who asks again gets what came
with it. Not for ever: the machine may have been busy."""
RETRY_S = 10.0
"""After one that did not become ready nobody tries again for so long."""


class Rendering:
    """One for each server process. Somebody has to `run` it."""

    def __init__(self, program: Program, *, render_s: float = RENDER_S, start_s: float = START_S) -> None:
        self._program = program
        self._render_s = render_s
        self._start_s = start_s
        self._cache = HtmlCache()
        self._line = Line()
        self._process: RenderingProcess | None = None
        self._try_again_at = 0.0
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process else None

    @property
    def waiting(self) -> int:
        """How many requests wait, but for the one that is served."""
        return len(self._line)

    async def render(self, texts: Sequence[str], caller: str) -> Sequence[str]:
        """The HTML of each; plain where it cannot be made in time. Raises Unavailable when too many wait.

        Who is cancelled leaves the line.
        """
        known = [self._cache.get(text) for text in texts]
        found = [html for html in known if html is not None]
        if len(found) == len(texts):
            return _bounded(texts, found)
        if self._is_closed:
            raise _restarting()
        job = Job(caller, texts)
        self._line.push(job)
        try:
            return await job.done
        finally:
            self._line.remove(job)

    async def run(self) -> None:
        """Serve those who wait, until cancelled. Then nothing of it is left."""
        job: Job | None = None
        try:
            while True:
                job = await self._line.pop()
                answer = await self._carry_out(job)
                if not job.done.done():
                    job.done.set_result(answer)
                await self._ready()  # whoever comes next need not wait for it
        finally:
            self._is_closed = True
            if job is not None and not job.done.done():
                job.done.set_exception(_restarting())
            self._line.refuse_all(_restarting())
            await self._end()

    async def _carry_out(self, job: Job) -> Sequence[str]:
        """What cannot be rendered is plain."""
        made: list[str] = []
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            if (process := await self._ready()) is not None:
                async with asyncio.timeout(self._render_s):
                    for text in job.texts:
                        began = clock()
                        # One by one: what there is already stays when time is over.
                        made.append(await self._html(process, text))
        except TimeoutError:
            if clock() - began > self._render_s / 2:
                self._set_aside(job.texts[len(made)])
            await self._lose("a text takes too long")
        except Lost as error:
            self._set_aside(job.texts[len(made)])
            await self._lose(str(error))
        except Exception:  # nobody's answers may end with this
            log.exception("Markdown could not be rendered")
            await self._end()
        known = (self._cache.get(text) for text in job.texts[len(made) :])
        return _bounded(job.texts, [*made, *known])

    async def _html(self, process: RenderingProcess, text: str) -> str:
        """Raises Lost."""
        if (html := self._cache.get(text)) is None:
            html = await process.ask(text)
            self._cache.put(text, html)
        return html

    def _set_aside(self, text: str) -> None:
        self._cache.put(text, plain(text), SET_ASIDE_S)

    async def _ready(self) -> RenderingProcess | None:
        """A process that can be asked, if there can be one."""
        now = asyncio.get_running_loop().time()
        if self._process is not None and self._process.has_ended:
            await self._lose("it has ended")
        if self._process is None and now >= self._try_again_at:
            try:
                async with asyncio.timeout(self._start_s):
                    self._process = await start(self._program)
                    await self._process.answer()
            except (Lost, TimeoutError) as error:
                self._try_again_at = now + RETRY_S
                await self._lose(f"it cannot be started: {str(error) or 'it takes too long'}")
        return self._process

    async def _lose(self, because: str) -> None:
        status = await self._end()
        told = {"because": because, "status": status}
        log.warning("the process that renders Markdown is lost, and texts are shown as they are", extra=told)

    async def _end(self) -> int | None:
        status = await self._process.end() if self._process else None
        self._process = None
        return status


def _bounded(texts: Sequence[str], made: Sequence[str | None]) -> Sequence[str]:
    """What is missing is plain. Together they are an answer that can be sent."""
    answer: list[str] = []
    chars = 0
    for text, html in zip(texts, made, strict=True):
        if html is None or chars + len(html) > MAX_HTML_CHARS:
            html = plain(text)
        answer.append(html)
        chars += len(html)
    return answer


def _restarting() -> Unavailable:
    return Unavailable("the server is restarting; ask again in a moment", code="restarting")
