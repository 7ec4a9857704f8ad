"""Ids that sort by time and cannot be guessed."""

import os
import time

ID_PATTERN = "[A-Za-z0-9_-]{1,64}"
"""What ids are made of, also those that people name."""


def new_id(prefix: str) -> str:
    """`{prefix}_` + 12 hex digits of Unix milliseconds + 20 random ones (80 bits)."""
    return first_id(prefix, time.time()) + os.urandom(10).hex()


def new_ids(prefix: str, count: int) -> list[str]:
    """As many new ids, in their order."""
    return sorted(new_id(prefix) for _ in range(count))


def first_id(prefix: str, moment: float) -> str:
    """Where the ids that are made at a moment (Unix seconds) begin in the order of all ids."""
    return f"{prefix}_{max(0, int(moment * 1000)):012x}"
