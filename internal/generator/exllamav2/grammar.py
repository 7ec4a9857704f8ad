"""A grammar on the tokens of one answer, in the form in which exllamav2 asks for it.

The mask of the next token is computed while the GPU is busy with it. Nothing here raises: a fault would end
the answers of all who are in the same step.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Protocol

from internal.generator.exllamav2.filters import Filter


class Matcher(Protocol):
    """llguidance's LLMatcher."""

    def consume_token(self, sampled_token: int) -> bool: ...
    def consume_tokens(self, sampled_tokens: Sequence[int]) -> bool: ...
    def compute_logit_bias(self) -> bytes: ...
    def rollback(self, num_tokens: int) -> bool: ...
    def is_error(self) -> bool: ...
    def is_stopped(self) -> bool: ...


Mask = Callable[[Any, bytes], Any]
"""Makes -inf of all logits whose byte is 0."""


class GrammarFilter(Filter):
    """It outlives a job of the library: the next one goes on with it."""

    def __init__(self, matcher: Matcher, mask: Mask, ends: Sequence[int] = ()) -> None:
        """`ends`: the tokens that end an answer. `matcher` knows only the first of them, and models end with
        any."""
        self._matcher = matcher
        self._apply = mask
        self._ends = tuple(ends)
        self._mask: Future[bytes] | None = None
        self._fed = 0

    def keep(self, tokens: int) -> None:
        """Only so many of the first ones stay that this was fed; the others will be chosen anew. Those may be
        more than anybody was told of: the library goes on in the same step where it guesses ahead."""
        self.background_drop()
        if tokens < self._fed:
            self._matcher.rollback(self._fed - tokens)
            self._fed = tokens

    # ── as exllamav2 calls it ────────────────────────────────────────────────────────────────────

    def feed(self, token: Any) -> None:
        self.background_drop()
        if not self._matcher.is_stopped():  # a token behind the end is none that it would take back
            chosen = int(token.item())
            self._matcher.consume_token(self._ends[0] if chosen in self._ends else chosen)
            self._fed += 1

    def background_prepare_logit_mask(self, pool: Executor) -> None:
        self._mask = pool.submit(self._matcher.compute_logit_bias)

    def background_drop(self) -> None:
        """Wait until nobody works on the matcher."""
        mask, self._mask = self._mask, None
        if mask is not None:
            mask.exception()

    def mask_logits(self, logits: Any) -> Any:
        mask, self._mask = self._mask, None
        try:
            allowed = mask.result() if mask is not None else self._matcher.compute_logit_bias()
        except Exception:  # the matcher says so itself from now on
            return logits
        return logits if self._matcher.is_error() else self._apply(logits, self._with_all_ends(allowed))

    def _with_all_ends(self, allowed: bytes) -> bytes:
        if len(self._ends) < 2 or not allowed[self._ends[0]]:
            return allowed
        changed = bytearray(allowed)
        for end in self._ends:
            if end < len(changed):
                changed[end] = allowed[self._ends[0]]
        return bytes(changed)
