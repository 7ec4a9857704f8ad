"""One answer on the engine: what is still to be said, and what the library's results say of it.

The library gets an answer in parts: it reserves cache for all that a job may say before the job begins, so
that a high limit would leave room for few. Where a part is used up, a job that begins there takes its place,
and finds everything in the cache.

Source: https://github.com/turboderp-org/exllamav2/blob/master/exllamav2/generator/dynamic.py (iterate)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from internal.biz.errors import EngineLost
from internal.biz.events import TextDelta
from internal.biz.generation import Chunk, Finished, FinishReason, Job, Output, Prefilled
from internal.biz.models import Usage
from internal.biz.scores import TokenScore
from internal.generator.brief import Brief
from internal.generator.exllamav2.bans import BannedStrings, Heard, NotFirst
from internal.generator.exllamav2.grammar import GrammarFilter
from internal.generator.exllamav2.options import PAGE_TOKENS, LoraOptions

SCORED_TOKENS = 32
"""How many a part has at most whose tokens are to be scored."""
_BROKEN = "\ufffd"
"""What the library writes for a character of which a part is missing yet."""


@dataclass(frozen=True, slots=True)
class Order:
    """How an answer is to be generated. `settings` are the library's own, and keep state: they are for this
    answer alone. It has at least `min_tokens`, and none of `banned_strings`. `score` says how likely tokens
    were, from their logits."""

    settings: Any
    stop_tokens: frozenset[int]
    adapters: tuple[LoraOptions, ...] = ()
    seed: int | None = None
    filter: GrammarFilter | None = None
    min_tokens: int = 0
    banned_strings: tuple[str, ...] = ()
    score: Callable[[Any, Sequence[int]], Sequence[TokenScore]] | None = None


class Owner(Protocol):
    """Who asked for an answer. Called on the engine's thread."""

    def put(self, step: list[Chunk]) -> None:
        """What is said in a step, of all its answers."""

    def ended(self, job: Job) -> None:
        """Nothing more is said of it, but for the step at hand."""

    def remember(self, prompt: Sequence[int], text: str, tokens: Sequence[int]) -> None:
        """What was said to a prompt, in text and in tokens."""

    def lose(self, error: EngineLost) -> None:
        """The engine has ended, and with it all answers, without a word."""


class Run:
    """An answer, owned by the engine's thread once it was handed over."""

    def __init__(self, job: Job, owner: Owner, brief: Brief, order: Order) -> None:
        assert brief.speech is not None
        self.job = job
        self.owner = owner
        self.brief = brief
        self.order = order
        self.tokens = [*brief.prompt, *brief.said]
        """The prompt, and all that was said since."""
        self.end: FinishReason | None = None
        """Set when there is nothing more to come."""
        self.is_paused = False
        """A part is over, and there is more to say."""
        self.has_spoken = False
        self.cached_tokens = 0
        """Of the prompt, when it was read first."""
        self.number = 0
        """The place in the order in which all came."""
        self.waiting_since_s = 0.0
        self.library_job: Any = None
        """The part at hand; the last one, while it waits for the next."""
        self._speech = brief.speech
        self._bans = BannedStrings(order.banned_strings) if order.banned_strings else None
        self._begun_at = len(self.tokens)
        self._is_last_part = False
        self._reasoning_tokens = brief.reasoning_tokens
        self._written: list[str] = []
        self._said: list[str] = []

    @property
    def new_tokens(self) -> int:
        """How many were said in this attempt."""
        return len(self.tokens) - self._begun_at

    @property
    def left(self) -> int:
        """How many may still be said."""
        return self.brief.max_tokens - self.new_tokens

    def next_part(self, *, is_paged: bool) -> int:
        """How many tokens the next part has: up to the end of a page of the cache, and at least one page; all
        that is left where there are no pages."""
        part = self.left if not is_paged else min(self.left, 2 * PAGE_TOKENS - len(self.tokens) % PAGE_TOKENS)
        if self.order.score is not None:
            # The library keeps the logits of what it holds back: a row of the vocabulary for each token.
            part = min(part, SCORED_TOKENS)
        self._is_last_part = part == self.left
        self.is_paused = False
        return part

    @property
    def filters(self) -> list[Any]:
        """What the library has to ask before it chooses a token of the next part."""
        blocked = self._bans.blocked if self._bans is not None else frozenset[int]()
        return [
            *([self.order.filter] if self.order.filter is not None else ()),
            *([NotFirst(blocked)] if blocked else ()),
        ]

    def usage(self) -> Usage:
        brief = self.brief
        return Usage(
            input_tokens=len(brief.prompt),
            cached_tokens=min(self.cached_tokens, len(brief.prompt)),
            output_tokens=brief.said_tokens + self.new_tokens,
            reasoning_tokens=self._reasoning_tokens,
        )

    def read(self, result: Mapping[str, Any]) -> Sequence[Output]:
        """What a result of the library says. Called once per token."""
        stage = result["stage"]
        if stage == "streaming":
            if result["eos"]:
                return self._read_end(result)
            if "token_ids" not in result:  # a character is not complete
                return ()
            tokens = result["token_ids"].tolist()[0]
            return self._hear(result.get("text", ""), tokens, self._scores(result, tokens))
        if stage == "prefill" and not self.has_spoken:
            return (Prefilled(result["curr_progress"], result["max_progress"]),)
        return ()

    def _read_end(self, result: Mapping[str, Any]) -> Sequence[Output]:
        """The last result of a part."""
        text, held = result.get("text", ""), result.get("held", {})
        tokens = result["token_ids"].tolist()[0] if "token_ids" in result else []
        scores = self._scores(result, tokens)
        if result["eos_reason"] != "max_new_tokens":
            self.end = FinishReason.STOP
        elif self._is_last_part:
            self.end = FinishReason.LENGTH
        else:
            self.is_paused = True
        if result["eos_reason"] == "stop_token":
            # What was held back as the possible beginning of something; the stop token is the last of it.
            text += held.get("text", "")
            last = held["token_ids"].tolist()[0][:-1] if "token_ids" in held else []
            tokens, scores = tokens + last, [*scores, *self._scores(held, last)]
        if self.is_paused and text.endswith(_BROKEN):
            # Nobody can put a character together over two jobs: these tokens are chosen anew.
            if self.order.filter is not None:
                self.order.filter.keep(self.new_tokens)
            return ()
        # A character that will not become complete is none.
        return self._hear(text.rstrip(_BROKEN), tokens, scores)

    def _scores(self, result: Mapping[str, Any], tokens: Sequence[int]) -> Sequence[TokenScore]:
        score = self.order.score
        return () if score is None or not tokens else score(result["logits"], tokens)

    def _hear(self, text: str, tokens: Sequence[int], scores: Sequence[TokenScore]) -> Sequence[Output]:
        self.has_spoken = True
        self.tokens += tokens
        if self._bans is None:
            return self._say(text, len(tokens), scores)
        said: list[Output] = []
        if tokens:
            for heard in self._bans.feed(Heard(text, tokens, scores)):
                said += self._say(heard.text, len(heard.tokens), heard.scores)
            if not self._speech.ended:
                self._take_back(self._bans.rewound)
        if self.end is not None:
            said += self._say_held()
        return said

    def _take_back(self, tokens: int) -> None:
        """The last ones are to be chosen anew."""
        if tokens:
            del self.tokens[-tokens:]
            if self.order.filter is not None:
                self.order.filter.keep(self.new_tokens)
            self.end, self.is_paused = None, True

    def _say_held(self) -> list[Output]:
        said: list[Output] = []
        for heard in self._bans.finish() if self._bans is not None else ():
            said += self._say(heard.text, len(heard.tokens), heard.scores)
        return said

    def _say(self, text: str, tokens: int, scores: Sequence[TokenScore]) -> Sequence[Output]:
        speech = self._speech
        if speech.thinking:
            self._reasoning_tokens += tokens
        self._written.append(text)
        said = speech.feed(text, scores)
        self._said += [output for output in said if isinstance(output, TextDelta)]
        if speech.ended:
            self.end = FinishReason.STOP
        return said

    def finish(self) -> list[Output]:
        """What was held back, and the end. Raises GenerationFailed."""
        assert self.end is not None
        is_complete = self.end is FinishReason.STOP and not self._speech.ended
        said = [*self._say_held(), *self._speech.finish()]
        self._said += [output for output in said if isinstance(output, TextDelta)]
        if is_complete:
            self.brief.check_answer(self.job.emitted)
            self._keep_reply()
        elif self.end is FinishReason.LENGTH:
            self.brief.check_beginning(self.job.emitted)
        return [*said, Finished(self.end, self.usage())]

    def _keep_reply(self) -> None:
        """A dialogue that goes on repeats the answer. Reasoning and calls it writes in another way."""
        written = "".join(self._written)
        if written and written == "".join(self._said) and not (self.job.reasoning or self.job.called):
            prompt = self.brief.prompt
            self.owner.remember(prompt, self.job.emitted + written, self.tokens[len(prompt) :])
