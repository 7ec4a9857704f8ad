"""What is counted of an engine: plain numbers, written once per step and read when somebody scrapes."""

from bisect import bisect_left
from collections.abc import Sequence

_BOUNDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class EngineStats:
    """Of one loaded model. `prompt_tokens` were to be read, of which `cached_tokens` had been before; pages
    are those of the cache."""

    __slots__ = (
        "cached_tokens",
        "generated_tokens",
        "pages",
        "pages_used",
        "prompt_tokens",
        "running",
        "step_bounds",
        "step_counts",
        "step_seconds",
        "waiting",
    )

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.pages = 0
        self.pages_used = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated_tokens = 0
        self.step_seconds = 0.0
        self.step_bounds: Sequence[float] = _BOUNDS
        self.step_counts = [0] * (len(_BOUNDS) + 1)

    def observe_step(self, seconds: float) -> None:
        self.step_counts[bisect_left(_BOUNDS, seconds)] += 1
        self.step_seconds += seconds
