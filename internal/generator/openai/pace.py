"""How fast a stream may be read. Knows sizes and time, not what is read."""

from collections.abc import Callable


class Pace:
    """A second's worth may come at once. Who sends faster for longer has to wait, and so nobody keeps the
    event loop busy with what they send."""

    def __init__(self, bytes_per_s: int, clock: Callable[[], float]) -> None:
        """0: any."""
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._left = float(bytes_per_s)
        self._counted_at_s = clock()

    def read(self, size: int) -> float:
        """So many bytes came. Returns for how many seconds nothing should be read."""
        if not self._bytes_per_s:
            return 0.0
        now_s = self._clock()
        earned = (now_s - self._counted_at_s) * self._bytes_per_s
        self._left = min(float(self._bytes_per_s), self._left + earned) - size
        self._counted_at_s = now_s
        return max(0.0, -self._left / self._bytes_per_s)
