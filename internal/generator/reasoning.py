"""Splits a model's stream into reasoning and answer: `<think>…</think>`, wherever chunks are cut. And
joins them again, for a model that shall go on where an earlier attempt ended."""

import re
from collections.abc import Sequence
from typing import Literal

from internal.biz.events import Delta, ReasoningDelta, TextDelta
from internal.biz.generation import Job
from internal.generator import tools
from internal.generator.prompt import Piece
from internal.generator.stops import overlap

_OPEN, _CLOSE = "<think>", "</think>"


class ReasoningSplitter:
    """Feed it text; it yields deltas, the same text however it was cut.

    Holds back what may be the beginning of a tag (at most 7 characters, and white space before it).
    Reasoning counts only at the beginning of an answer: a `<think>` in the middle is text. Newlines
    behind a tag are dropped.
    """

    __slots__ = ("_held", "_state", "_trim")

    def __init__(
        self, state: Literal["start", "thinking", "answering"] = "start", *, begun: bool = False
    ) -> None:
        """`state`: where the stream begins; "thinking" when the opening tag was said before it, "answering"
        when the closing one was. `begun`: something was said behind that tag, so that newlines count."""
        self._state = state
        self._held = ""
        self._trim = state != "start" and not begun

    @property
    def thinking(self) -> bool:
        return self._state == "thinking"

    @property
    def starting(self) -> bool:
        return self._state == "start"

    @property
    def holds(self) -> bool:
        """Whether something is held back."""
        return bool(self._held)

    def feed(self, text: str) -> list[Delta]:
        text = self._held + text
        self._held = ""
        if self._state == "start":
            return self._start(text)
        if self._state == "thinking":
            return self._think(text)
        return self._answer(text)

    def _start(self, text: str) -> list[Delta]:
        start = text.lstrip()
        if start.startswith(_OPEN):
            self._state, self._trim = "thinking", True
            return self._think(start[len(_OPEN) :])
        if _OPEN.startswith(start):
            self._held = text
            return []
        self._state = "answering"
        return self._answer(text)

    def _think(self, text: str) -> list[Delta]:
        text = self._trimmed(text)
        thought, tag, answer = text.partition(_CLOSE)
        if tag:
            self._state, self._trim = "answering", True
            return [*_reasoning(thought), *self._answer(answer)]
        keep = overlap(text, _CLOSE)
        self._held = text[len(text) - keep :]
        return _reasoning(text[: len(text) - keep])

    def _answer(self, text: str) -> list[Delta]:
        text = self._trimmed(text)
        return [TextDelta(text)] if text else []

    def _trimmed(self, text: str) -> str:
        if self._trim:
            text = text.lstrip("\n")
            self._trim = not text
        return text

    def finish(self) -> list[Delta]:
        """What was held back when the stream ended."""
        held, self._held = self._held, ""
        return _reasoning(held) if self._state == "thinking" else self._answer(held)


def _reasoning(text: str) -> list[Delta]:
    return [ReasoningDelta(text)] if text else []


def begin(prompt: Sequence[Piece]) -> ReasoningSplitter:
    """For what a model says first. A template may open the reasoning itself, in which case the model never
    says the tag."""
    return ReasoningSplitter("thinking" if _is_opened(prompt) else "start")


def _is_opened(prompt: Sequence[Piece]) -> bool:
    return bool(prompt) and prompt[-1].special and prompt[-1].text.rstrip().endswith(_OPEN)


def resume(prompt: Sequence[Piece], job: Job, called: str = "") -> tuple[list[Piece], ReasoningSplitter]:
    """What earlier attempts at `job` have said, to stand behind its prompt as if the model had just written
    it, and the splitter for what the model says next. `called`: what they have called, as the model writes
    it."""
    if not job.reasoning and not job.emitted and not called:
        return [], begin(prompt)
    end, opened = prompt[-1].text if prompt else "", _is_opened(prompt)
    said = []
    if job.reasoning or opened:
        if not opened:
            said.append(Piece(f"{_OPEN}\n", special=True))
        elif not end.endswith("\n"):
            said.append(Piece("\n", special=True))
        said.append(Piece(job.reasoning or "\n", special=False))
        if not job.answering:
            return said, ReasoningSplitter("thinking", begun=True)
        said.append(Piece(f"{_CLOSE}\n\n", special=True))
    if job.emitted:
        said.append(Piece(job.emitted, special=False))
    if called:
        text = f"\n{called}" if job.emitted else called
        parts = re.split(f"({tools.OPEN}|{tools.CLOSE})", text)
        said += [Piece(part, part in (tools.OPEN, tools.CLOSE)) for part in parts if part]
    return said, ReasoningSplitter("answering", begun=bool(job.emitted or called))
