"""The circuit breaker of one node. Knows time and outcomes, not HTTP.

    closed ──(failures in a row)──► open ──(reset)──► half-open: one request probes
      ▲                              ▲                    │
      └──────── its first token ─────┼────────────────────┤
                                     └──── it fails ──────┘

The first token of a probe closes it; the count of failures begins anew only when a request has ended well, so
that a node which always breaks in the middle is found out, too.
"""

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


class Breaker:
    """One per node. A request says when it `enter`s, which tells it whether it is the probe, and how it
    fared; a probe that ends without having spoken or failed has to say that it `left`."""

    def __init__(self, name: str, failures: int, reset_s: float, clock: Callable[[], float]) -> None:
        self._name = name
        self._limit = failures
        self._reset_s = reset_s
        self._clock = clock
        self._failures = 0
        self._open_until_s: float | None = None
        """None: closed."""
        self._is_probing = False

    @property
    def is_closed(self) -> bool:
        return self._open_until_s is None

    @property
    def admits(self) -> bool:
        """Whether a request may go to the node now."""
        return self._open_until_s is None or (not self._is_probing and self.wait_s == 0)

    @property
    def wait_s(self) -> float:
        """How long nobody may even probe."""
        return 0.0 if self._open_until_s is None else max(0.0, self._open_until_s - self._clock())

    def enter(self) -> bool:
        """A request goes to the node, which `admits` it."""
        self._is_probing = not self.is_closed
        return self._is_probing

    def answered(self) -> None:
        """The probe got its first token."""
        if not self.is_closed:
            self._open_until_s = None
            self._is_probing = False
            self._failures = 0
            log.info("the upstream node answers again", extra={"node": self._name})

    def succeeded(self) -> None:
        """A request ended well."""
        if self.is_closed:
            self._failures = 0

    def failed(self, *, is_probe: bool) -> None:
        """A request failed by the node's fault."""
        self._failures += 1
        # Those that began before it opened say nothing new.
        if is_probe or (self.is_closed and self._failures >= self._limit):
            self._open_until_s = self._clock() + self._reset_s
            self._is_probing = False
            fields = {"node": self._name, "failures": self._failures, "seconds": self._reset_s}
            log.warning("the upstream node fails, and is left alone for a while", extra=fields)

    def left(self, *, is_probe: bool) -> None:
        """The request is over, and the node has not shown what it can."""
        if is_probe:
            self._is_probing = False
