"""What an older version of this program wrote, in today's shape."""

from typing import Any

import orjson

_NEWS = b'"sampling":'
"""What only today's settings have."""


def settings(data: bytes) -> bytes:
    """The settings of a turn."""
    return data if _NEWS in data else _updated(data, ())


def request(data: bytes) -> bytes:
    """A request, with its settings."""
    return data if _NEWS in data else _updated(data, ("settings",))


def _updated(data: bytes, path: tuple[str, ...]) -> bytes:
    try:
        whole: Any = orjson.loads(data)
        found = whole
        for key in path:
            found = found[key]
        found["sampling"] = {key: found.pop(key, None) for key in ("temperature", "top_p")}
    except (ValueError, LookupError, TypeError, AttributeError):  # who reads it says so
        return data
    return orjson.dumps(whole)
