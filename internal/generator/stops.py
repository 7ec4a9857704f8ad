"""Ends an answer before the first stop string, wherever chunks are cut."""

from collections.abc import Sequence


class StopFilter:
    """Feed it text; it yields what may be said.

    Holds back what may be the beginning of a stop string: less than the longest one has characters. So what
    was said never ends in the beginning of one, and an attempt that goes on behind it needs no memory of it.
    """

    __slots__ = ("_held", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are not empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        """A stop string came: nothing is said any more."""

    @property
    def holds(self) -> bool:
        """Whether something is held back."""
        return bool(self._held)

    def feed(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        # The one that is complete first, so that cuts make no difference.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back when the text ended."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`, but not all of it."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
