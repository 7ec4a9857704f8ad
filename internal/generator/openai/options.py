"""What is known of an upstream."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MIN_SECRET_CHARS = 8
"""A header of fewer characters is none: no sentence would be left without it."""


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """One server. Requests go to `{base_url}/chat/completions`, at most `slots` at a time. `alias` is what
    the log calls it, where that must not tell its address."""

    base_url: str
    api_key: str = field(repr=False)
    slots: int
    alias: str = ""

    @property
    def label(self) -> str:
        return self.alias or self.base_url


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of what an upstream says is read: of an answer that does not come as a stream and of an event
    so many bytes, and of a stream so many a second (0: as it comes)."""

    answer_bytes: int = 8 << 20
    event_bytes: int = 4 << 20
    bytes_per_s: int = 0


@dataclass(frozen=True, slots=True)
class OpenAIOptions:
    """`model` is its name there. `context` is in tokens, 0: unknown.

    A request may be silent for `first_token_timeout_s` before its first token and for `token_timeout_s`
    between two, and takes `timeout_s` at most. Before its first token it is sent again up to `retries` times.
    A node that failed `breaker_failures` requests in a row gets none for `breaker_reset_s`. Several nodes are
    asked for `check_path` every `check_interval_s` (0: never).

    `extra_body` are fields of every request, those that are None are left out; `rename` says which fields go
    by another name there, `continuation` how an answer is continued that another attempt has begun.
    `refusals`, in lower case, begin answers that count as failed.

    `is_discreet`: nobody is told where the upstream is, not even the log, nor why it cannot be reached.
    """

    model: str
    nodes: tuple[NodeOptions, ...]
    context: int = 0
    images: bool = False
    tools: bool = True
    connect_timeout_s: float = 10.0
    first_token_timeout_s: float = 300.0
    token_timeout_s: float = 120.0
    timeout_s: float = 900.0
    retries: int = 2
    breaker_failures: int = 5
    breaker_reset_s: float = 30.0
    check_interval_s: float = 10.0
    check_path: str = "/models"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    continuation: str = "none"
    refusals: tuple[str, ...] = ()
    bounds: Bounds = Bounds()
    is_discreet: bool = False

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be told to anybody, wherever the upstream says it."""
        keys = {node.api_key for node in self.nodes if node.api_key}
        if self.is_discreet:
            keys |= {node.base_url for node in self.nodes}
        headers = {value for value in self.headers.values() if len(value) >= MIN_SECRET_CHARS}
        return tuple(sorted(keys | headers, key=len, reverse=True))
