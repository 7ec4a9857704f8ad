"""The entries of a response log.

One entry is one event of the OpenAI Responses API, and its place in the log is the event's
`sequence_number`; neither the number nor the response's id is stored in the entry. Dialects are
projections of these values.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from internal.biz.models import ItemKind, OutputItem, Response, ToolCall
from internal.biz.scores import TokenScore, count_scores


# A delta is made for every token, and kept: as a str it costs half the time and half the memory of any
# other object, and the garbage collector never looks at it.
class TextDelta(str):
    """`response.output_text.delta`: a piece of the output item that was added last."""

    __slots__ = ()


class ScoredDelta(TextDelta):
    """The same, with how likely its `tokens` were: for who asked for that. What was held back is said with
    the tokens that it is of, so that their texts are about its own."""

    __slots__ = ("tokens",)

    tokens: tuple[TokenScore, ...]

    def __new__(cls, text: str, tokens: tuple[TokenScore, ...]) -> Self:
        made = super().__new__(cls, text)
        made.tokens = tokens
        return made


class ReasoningDelta(str):
    """`response.reasoning_text.delta`: a piece of the output item that was added last."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ResponseQueued:
    """`response.queued`; `position` is the number of requests that go first, `workers` that of the live
    workers of its model."""

    response: Response
    position: int = 0
    workers: int = 1


@dataclass(frozen=True, slots=True)
class ResponseCreated:
    response: Response


@dataclass(frozen=True, slots=True)
class ResponseInProgress:
    response: Response


@dataclass(frozen=True, slots=True)
class ItemAdded:
    """`call`: the one that a FUNCTION_CALL is."""

    kind: ItemKind
    output_index: int
    call: ToolCall | None = None


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """`response.function_call_arguments.delta`: all arguments of a call. A call is told in one go, so that no
    attempt ever goes on in the middle of one."""

    call: ToolCall
    output_index: int


@dataclass(frozen=True, slots=True)
class ArgumentsDone:
    """`response.function_call_arguments.done`"""

    call: ToolCall
    output_index: int


@dataclass(frozen=True, slots=True)
class PartAdded:
    kind: ItemKind
    output_index: int


@dataclass(frozen=True, slots=True)
class TextDone:
    kind: ItemKind
    text: str
    output_index: int
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class PartDone:
    kind: ItemKind
    text: str
    output_index: int
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class ItemDone:
    item: OutputItem
    output_index: int


@dataclass(frozen=True, slots=True)
class ResponseCompleted:
    response: Response


@dataclass(frozen=True, slots=True)
class ResponseIncomplete:
    response: Response


@dataclass(frozen=True, slots=True)
class ResponseFailed:
    response: Response


Delta = TextDelta | ReasoningDelta
Terminal = ResponseCompleted | ResponseIncomplete | ResponseFailed
Event = (
    Delta
    | ResponseQueued
    | ResponseCreated
    | ResponseInProgress
    | ItemAdded
    | PartAdded
    | TextDone
    | PartDone
    | ArgumentsDelta
    | ArgumentsDone
    | ItemDone
    | Terminal
)


@dataclass(frozen=True, slots=True)
class QueueUpdate:
    """Where a response stands before its first token. Tells who asks; never enters the log.

    `prefilled` of `prompt_tokens` are processed; both are 0 while the request still waits. `loading`: its
    model is loaded for it, and this is how far that is, 0 to 1.
    """

    position: int
    prefilled: int = 0
    prompt_tokens: int = 0
    loading: float | None = None


JOINED_CHARS = 8192
_SCORE_CHARS = 2
"""What a likelihood counts in a joined delta: a frame of them stays well below a megabyte."""


def scores_of(texts: Iterable[str]) -> tuple[TokenScore, ...]:
    """Those of all deltas among the texts that have some."""
    return tuple(score for text in texts if type(text) is ScoredDelta for score in text.tokens)


def unscored(event: Event) -> Event:
    """The same without scores, unless it is a delta: those alone have told them already."""
    match event:
        case TextDone() | PartDone():
            return replace(event, scores=())
        case ItemDone(item):
            return replace(event, item=replace(item, scores=()))
        case ResponseCompleted(response) | ResponseIncomplete(response) | ResponseFailed(response):
            output = tuple(replace(item, scores=()) for item in response.output)
            return replace(event, response=replace(response, output=output))
    return event


def join_deltas(first: int, events: Sequence[Event]) -> Iterator[tuple[int, Event]]:
    """Yield (number, event) with adjacent deltas of one kind joined, each under its last number.

    For a follower that lags. `first` is the number of `events[0]`. A joined delta has at most about
    JOINED_CHARS characters, and fewer where they have scores.
    """
    texts: list[Delta] = []
    size = 0
    for number, event in enumerate(events, first):
        if texts and (type(event) is not type(texts[0]) or size >= JOINED_CHARS):
            yield number - 1, _joined(texts)
            texts, size = [], 0
        if isinstance(event, (TextDelta, ReasoningDelta)):
            texts.append(event)
            size += len(event)
            if type(event) is ScoredDelta:
                size += _SCORE_CHARS * count_scores(event.tokens)
        else:
            yield number, event
    if texts:
        yield first + len(events) - 1, _joined(texts)


def _joined(deltas: Sequence[Delta]) -> Delta:
    """One of deltas of one kind."""
    text = "".join(deltas)
    if isinstance(deltas[0], ReasoningDelta):
        return ReasoningDelta(text)
    return ScoredDelta(text, scores_of(deltas)) if type(deltas[0]) is ScoredDelta else TextDelta(text)
