"""Frames of text between two processes: four bytes that say how many follow, and so many of UTF-8.

Knows bytes, not where they come from.
"""

import struct

_HEAD = struct.Struct(">I")
HEAD_BYTES = _HEAD.size


def frame(text: str) -> bytes:
    body = text.encode(errors="replace")
    return _HEAD.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """How many bytes follow."""
    length: int = _HEAD.unpack(head)[0]
    return length
