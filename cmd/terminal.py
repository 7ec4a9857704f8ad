"""How operators' commands end, and what they print: tables, moments, and nothing that a terminal obeys."""

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from internal.biz.errors import SluiceError


def answer(work: Callable[[], int]) -> int:
    """What `work` returns; 1, and a sentence for a person, when it fails in a way that is expected."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what is printed may be anything
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = work()
        sys.stdout.flush()
    except SluiceError as error:
        print(printable(error.message), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # nobody reads on, or there is no room for it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"cannot write: {error}", file=sys.stderr)
        return 1
    return status


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; the columns whose heading begins with > are aligned to the right."""
    right = [name.startswith(">") for name in header]
    table = [
        [name.removeprefix(">") for name in header],
        *([printable(cell) for cell in row] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = zip(row, widths, right, strict=True)
        print(
            "  ".join(f"{cell:{'>' if is_right else '<'}{width}}" for cell, width, is_right in cells).rstrip()
        )


def span(seconds: float) -> str:
    """A duration in its largest unit."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def moment(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):  # anybody who reaches this Redis may write anything
        return "?"


def pretty(payload: bytes) -> str:
    """JSON with line breaks; what is none as it is. Nothing in it reaches the terminal as a command."""
    text = payload.decode(errors="backslashreplace")
    try:
        text = json.dumps(json.loads(payload), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return printable(text)
    return "\n".join(map(printable, text.split("\n")))


def printable(text: str) -> str:
    """`text` in one line, without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
