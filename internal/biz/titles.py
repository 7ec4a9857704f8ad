"""Titles for conversations: a model writes one after the first exchange, in the background."""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from internal.biz.conversations import MAX_TITLE_CHARS
from internal.biz.errors import SluiceError
from internal.biz.events import Event, ResponseCompleted, ResponseIncomplete
from internal.biz.ids import new_id
from internal.biz.models import Message, Request, Role, Sampling, Settings, Truncation
from internal.biz.names import visible_line
from internal.biz.pause import pause
from internal.biz.ports import Queue
from internal.biz.subscription import Subscription

log = logging.getLogger(__name__)

USER = "titles"
"""Who asks: all titles together wait in the queue as one user does."""
AT_ONCE = 4
MAX_OUTPUT_TOKENS = 32
EXCERPT_CHARS = 600
"""Of a question and of an answer, for the model to read."""
DEADLINE_S = 120.0
"""What one title may take."""
LOOK_INTERVAL_S = 1.0
IDLE_INTERVAL_S = 60.0
EXPECTING_S = 600.0
"""How long after a conversation began here its first exchange is looked for often. Later ones, and those of
servers that have died, are found by the look that each idle interval ends with."""

_TASK = (
    "Write a title for the conversation below: at most six words, in the language of the conversation, "
    "without quotation marks. Answer with the title only."
)


@dataclass(frozen=True, slots=True)
class Untitled:
    """A conversation after its first exchange."""

    conversation_id: str
    model: str
    question: str
    answer: str


class TitleStore(Protocol):
    """Both calls raise Unavailable while the storage cannot be reached."""

    async def take_untitled(self, limit: int) -> Sequence[Untitled]:
        """Conversations that want a title and have had an exchange. Each is given out once."""

    async def suggest_title(self, conversation_id: str, title: str) -> None:
        """Name it, unless somebody has done so."""


class Titles:
    """One per server; each conversation is titled by one of them. What fails stays with its first words."""

    def __init__(self, store: TitleStore, queue: Queue, models: Sequence[str]) -> None:
        """`models` can find titles: the conversation's own, or else the first of them."""
        self._store = store
        self._models = models
        self._queue = queue
        self._news = asyncio.Event()
        self._expecting_until_s = 0.0

    def expect(self) -> None:
        """A conversation that wants a title has begun."""
        self._expecting_until_s = time.monotonic() + EXPECTING_S
        self._news.set()

    async def run(self) -> None:
        """Write titles until cancelled."""
        while True:
            if not await self.look():
                await self._pause()

    async def look(self) -> bool:
        """Title what wants it; whether there may be more."""
        try:
            found = await self._store.take_untitled(AT_ONCE)
        except SluiceError as error:
            log.debug("looking for conversations again: %s", error.message)
            return False
        except Exception:
            log.exception("cannot look for conversations without a title")
            return False
        await asyncio.gather(*(self._title(one) for one in found))
        return len(found) == AT_ONCE

    async def _pause(self) -> None:
        if time.monotonic() < self._expecting_until_s:
            await asyncio.sleep(LOOK_INTERVAL_S)
            return
        self._news.clear()
        await pause(self._news, IDLE_INTERVAL_S)

    async def _title(self, untitled: Untitled) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                title = cleaned(await self._ask(untitled))
            if title:
                await self._store.suggest_title(untitled.conversation_id, title)
        except (SluiceError, TimeoutError) as error:
            log.info("no title: %s", error, extra={"conversation": untitled.conversation_id})
        except Exception:  # nobody's answers may end with this
            log.exception("no title", extra={"conversation": untitled.conversation_id})

    async def _ask(self, untitled: Untitled) -> str:
        settings = Settings(
            max_output_tokens=MAX_OUTPUT_TOKENS,
            sampling=Sampling(temperature=0.0),
            truncation=Truncation.AUTO,
            store=False,
        )
        question, answer = untitled.question[:EXCERPT_CHARS], untitled.answer[:EXCERPT_CHARS]
        task = Message(Role.USER, f"{_TASK}\n\nUser: {question}\n\nAssistant: {answer}")
        model = untitled.model if untitled.model in self._models else self._models[0]
        request = Request(new_id("resp"), model, USER, time.time(), (task,), settings)
        await self._queue.publish(request)
        try:
            end = await self._last_event(request.response_id)
        except asyncio.CancelledError:
            with contextlib.suppress(SluiceError):
                await self._queue.cancel(request.response_id)
            raise
        return end.response.text if isinstance(end, ResponseCompleted | ResponseIncomplete) else ""

    async def _last_event(self, response_id: str) -> Event:
        subscription = Subscription()
        cursor = await self._queue.follow(response_id, -1, subscription)
        events: list[Event] = []
        async with contextlib.aclosing(subscription.read(cursor)) as reading:
            async for some in reading:
                events = some
        return events[-1]


_LABEL = re.compile(r"^\s*(?:#+\s*|\**\s*title\s*\**\s*:\s*\**)", re.IGNORECASE)
_QUOTES = "\"'`*_“”„‘’«»「」 \t"


def cleaned(text: str) -> str:
    """The title in what a model wrote: one line, without label, quotes and full stop, at most
    MAX_TITLE_CHARS characters. Empty when there is none."""
    line = next((line for line in map(visible_line, text.splitlines()) if line), "")
    line = " ".join(_LABEL.sub("", line).split()).strip(_QUOTES).rstrip(".。").strip(_QUOTES)
    if len(line) <= MAX_TITLE_CHARS:
        return line
    cut = line[: MAX_TITLE_CHARS + 1]
    return (cut[: cut.rfind(" ")] if " " in cut else cut[:MAX_TITLE_CHARS]).rstrip(" ,;:-–—")
