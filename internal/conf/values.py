"""The kinds of values that settings have."""

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, PlainSerializer

MASK = "*" * 10
"""What is shown of a secret."""


_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration(value: object) -> float:
    """Seconds of `0`, `400ms`, `1.5s`, `10m`, `72h`, `7d`. Raises ValueError."""
    if value == 0 or value == "0":
        return 0.0
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write 0, 400ms, 1.5s, 10m or 72h")
    return float(match[1]) * _UNITS_S[match[2]]


Duration = Annotated[
    float, BeforeValidator(parse_duration), PlainSerializer(lambda seconds: f"{seconds:.12g}s")
]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


def _existing_file(value: object) -> object:
    if isinstance(value, str) and value and not Path(value).is_file():
        raise ValueError(f"there is no file {value}")
    return value or None


OptionalFile = Annotated[Path | None, BeforeValidator(_existing_file)]


def has_port(url: str) -> bool:
    """Whether what may stand there as a port is one."""
    try:
        urlsplit(url).port  # noqa: B018  # raises for what is no number
    except ValueError:
        return False
    return True
