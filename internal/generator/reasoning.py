"""Splits a model's stream into reasoning and answer: `<think>…</think>`, wherever chunks are cut."""

from internal.biz.events import ReasoningDelta, TextDelta

_OPEN, _CLOSE = "<think>", "</think>"


class ReasoningSplitter:
    """Feed it text; it yields deltas. Holds back what may be the beginning of a tag (at most 7 characters).

    Reasoning counts only at the beginning of an answer: a `<think>` in the middle is text.
    """

    __slots__ = ("_held", "_reasoning", "_settled")

    def __init__(self) -> None:
        self._held = ""
        self._reasoning = False
        self._settled = False

    def feed(self, text: str) -> list[TextDelta | ReasoningDelta]:
        if self._settled:
            return [TextDelta(text)] if text else []
        held = self._held + text
        self._held = ""
        if not self._reasoning:
            return self._find_open(held)
        return self._find_close(held)

    def _find_open(self, text: str) -> list[TextDelta | ReasoningDelta]:
        start = text.lstrip()
        if start.startswith(_OPEN):
            self._reasoning = True
            return self._find_close(start[len(_OPEN) :].lstrip("\n"))
        if _OPEN.startswith(start):
            self._held = text
            return []
        self._settled = True
        return [TextDelta(text)]

    def _find_close(self, text: str) -> list[TextDelta | ReasoningDelta]:
        thought, tag, answer = text.partition(_CLOSE)
        if tag:
            self._settled = True
            answer = answer.lstrip("\n")
            deltas: list[TextDelta | ReasoningDelta] = []
            if thought:
                deltas.append(ReasoningDelta(thought))
            if answer:
                deltas.append(TextDelta(answer))
            return deltas
        keep = next((n for n in range(len(_CLOSE) - 1, 0, -1) if text.endswith(_CLOSE[:n])), 0)
        self._held = text[len(text) - keep :]
        thought = text[: len(text) - keep]
        return [ReasoningDelta(thought)] if thought else []

    def finish(self) -> list[TextDelta | ReasoningDelta]:
        """What was held back when the stream ended."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [ReasoningDelta(held) if self._reasoning and not self._settled else TextDelta(held)]
