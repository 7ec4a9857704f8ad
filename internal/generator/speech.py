"""From what a model writes to what is said of a job: reasoning, text, calls, up to the first stop string."""

from collections.abc import Iterable, Sequence

from internal.biz.errors import GenerationFailed
from internal.biz.events import Delta, ReasoningDelta, ScoredDelta, TextDelta
from internal.biz.generation import Job, Output
from internal.biz.models import ToolCall
from internal.biz.scores import TokenScore
from internal.generator.reasoning import ReasoningSplitter
from internal.generator.stops import StopFilter
from internal.generator.tools import CallSplitter


class Speech:
    """Feed it text; it yields what to say.

    Stop strings end what is said to the user, as in OpenAI's API: one in the reasoning or in the arguments of
    a call is none.

    Where the job wants them, the scores of tokens are said with the text that the tokens are of, however long
    that was held back. Those of reasoning, of calls, of tags and of stop strings are not said.
    """

    __slots__ = (
        "_calls",
        "_is_plain",
        "_one_call",
        "_replay",
        "_scores",
        "_splitter",
        "_stops",
        "_written",
        "ended",
    )

    def __init__(
        self,
        job: Job,
        splitter: ReasoningSplitter,
        *,
        is_answer_kept: bool,
        replay: "Replay | None",
        stop: tuple[str, ...] = (),
    ) -> None:
        """`is_answer_kept`: remember the text behind the reasoning, which `answer` is. `stop`: what ends this
        model's answers, beside what the request says."""
        settings = job.settings
        offered, stops = settings.tooling.offered, (*settings.stop, *stop)
        self._splitter = splitter
        self._calls = CallSplitter(offered) if offered else None
        self._one_call = not settings.tooling.parallel
        self._stops = StopFilter(stops) if stops else None
        self._replay = replay
        self._written: list[str] | None = [] if is_answer_kept else None
        self._is_plain = not (offered or stops or replay or is_answer_kept)
        self._scores: list[TokenScore] | None = None if settings.logprobs is None else []
        """Of tokens whose text is held back; None: nobody wants them."""
        self.ended = False
        """The answer is complete, though the model might go on."""

    @property
    def thinking(self) -> bool:
        return self._splitter.thinking

    @property
    def answer(self) -> str:
        return "".join(self._written or ())

    def feed(self, text: str, scores: Iterable[TokenScore] = ()) -> Sequence[Output]:
        """`scores` are those of the tokens that `text` is of."""
        if self._scores is None:  # nearly always
            deltas = self._splitter.feed(text)
            return deltas if self._is_plain else self._replayed(self._say(deltas))
        if self._splitter.thinking:  # what there is yet is of thoughts, and the tag behind them
            self._scores.clear()
        self._scores += scores
        return self._scored(self._replayed(self._say(self._splitter.feed(text))), self._scores)

    def finish(self) -> Sequence[Output]:
        """What was held back when the stream ended."""
        said = self._finish()
        return said if self._scores is None else self._scored(said, self._scores)

    def _finish(self) -> Sequence[Output]:
        said = self._say(self._splitter.finish())
        if self._calls is not None and not self.ended:
            for part in self._calls.finish():
                self._add(said, part)
        if self._stops is not None:
            _text(said, self._stops.finish())
        return self._replayed(said)

    def _say(self, deltas: Iterable[Delta]) -> list[Output]:
        said: list[Output] = []
        for delta in deltas:
            if self.ended:
                break
            if isinstance(delta, ReasoningDelta):
                said.append(delta)
                continue
            if self._written is not None:
                self._written.append(delta)
            for part in (delta,) if self._calls is None else self._calls.feed(delta):
                self._add(said, part)
        return said

    def _add(self, said: list[Output], part: TextDelta | ToolCall) -> None:
        if self.ended:
            return
        stops = self._stops
        if isinstance(part, ToolCall):
            # What could have become a stop string did not.
            _text(said, stops.finish() if stops is not None else "")
            said.append(part)
            self.ended = self._one_call
        elif stops is None:
            said.append(part)
        else:
            _text(said, stops.feed(part))
            self.ended = stops.stopped

    def _scored(self, said: Sequence[Output], scores: list[TokenScore]) -> Sequence[Output]:
        """The same, the first text with the scores that wait for one."""
        outputs: list[Output] = []
        for output in said:
            if isinstance(output, ToolCall):
                scores.clear()
            elif isinstance(output, TextDelta) and scores:
                output = ScoredDelta(output, tuple(scores))
                scores.clear()
            outputs.append(output)
        if not any(part is not None and part.holds for part in (self._splitter, self._calls, self._stops)):
            scores.clear()
        return outputs

    def _replayed(self, said: list[Output]) -> list[Output]:
        return said if self._replay is None else self._replay.skip(said)


def _text(said: list[Output], text: str) -> None:
    if text:
        said.append(TextDelta(text))


class Replay:
    """Leaves out what earlier attempts at a job have said, while a model says it again.

    For an answer that follows a grammar: llama.cpp cannot begin in the middle of one.
    """

    __slots__ = ("_reasoning", "_text")

    def __init__(self, job: Job) -> None:
        self._reasoning = job.reasoning
        self._text = job.emitted

    def skip(self, said: Iterable[Output]) -> list[Output]:
        """What is new in it. Raises GenerationFailed when it is not what was said before."""
        new: list[Output] = []
        for output in said:
            match output:
                case ReasoningDelta():
                    self._reasoning, rest = _skip(output, self._reasoning)
                    new += [ReasoningDelta(rest)] if rest else []
                case TextDelta():
                    if self._reasoning:
                        raise _other_words()
                    self._text, rest = _skip(output, self._text)
                    new += [TextDelta(rest)] if rest else []
                case _:
                    self.finish()
                    new.append(output)
        return new

    def finish(self) -> None:
        """All has been said again. Raises GenerationFailed."""
        if self._reasoning or self._text:
            raise _other_words()


def _skip(text: str, known: str) -> tuple[str, str]:
    """What is left of `known`, and of `text`."""
    size = min(len(text), len(known))
    if text[:size] != known[:size]:
        raise _other_words()
    return known[size:], text[size:]


def _other_words() -> GenerationFailed:
    return GenerationFailed(
        "the worker was lost in the middle of this answer, and the model now begins another one: ask again",
        code="answer_interrupted",
    )
