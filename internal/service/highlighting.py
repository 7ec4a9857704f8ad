"""Code as coloured HTML: the tokens of a Pygments lexer as `<span class="k">`, without any style.

Knows Pygments, and neither Markdown nor who asks. Its expressions may take minutes: see `highlight`.
"""

import functools
import io

from pygments.formatters.html import HtmlFormatter
from pygments.lexers import get_all_lexers, get_lexer_by_name
from pygments.token import STANDARD_TYPES

MAX_CODE_CHARS = 64 << 10
MAX_LINE_CHARS = 4096
"""Longer code, and code with longer lines, stays as it is: nobody wrote it, and it takes long."""

CLASSES = frozenset(STANDARD_TYPES.values()) - {""}
"""Those that a span may have."""


@functools.cache
def languages() -> frozenset[str]:
    """What code may be called, in lower case. Plugins do not count: to look for them takes a look at all
    that is installed, for every name that is unknown."""
    return frozenset(alias.lower() for _, names, _, _ in get_all_lexers(plugins=False) for alias in names)


def highlight(code: str, language: str) -> str | None:
    """The inner HTML of `code`; None where there is nothing to colour: nobody knows the language, the code is
    too large, or the lexer fails, or says something else.

    It takes as long as the lexer's expressions do. Who bounds that has a signal raise TimeoutError in here.
    """
    if language.lower() not in languages() or len(code) > MAX_CODE_CHARS:
        return None
    if max(map(len, code.split("\n"))) > MAX_LINE_CHARS:
        return None
    try:
        tokens = list(get_lexer_by_name(language, stripnl=False, ensurenl=False).get_tokens(code))
        if "".join(text for _, text in tokens) != code:
            return None
        made = io.StringIO()
        HtmlFormatter(nowrap=True).format(tokens, made)
        # A last line always gets an end.
        return made.getvalue() if code.endswith("\n") else made.getvalue().removesuffix("\n")
    except Exception:  # there are hundreds of lexers, and code is what a model makes up
        return None
