"""Chat templates: from messages to the pieces of a prompt.

A template is the model's own Jinja2 text and runs in a sandbox. What people wrote is marked before it
is rendered and comes back as pieces of its own, so that an engine can tokenise it without special
tokens: a typed `<|im_end|>` stays text and cannot end the turn.
"""

import datetime
import itertools
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from internal.biz.errors import ContextLengthExceeded, InvalidRequest
from internal.biz.generation import MAX_CHARS_PER_TOKEN
from internal.biz.models import Message, Role, Tool, ToolCall, Truncation
from internal.generator.attachments import text_with_files
from internal.generator.tools import CallFormat

# Unicode noncharacters: they have no meaning in any text (Unicode §23.7), and are taken out of ours.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


class Piece(NamedTuple):
    """Part of a prompt; only `special` ones may contain special tokens."""

    text: str
    special: bool


class ChatTemplate:
    """A compiled chat template. Raises InvalidRequest when it cannot be compiled or rendered."""

    def __init__(self, source: str, **variables: str) -> None:
        """`variables` are what templates expect beside the messages: bos_token, eos_token, …"""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        # Jinja's own would escape the marks, and everything else that is not ASCII.
        environment.filters["tojson"] = _tojson
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the chat template does not compile: {error}") from error
        self._variables = variables
        self.thinks = "<think>" in source
        """Whether the model may reason before it answers."""
        self.call_format = self._find_call_format()
        """None: tools and calls are not for this template, or in a form that we do not read."""

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[Piece]:
        """The prompt up to where the assistant speaks.

        Source: https://huggingface.co/docs/transformers/chat_extras (what templates expect of tools)
        """
        names = {call.id: call.name for message in messages for call in message.calls}
        marked = [_turn(message, names) for message in messages]
        # None, as in Hugging Face's library: templates ask for it.
        declared = [_declaration(tool) for tool in tools] or None
        try:
            text = self._template.render(
                messages=marked, tools=declared, add_generation_prompt=True, **self._variables
            )
        except Exception as error:  # a template is foreign code and may raise anything
            raise InvalidRequest(f"the model's chat template refuses this: {error}") from error
        return _split(text)

    def _find_call_format(self) -> CallFormat | None:
        """How the template writes a call: it is asked to."""
        call = ToolCall("probe00id", "probe", '{"of": "it"}')
        described = "says what is probed"
        text_of_it = {"type": "string", "description": "what it is"}
        takes = {"type": "object", "properties": {"of": text_of_it}, "required": ["of"]}
        dialogue = (
            Message(Role.USER, "go"),
            Message(Role.ASSISTANT, "", (call,)),
            Message(Role.TOOL, "it went", call_id=call.id),
            Message(Role.USER, "on"),
        )
        try:
            pieces = self.render(dialogue, (Tool(call.name, described, takes),))
        except InvalidRequest:
            return None
        text = "".join(piece.text for piece in pieces)
        is_told = described in text and "it went" in text
        return CallFormat.of(text, call) if is_told else None


def _turn(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    """A message as templates expect it. `names` are those of the functions that were called, by call id."""
    turn: dict[str, Any] = {"role": message.role.value, "content": _mark(text_with_files(message))}
    if message.calls:
        turn["tool_calls"] = [
            {"type": "function", "id": _marked(call.id), "function": _function(call)}
            for call in message.calls
        ]
    if message.call_id is not None:
        turn["tool_call_id"] = _marked(message.call_id)
        turn["name"] = _marked(names.get(message.call_id, ""))
    return turn


def _function(call: ToolCall) -> dict[str, Any]:
    """Templates make JSON of the arguments, some of them unless they are a string."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return {"name": _marked(call.name), "arguments": _marked(arguments)}


def _declaration(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": _marked(function)}


_HARMLESS = re.compile(r"[\w\s.,:;!?'()/+-]*")
"""No special token looks like this, and templates compare such strings with their own ("object", …)."""


def _marked(value: Any) -> Any:
    """`value` with all strings in it marked, the names of members too."""
    match value:
        case str():
            return value if _HARMLESS.fullmatch(value) else _mark(value)
        case Mapping():
            return {_marked(name): _marked(member) for name, member in value.items()}
        case list() | tuple():
            return [_marked(member) for member in value]
    return value


def _mark(content: str) -> str:
    """`content` between marks. It is closed and opened again wherever a special token may begin, so that
    what a template cuts out of its middle takes a mark along."""
    content = content.replace(_OPEN, "").replace(_CLOSE, "")
    if not content:
        return ""  # templates ask whether there is any
    return _OPEN + re.sub(r"(?=[<\[])", _CLOSE + _OPEN, content) + _CLOSE


def _split(text: str) -> list[Piece]:
    return [
        Piece("".join(text for text, _ in run), special)
        for special, run in itertools.groupby(_parts(text), key=itemgetter(1))
    ]


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Texts that are not empty, and whether they are special."""
    is_first = True
    for part in text.split(_OPEN):
        content, mark, behind = part.partition(_CLOSE)
        # A template that cut a message apart leaves marks without a partner: that is still content.
        *orphans, behind = behind.split(_CLOSE)
        said = "".join((content, *orphans))
        if said:
            yield said, is_first and not mark
            is_first = False
        if behind:
            yield behind, True
            is_first = False


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in Hugging Face's library, but `ensure_ascii` is not heard: marks have to stay what they are."""
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


CHARS_PER_TOKEN = 4
"""What a token of ordinary text has, about."""


def fit(
    messages: Sequence[Message],
    truncation: Truncation,
    limit: int,
    tokenize: Callable[[Sequence[Message]], list[int]],
) -> list[int]:
    """The tokens of `messages`, at most `limit`.

    With Truncation.AUTO the oldest turns are left out until the rest fits, some at a time; system messages
    and the last turn stay. `tokenize` is called O(log turns) times. Raises ContextLengthExceeded.
    """
    kept = list(messages)
    starts = [i for i, message in enumerate(kept) if message.role is Role.USER]
    is_whole = truncation is Truncation.DISABLED or not starts
    least = kept if is_whole else _from_turn(kept, starts, len(starts) - 1)
    chars = sum(message.chars for message in least)
    # To tokenise it takes long, and others wait for that.
    if chars > limit * MAX_CHARS_PER_TOKEN:
        raise ContextLengthExceeded(
            f"the prompt has {chars} characters, but this model takes {limit} tokens", param="input"
        )
    tokens = tokenize(kept) if is_whole else _fit_newest(kept, starts, limit, tokenize)
    if len(tokens) > limit:
        raise ContextLengthExceeded(
            f"the prompt has {len(tokens)} tokens, but this model takes {limit}", param="input"
        )
    return tokens


def _fit_newest(
    messages: list[Message],
    starts: list[int],
    limit: int,
    tokenize: Callable[[Sequence[Message]], list[int]],
) -> list[int]:
    """The tokens of as many of the newest turns as fit, or of the last one. A turn begins at each of
    `starts`."""
    chars = list(itertools.accumulate((message.chars for message in messages), initial=0))
    before = [chars[start] for start in starts]
    hopeless = chars[-1] - limit * MAX_CHARS_PER_TOKEN
    first = min(bisect_left(before, hopeless), len(starts) - 1)
    tokens = tokenize(_from_turn(messages, starts, first))
    if len(tokens) > limit and first < len(starts) - 1:
        # The first that may stay lies in (least, first]: what fits from one turn on fits from later ones.
        least, first = first, len(starts) - 1
        tokens = tokenize(_from_turn(messages, starts, first))
        while len(tokens) <= limit and first - least > 1:
            middle = (least + first) // 2
            attempt = tokenize(_from_turn(messages, starts, middle))
            if len(attempt) <= limit:
                first, tokens = middle, attempt
            else:
                least = middle
    steady = _steady_turn(before, first, limit)
    return tokens if steady == first else tokenize(_from_turn(messages, starts, steady))


def _steady_turn(before: list[int], turn: int, limit: int) -> int:
    """A turn not before `turn` to begin with, which stays the same while the dialogue grows by about half
    the context: a prompt that lost one more turn each time would be prefilled anew each time. `before` are
    the characters before each turn."""
    quantum = limit * CHARS_PER_TOKEN // 2
    dropped = before[turn] - before[0]
    steady = bisect_left(before, before[0] - (-dropped // quantum) * quantum, lo=turn)
    return steady if steady < len(before) else turn


def _from_turn(messages: list[Message], starts: list[int], turn: int) -> list[Message]:
    """The messages without those of the turns before `turn`; system messages stay."""
    first, start = starts[0], starts[turn]
    systems = [m for m in messages[first:start] if m.role is Role.SYSTEM]
    return messages[:first] + systems + messages[start:]
