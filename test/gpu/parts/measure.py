"""From what was heard to figures in words."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from chats import Heard, Round


def percentile(values: Iterable[float], percent: float) -> float:
    """0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def ms(values: Sequence[float]) -> str:
    """The median and the 99th percentile of seconds, in milliseconds."""
    return f"{percentile(values, 50) * 1000:.1f} / {percentile(values, 99) * 1000:.1f}"


def firsts(rounds: Sequence[Round]) -> list[float]:
    return [answer.at_s[0] for it in rounds for answer in it.answers if answer.at_s]


def gaps(rounds: Sequence[Round]) -> list[float]:
    return [after - before for it in rounds for a in it.answers for before, after in pairwise(a.at_s)]


def rate(rounds: Sequence[Round]) -> float:
    """Tokens a second, over all rounds."""
    return sum(it.tokens for it in rounds) / sum(it.seconds for it in rounds)


def same(ours: Sequence[Heard], theirs: Sequence[Heard]) -> int:
    return sum(a.text == b.text for a, b in zip(ours, theirs, strict=True))


class Lag:
    """Of an event loop, from two looks at its histogram."""

    def __init__(self, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        """Cumulative counts by `le="…"`."""
        bounds = {float(label.split('"')[1]): label for label in after}
        self._bounds_s = sorted(bounds)
        self._counts = [after[bounds[it]] - before.get(bounds[it], 0.0) for it in self._bounds_s]

    def within_ms(self, percent: float) -> str:
        """A bound that so many of the timers kept."""
        total = self._counts[-1] if self._counts else 0.0
        if not total:
            return "–"
        place = bisect_left(self._counts, total * percent / 100)
        bound_s = self._bounds_s[min(place, len(self._bounds_s) - 1)]
        return f"≤ {bound_s * 1000:g}" if bound_s != float("inf") else f"> {self._bounds_s[-2] * 1000:g}"

    def __str__(self) -> str:
        return f"{self.within_ms(50)} / {self.within_ms(99)} / {self.within_ms(100)}"
