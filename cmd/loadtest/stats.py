"""What the connections count and time, in bounded memory. Knows neither sockets nor how it is shown."""

import math
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

_SMALLEST_S = 1e-6
_GROWTH = math.log(1.01)
_BUCKETS = int(math.log(86_400 / _SMALLEST_S) / _GROWTH) + 2
MAX_CAUSES = 50
MAX_CAUSE_CHARS = 160
OTHER_CAUSES = "other causes"


class LogHistogram:
    """Durations in buckets that grow by 1 %, from 1 µs to a day: percentiles within 0.5 %, 20 KiB in all."""

    __slots__ = ("_buckets", "count", "max_s", "min_s")

    def __init__(self) -> None:
        self._buckets = array("Q", bytes(8 * _BUCKETS))
        self.count = 0
        self.min_s = math.inf
        self.max_s = 0.0

    def record(self, seconds: float) -> None:
        place = int(math.log(seconds / _SMALLEST_S) / _GROWTH) if seconds > _SMALLEST_S else 0
        self._buckets[min(place, _BUCKETS - 1)] += 1
        self.count += 1
        if seconds < self.min_s:
            self.min_s = seconds
        if seconds > self.max_s:
            self.max_s = seconds

    def percentile_s(self, percent: float) -> float:
        """The duration that `percent` of the samples do not exceed; 0 without samples."""
        if not self.count:
            return 0.0
        if percent >= 100:
            return self.max_s
        wanted = max(1, math.ceil(self.count * percent / 100))
        seen = 0
        for place, count in enumerate(self._buckets):
            seen += count
            if seen >= wanted:
                return min(max(_edge_s(place + 0.5), self.min_s), self.max_s)
        return self.max_s

    def bars(self, most: int) -> list[tuple[float, float, int]]:
        """At most `most` bars (from, to, count), of equal width on a logarithmic axis, without a hole."""
        filled = [place for place, count in enumerate(self._buckets) if count]
        if not filled:
            return []
        first, last = filled[0], filled[-1]
        width = -(-(last - first + 1) // most)
        return [
            (_edge_s(place), _edge_s(place + width), sum(self._buckets[place : place + width]))
            for place in range(first, last + 1, width)
        ]


def _edge_s(place: float) -> float:
    return _SMALLEST_S * math.exp(place * _GROWTH)


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of the test, in seconds since its start; `open_connections` is at its end."""

    start_s: float
    end_s: float
    frames_per_s: float
    open_connections: int


class Timeline:
    """Two running figures, sampled. At MAX_SAMPLES every second one goes, and half as many come from then on.

    The frames are a running total, so that dropping a sample loses detail but no frame.
    """

    MAX_SAMPLES = 1000

    def __init__(self) -> None:
        self._samples: list[tuple[float, int, int]] = []
        self._stride = 1
        self._offered = 0

    def sample(self, at_s: float, frames: int, open_connections: int, *, last: bool = False) -> None:
        self._offered += 1
        if not last and (self._offered - 1) % self._stride:
            return
        self._samples.append((at_s, frames, open_connections))
        if len(self._samples) >= self.MAX_SAMPLES and not last:
            del self._samples[1::2]
            self._stride *= 2

    def intervals(self) -> Iterator[Interval]:
        for (start_s, before, _), (end_s, after, open_now) in pairwise(self._samples):
            if end_s > start_s:
                yield Interval(start_s, end_s, (after - before) / (end_s - start_s), open_now)


@dataclass(slots=True)
class Tally:
    """Everything one load test counts. `between_chunks` is within one answer."""

    opened: int = 0
    open_now: int = 0
    most_open: int = 0
    sent: int = 0
    answered: int = 0
    failed: int = 0
    frames: int = 0
    started_at: float = 0.0
    first_sent_at: float | None = None
    last_frame_at: float = 0.0
    ended_at: float = 0.0
    own_delay_s: float = 0.0
    """How late the load tester itself ran at worst; latencies may contain that much of its own."""
    failures: Counter[str] = field(default_factory=Counter)
    opening: LogHistogram = field(default_factory=LogHistogram)
    first_chunk: LogHistogram = field(default_factory=LogHistogram)
    between_chunks: LogHistogram = field(default_factory=LogHistogram)
    timeline: Timeline = field(default_factory=Timeline)

    def connection_opened(self, took_s: float) -> None:
        self.opening.record(took_s)
        self.opened += 1
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)

    def message_sent(self) -> float:
        """Count a message; returns the moment."""
        now = time.perf_counter()
        if self.first_sent_at is None:
            self.first_sent_at = now
        self.sent += 1
        return now

    def failure(self, cause: str) -> None:
        """Count one failure. The causes are the server's words: printable, short, and not too many."""
        shown = "".join(char if char.isprintable() else " " for char in cause[:MAX_CAUSE_CHARS]).strip()
        known = shown in self.failures or len(self.failures) < MAX_CAUSES
        self.failures[shown if known else OTHER_CAUSES] += 1

    @property
    def frames_per_s(self) -> float:
        """Over the time from the first message to the last frame."""
        took_s = self.last_frame_at - (self.first_sent_at or 0.0)
        return self.frames / took_s if self.first_sent_at is not None and took_s > 0 else 0.0

    @property
    def peak_frames_per_s(self) -> float:
        # A shorter stretch, like the last one, says little.
        intervals = self.timeline.intervals()
        return max((i.frames_per_s for i in intervals if i.end_s - i.start_s >= 0.1), default=0.0)
