"""How likely a model found the tokens of its answer."""

from collections.abc import Iterable
from dataclasses import dataclass

LEAST_LOGPROB = -9999.0
"""Said instead of anything less: JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token that was said. `top`: the likeliest ones in its place with theirs, the likeliest first.

    Logarithms of probabilities are natural ones, from LEAST_LOGPROB to 0. What is no character by itself
    stands in a text as U+FFFD.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


def count_scores(scores: Iterable[TokenScore]) -> int:
    """How many likelihoods they are together."""
    return sum(1 + len(score.top) for score in scores)
