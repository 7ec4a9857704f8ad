"""Ids that sort by time and cannot be guessed."""

import os
import time


def new_id(prefix: str) -> str:
    """`{prefix}_` + 12 hex digits of Unix milliseconds + 20 random ones (80 bits)."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
