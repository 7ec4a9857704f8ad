"""Strings that an answer must not have: what becomes one is taken back, and chosen anew.

Not with the library's own `banned_strings`: it takes tokens back in pages of the cache that other answers
share, and goes on counting them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from internal.biz.errors import GenerationFailed
from internal.biz.scores import TokenScore
from internal.generator.exllamav2.filters import Filter
from internal.generator.stops import overlap

LEAST_LOGIT = -1e30
"""With which the library itself keeps tokens away."""
MAX_REWINDS = 256
"""Of an answer. Whoever bans everything gets no answer, and not one that never ends."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What the library said at once."""

    text: str
    tokens: Sequence[int]
    scores: Sequence[TokenScore] = ()


class BannedStrings:
    """Feed it what the library says; it yields what may be said.

    Holds back what may be the beginning of a banned string. `rewound` says how many tokens are to be taken
    back when it was one, and `blocked` what must not come first then.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """`strings` are not empty; upper and lower case make no difference."""
        self._strings = tuple(string.lower() for string in strings)
        self._held: list[Heard] = []
        self._tail = ""
        """The end of what was said: what was no beginning of a banned string may be one again, when what
        stood behind it was taken back."""
        self._tail_chars = max(map(len, self._strings)) - 1
        self._said = 0
        """How many tokens were said for good."""
        self._rewinds = 0
        self._tried: dict[int, set[int]] = {}
        """By the number of tokens before: what was tried there, and led to a banned string."""
        self.rewound = 0

    @property
    def blocked(self) -> frozenset[int]:
        """Tokens that must not come next."""
        return frozenset(self._tried.get(self._said + self._held_tokens, ()))

    @property
    def _held_tokens(self) -> int:
        return sum(len(heard.tokens) for heard in self._held)

    def feed(self, heard: Heard) -> list[Heard]:
        """Raises GenerationFailed when nothing is left that could be said."""
        self._held.append(heard)
        self.rewound = 0
        text = self._tail + self._text
        found = [at for string in self._strings if (at := text.find(string)) >= 0]
        if found:
            self._rewind(max(0, min(found) - len(self._tail)))
            text = self._tail + self._text
        held = max(overlap(text, string) for string in self._strings)
        return self._take(len(text) - len(self._tail) - held)

    def finish(self) -> list[Heard]:
        """What was held back when the answer ended."""
        return self._take(len(self._text))

    @property
    def _text(self) -> str:
        return "".join(heard.text for heard in self._held).lower()

    def _take(self, end: int) -> list[Heard]:
        """What is whole before the place `end` in what is held."""
        free, self._held = self._cut(end)
        self._said += sum(len(heard.tokens) for heard in free)
        said = self._tail + "".join(heard.text for heard in free).lower()
        self._tail = said[max(0, len(said) - self._tail_chars) :]
        return free

    def _cut(self, end: int) -> tuple[list[Heard], list[Heard]]:
        """What is held, before the piece with the place `end` in it and from there on."""
        ends = itertools.accumulate(len(heard.text.lower()) for heard in self._held)
        count = sum(at <= end for at in ends)
        return self._held[:count], self._held[count:]

    def _rewind(self, begin: int) -> None:
        self._rewinds += 1
        if self._rewinds > MAX_REWINDS:
            raise GenerationFailed("banned_strings leave this model nothing to say", code="nothing_to_say")
        self._held, dropped = self._cut(begin)
        self.rewound = sum(len(heard.tokens) for heard in dropped)
        place = self._said + self._held_tokens
        self._tried = {it: tokens for it, tokens in self._tried.items() if it <= place}
        self._tried.setdefault(place, set()).add(dropped[0].tokens[0])


class NotFirst(Filter):
    """Some tokens must not be the first ones of a job, unless nothing else is left."""

    def __init__(self, tokens: frozenset[int]) -> None:
        self.tokens = tokens
        self._is_first = True

    def feed(self, token: Any) -> None:
        self._is_first = False

    def mask_logits(self, logits: Any) -> Any:
        if not self._is_first:
            return logits
        masked, tokens = logits.clone(), sorted(self.tokens)
        # Not -inf: where a grammar has left no others, the library would look for the likeliest of none, and
        # write to wherever that is.
        masked[tokens] = masked[tokens].clamp(max=LEAST_LOGIT)
        return masked
