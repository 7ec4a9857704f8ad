"""JSON Schemas and patterns that an answer has to follow, as grammars of llguidance, the library that
llama.cpp follows them with.

llama.cpp takes a grammar that cannot be compiled for none, and says nothing: so it is compiled here first,
and the answer is checked in the end. It compiles on the thread that all responses share: so what would take
it long is refused.

Source: https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md and syntax.md beside it
"""

import functools
import json
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from internal.biz.errors import InvalidSchema
from internal.generator import patterns

MAX_CHARS = 65536
MAX_DEPTH = 64
MAX_COUNT = 5000
"""Of all items and properties that are counted, together, once more for each `$ref`: llama.cpp was busy for
seven seconds with 180,000, and did not come back from 10⁹."""
MAX_MULTIPLE = 10_000
"""Of the digits of all `multipleOf` together, multiplied: one of 999983 took 19 s."""

_MAX_FUEL = 300_000
_MAX_SYMBOLS = 20_000
"""Of llguidance's own work and grammar: a third and less of what it allows, and llama.cpp with it."""
_HEAD = "%llguidance {}\n"
_GAP = r"/\s{0,4}/"
_COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties")
_OPTIONS = "x-guidance"
# A small model that may write any white space writes newlines until it is stopped.
_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar:
    """What the model has to write, in llguidance's variant of Lark."""

    def __init__(self, answers: Sequence[str], rules: str, param: str) -> None:
        """An answer follows one of the rules named in `answers`, which are among `rules`. Raises
        InvalidSchema, naming `param`."""
        self._answer = f"answer: {' | '.join(answers)}\n{rules}"
        self._matcher = _matcher(f"{_HEAD}start: answer\n{self._answer}")
        if self._matcher.is_error():
            raise _invalid(param, _reason(self._matcher.get_error()))

    def behind(self, thought: str | None) -> str:
        """The grammar for llama.cpp. `thought`: how the reasoning begins that may stand before the answer;
        empty: it has begun already; None: there is none."""
        if thought is None:
            return f"{_HEAD}start: answer\n{self._answer}"
        begin = f"(thought {_GAP})?" if thought else f"thought {_GAP}"
        rule = f'thought[suffix="</think>"]: /{thought}(?s:.*)/\n'
        return f"{_HEAD}start: {begin} answer\n{rule}{self._answer}"

    def matcher(self, thought: str | None, vocabulary: "Vocabulary") -> Any:
        """llguidance's matcher of what the model writes, token by token. `thought` as for `behind`."""
        return vocabulary.matcher(self.behind(thought))

    def accepts(self, text: str) -> bool:
        """Whether `text` is all that an answer has to be. Either this is asked or `begins`, once."""
        return self.begins(text) and bool(self._matcher.is_accepting())

    def begins(self, text: str) -> bool:
        """Whether an answer may begin with `text`."""
        return bool(self._matcher.consume_tokens(list(text.encode("utf-8", "replace"))))


def json_rule(schema: Mapping[str, Any], *, strict: bool) -> str:
    """The part of a grammar that is a JSON text of `schema`, in one line.

    Unless `strict`, what llguidance does not know of JSON Schema is left out. A `oneOf` is taken for an
    `anyOf`. To be checked before.
    """
    options = {**_ONE_LINE, "coerce_one_of": True, "lenient": not strict}
    return f"%json {json.dumps({**schema, _OPTIONS: options})}"


def pattern_rule(pattern: str, param: str) -> str:
    """The part of a grammar that is a text of a regular expression, all of it. Raises InvalidSchema, naming
    `param`, for one that llguidance has no automaton for (one that looks around or back), and one beyond the
    bounds."""
    if re.fullmatch(r"(?:[^\\]|\\.)*", pattern, re.DOTALL) is None:  # it would go on behind its end
        raise _invalid_pattern(param, "it ends with half of an escape")
    escaped = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", pattern, flags=re.DOTALL)
    rule = f"/{escaped}/"
    matcher = _matcher(f"{_HEAD}start: answer\nanswer: {rule}\n")
    if matcher.is_error():
        reason = matcher.get_error().rpartition("(in regex): ")[2]
        raise _invalid_pattern(param, _reason(reason).removeprefix("regex parse error: "))
    if (reason := patterns.complaint(pattern)) is not None:
        raise _invalid_pattern(param, reason)
    return rule


def check(schema: object, param: str) -> None:
    """Raises InvalidSchema, naming `param`, for a schema, or several of one grammar, beyond the bounds."""
    count, references, multiple = 0.0, 0, 1
    try:
        if (size := len(json.dumps(schema))) > MAX_CHARS:
            raise _invalid(param, f"it has {size} characters, {MAX_CHARS} are allowed")
        for key, value in _walk(schema, MAX_DEPTH):
            if key in _COUNTS and _is_number(value):
                count += abs(value)
            elif key == "$ref":
                references += 1
            elif key == "pattern" and isinstance(value, str):
                _check_pattern(value, param)
            elif key == "patternProperties" and isinstance(value, Mapping):
                for pattern in value:
                    _check_pattern(pattern, param)
            elif key == "multipleOf" and _is_number(value):
                multiple *= _digits(value)
    except (RecursionError, ValueError, OverflowError) as error:
        raise _invalid(param, "it is nested too deep, or has a number that is too large") from error
    if count * (1 + references) > MAX_COUNT:
        raise _invalid(param, f"{', '.join(_COUNTS)} add up to more than {MAX_COUNT}, counted for each $ref")
    if multiple > MAX_MULTIPLE:
        raise _invalid(param, f"the digits of its multipleOf are more than {MAX_MULTIPLE}, multiplied")


def _check_pattern(pattern: str, param: str) -> None:
    if (reason := patterns.complaint(pattern)) is not None:
        raise _invalid(param, f"of a pattern: {reason}")


def _walk(value: object, depth: int) -> Iterator[tuple[str, Any]]:
    """All members of all objects. Raises RecursionError."""
    if depth == 0:
        raise RecursionError
    if isinstance(value, Mapping):
        for key, member in value.items():
            yield key, member
            yield from _walk(member, depth - 1)
    elif isinstance(value, (list, tuple)):
        for member in value:
            yield from _walk(member, depth - 1)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _digits(number: float) -> int:
    """The number without its point and the zeros around: how many remainders an automaton has to count."""
    return int("".join(map(str, Decimal(repr(number)).normalize().as_tuple().digits)) or "1") or 1


def _invalid(param: str, reason: str) -> InvalidSchema:
    return InvalidSchema(f"the JSON Schema cannot be followed: {reason}", param=param)


def _invalid_pattern(param: str, reason: str) -> InvalidSchema:
    message = f"the regular expression cannot be followed: {reason}"
    return InvalidSchema(message, code="invalid_pattern", param=param)


def _reason(error: str) -> str:
    """llguidance's own words, without the grammar that it repeats; of a pattern what is wrong with it."""
    first, *lines = error.split("\n")
    cause = next((line for line in lines if line.startswith("error: ")), "").removeprefix("error:")
    return (first.rpartition("failed to compile JSON schema: ")[2] + cause)[:200]


class Vocabulary:
    """A model's tokens, for grammars that are followed token by token. Read when it is needed first."""

    def __init__(self, file: Path, end: int | None) -> None:
        """`file`: the model's tokenizer.json; `end`: the token that it ends an answer with."""
        self.end = end
        self._file = file
        self._lock = threading.Lock()
        self._tokenizer: Any = None

    def matcher(self, grammar: str) -> Any:
        import llguidance

        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = llguidance.LLTokenizer(str(self._file), eos_token=self.end)
        return _matcher(grammar, self._tokenizer)


def _matcher(grammar: str, tokenizer: Any = None) -> Any:
    import llguidance

    limits = llguidance.LLParserLimits(initial_lexer_fuel=_MAX_FUEL, max_grammar_size=_MAX_SYMBOLS)
    return llguidance.LLMatcher(tokenizer or _tokenizer(), grammar, log_level=0, limits=limits)


@functools.cache
def _tokenizer() -> Any:
    """One token for each byte."""
    import llguidance

    return llguidance.LLTokenizer("byte")
