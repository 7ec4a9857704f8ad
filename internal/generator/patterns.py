"""How much a regular expression repeats. Knows the syntax of Rust's expressions, not who follows them.

Source: https://docs.rs/regex/latest/regex/#syntax
"""

import re

MAX_COUNT = 5000
"""Of all counts (`{3,5}`: 5), multiplied where they are nested: one of a million stopped llama.cpp for 1.2 s,
until it dropped the grammar."""

_PART = re.compile(
    r"\\[pPxuU]\{[^}]*\}"  # a brace that counts nothing
    r"|\\."
    r"|\[\^?\]?"  # a bracket that comes first is a character
    r"|\(\?[a-zA-Z-]*"
    r"|\{\s*[0-9]+\s*(?:,\s*[0-9]*\s*)?\}"
    r"|.",
    re.DOTALL,
)
_NUMBER = re.compile("[0-9]+")


def complaint(pattern: str) -> str | None:
    """What is beyond the bounds; None: nothing."""
    if (count := _count(pattern)) is None:
        return "it has the flag x"
    if count > MAX_COUNT:
        return f"its counts, multiplied where they are nested, add up to more than {MAX_COUNT}"
    return None


def _count(pattern: str) -> int | None:
    """The sum of all counts, multiplied where they are nested. None where nobody can tell: with the flag x
    there are comments."""
    # Of each open group what stands in it, but for its last part; that part; how deep in brackets it is.
    sums, last, depth = [0], 0, 0
    for found in _PART.finditer(pattern):
        part = found[0]
        if depth:
            depth += (part[0] == "[") - (part == "]")
        elif part[0] == "{" and len(part) > 1:
            last = min(max(1, last) * _times(part), MAX_COUNT + 1)
        elif part in ("*", "+", "?"):
            pass
        elif part == ")" and len(sums) > 1:
            last += sums.pop()
        else:
            sums[-1] += last
            last, depth = 0, int(part[0] == "[")
            if part[0] == "(":
                sums.append(0)
                if "x" in part.partition("-")[0]:
                    return None
    return sum(sums) + last


def _times(part: str) -> int:
    return max(int(number[-10:]) for number in _NUMBER.findall(part))
