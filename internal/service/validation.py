"""What clients send, checked: what is wrong with it is said in one sentence that names the field.

Knows JSON and pydantic, not sockets.
"""

import re
from collections.abc import Callable, Iterator, Mapping

import orjson
from pydantic import ValidationError

from internal.biz.errors import InvalidRequest, UnsupportedParameter

MAX_VALUES = 10_000
"""Of one object, in all its depth: what is looked at takes time, about 4 ms for as many."""
MAX_PARAM_CHARS = 100
"""Of what is said back of a field's name."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def load_object(data: bytes, max_values: int = MAX_VALUES) -> dict[str, object]:
    """The JSON object that `data` holds.

    Raises InvalidRequest for everything else, for more than `max_values` in all its depth, and for what
    several readers would understand in several ways: a field that is named twice, and text that holds a NUL.
    Nesting is bounded (1024 levels).
    """
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"this is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("this needs a JSON object", code="invalid_json")
    strings = 0
    for count, value in enumerate(_values(fields)):
        if count > max_values:
            raise InvalidRequest(f"this has more than {max_values} values", code="invalid_json")
        strings += isinstance(value, str)
    # The text has a string for each that was read from it; what it has more was overwritten.
    if any(count > strings for count, _ in enumerate(_STRING.finditer(data), 1)):
        raise InvalidRequest("a field is named twice", code="invalid_json")
    if b"\\u0000" in data:
        require_no_nul(fields)
    return fields


def require_no_nul(fields: Mapping[str, object]) -> None:
    """Raises InvalidRequest for text with a NUL, which storages refuse, or end the text at."""
    for name, value in fields.items():
        if any(isinstance(text, str) and "\0" in text for text in _values({name: value})):
            param = _said_back(name)
            message = f"{param}: the character NUL is not allowed"
            raise InvalidRequest(message, code="invalid_value", param=param)


def _values(value: object) -> Iterator[object]:
    """The value and all that is in it, names too. Does not recurse: it may be deep."""
    left = [value]
    while left:
        yield (value := left.pop())
        if isinstance(value, dict):
            left += value.keys()
            left += value.values()
        elif isinstance(value, list):
            left += value


def _never(part: int | str, is_last: bool) -> bool:
    return False


def complaint(
    error: ValidationError, is_branch: Callable[[int | str, bool], bool] = _never
) -> InvalidRequest:
    """One complaint, named as the client named the field.

    pydantic complains once for each branch of a union, and names the branch in the path, which a client
    never wrote: `is_branch(part, is_last)` knows these. The branch that was meant is the one that it came
    furthest in.
    """
    complaints = error.errors(include_url=False, include_input=False)
    worst = max(complaints, key=lambda it: (len(it["loc"]), it["type"] != "string_type"))
    message = _sentence(worst["type"], worst["msg"])
    if not worst["loc"]:
        return InvalidRequest(message, code="invalid_value")
    name, *path = worst["loc"]
    path = [part for i, part in enumerate(path) if not is_branch(part, i == len(path) - 1)]
    param = _said_back(str(name) + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path))
    if worst["type"] == "extra_forbidden":
        return UnsupportedParameter(f"{param} is not supported here", param=param)
    if worst["type"] == "union_tag_invalid":
        tag, expected = worst["ctx"]["discriminator"], worst["ctx"]["expected_tags"]
        if not tag.startswith("'"):  # A function tells them apart, by what clients never wrote.
            return UnsupportedParameter(f"{param}: this type is not supported here", param=param)
        param += "." + tag.strip("'")
        return UnsupportedParameter(f"{param}: Input should be one of {expected}", param=param)
    return InvalidRequest(f"{param}: {message}", code="invalid_value", param=param)


def _said_back(name: str) -> str:
    return name[:MAX_PARAM_CHARS].replace("\0", "\N{REPLACEMENT CHARACTER}")


_SENTENCES = {
    "missing": "this field is required",
    "none_required": "this is not supported here",
    "union_tag_not_found": "this does not say what it is",
    "string_pattern_mismatch": "this has a form that is not allowed",
}


def _sentence(kind: str, message: str) -> str:
    """pydantic's words, without its own vocabulary."""
    message = message.partition(" or instance of ")[0].removeprefix("Value error, ")
    return _SENTENCES.get(kind, message)
