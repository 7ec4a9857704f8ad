"""Markdown as HTML that a page may show as it is, whoever wrote the Markdown.

Two walls: what makes the HTML lets no markup of the text's own through, and what it made is parsed again, of
which only the tags, attributes and classes below are kept. Knows no process, and no limit of time.
"""

import functools
import html
import re
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import unescapeAll
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

from internal.service.highlighting import CLASSES, highlight, languages

MAX_HTML_CHARS = 8 << 20
"""A text that becomes more is shown plain."""
MAX_NESTING = 200
"""So are quotes and lists, each with its items, that are so deep in each other."""
MAX_NAME_CHARS = 40
"""Of what a block of code says that its language is."""

Highlighter = Callable[[str, str], str | None]
"""As `highlight`: gives the HTML of code in a language."""

_LINK = re.compile(r"(?:https?://|mailto:)[^\s]", re.IGNORECASE)
_TAGS = {
    *("a", "br", "code", "em", "s", "span", "strong"),
    *("blockquote", "div", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "ul"),
    *("table", "tbody", "td", "th", "thead", "tr"),
}
_HIGHLIGHTER = "highlighter"
_ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}
_ALIGNED = {"align-left", "align-center", "align-right"}


def plain(text: str) -> str:
    """The text as it is, where it cannot be rendered."""
    # The newline is none of the text's: a parser drops the first one.
    return f'<pre class="plain">\n{html.escape(_encodable(text))}</pre>'


def render(text: str, highlighter: Highlighter = highlight) -> str:
    """The HTML of a text that may end anywhere: what is not closed yet ends with it."""
    parser, environment = _parser(), {_HIGHLIGHTER: highlighter}
    tokens = parser.parse(_encodable(text), environment)
    if any(token.level >= MAX_NESTING - 1 for token in tokens):
        return plain(text)  # what is deeper was left out
    safe = _sanitizer().clean(parser.renderer.render(tokens, parser.options, environment))
    return safe if len(safe) <= MAX_HTML_CHARS else plain(text)


def _encodable(text: str) -> str:
    """A half of a surrogate pair is no character, and cannot be sent."""
    return text.encode(errors="replace").decode()


class _Html(RendererHTML):
    """Its methods are markdown-it's rules, each for the tokens of its name."""

    def fence(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        words = unescapeAll(tokens[idx].info).split(maxsplit=1)
        return _code(tokens[idx].content, words[0] if words else "", env[_HIGHLIGHTER])

    def code_block(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        return _code(tokens[idx].content, "", env[_HIGHLIGHTER])

    def table_open(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        return '<div class="table">' + self.renderToken(tokens, idx, options, env)

    def table_close(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        return self.renderToken(tokens, idx, options, env) + "</div>\n"

    def list_item_open(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        item = self.renderToken(tokens, idx, options, env)
        if "checked" not in tokens[idx].meta:
            return item
        # Not an element of a form: nobody can tick it, and a reader would have no name for it.
        return item + ("☑ " if tokens[idx].meta["checked"] else "☐ ")


def _code(code: str, name: str, highlighter: Highlighter) -> str:
    """A head, in which a page may place more, and the code below."""
    name = name[:MAX_NAME_CHARS]
    label = f'<span class="code-language">{html.escape(name)}</span>' if name else ""
    known = f' class="language-{name.lower()}"' if name.lower() in languages() else ""
    head = f'<div class="code-head">{label}</div>'
    inner = highlighter(code, name) or html.escape(code)
    return f'<div class="code">{head}<pre><code{known}>{inner}</code></pre></div>\n'


def _arrange(state: StateCore) -> None:
    """Make links of images, which would be fetched from elsewhere, and classes of styles."""
    for token in state.tokens:
        if (style := token.attrs.pop("style", None)) is not None:
            token.attrs["class"] = str(style).replace("text-align:", "align-")
        if token.children:
            token.children = _without_images(token.children, state)


def _without_images(tokens: list[Token], state: StateCore) -> list[Token]:
    assert isinstance(state.md.renderer, RendererHTML)
    arranged: list[Token] = []
    is_in_link = False  # where there cannot be another
    for token in tokens:
        if token.type in ("link_open", "link_close"):
            is_in_link = token.nesting == 1
        if token.type != "image":
            arranged.append(token)
            continue
        source = str(token.attrs["src"])
        shown = Token("text", "", 0)
        shown.content = state.md.renderer.renderInlineAsText(token.children, state.md.options, state.env)
        shown.content = shown.content or source
        if is_in_link:
            arranged.append(shown)
        else:
            attributes = {key: value for key, value in token.attrs.items() if key == "title"}
            opening = Token("link_open", "a", 1, attrs={"href": source, **attributes})
            arranged += [opening, shown, Token("link_close", "a", -1)]
    return arranged


@functools.cache
def _parser() -> MarkdownIt:
    options = {"html": False, "breaks": True, "tasklists": True, "xhtmlOut": False, "maxNesting": MAX_NESTING}
    parser = MarkdownIt("gfm-like", options, renderer_cls=_Html)
    # `Some words:` and a `-` below would be a heading, until the rest of the list has come.
    parser.disable("lheading")
    parser.core.ruler.push("arrange", _arrange)
    parser.validateLink = _is_allowed  # type: ignore[method-assign]
    assert parser.linkify is not None
    # `main.py` is a file in Python, and no server in Paraguay.
    parser.linkify.set({"fuzzy_link": False, "fuzzy_email": False, "fuzzy_ip": False})
    return parser


def _is_allowed(url: str) -> bool:
    return _LINK.match(url) is not None


@functools.cache
def _sanitizer() -> nh3.Cleaner:
    return nh3.Cleaner(
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        allowed_classes={
            "code": {f"language-{name}" for name in languages()},
            "div": {"code", "code-head", "table"},
            "li": {"task-list-item"},
            "ol": {"contains-task-list"},
            "span": {"code-language", *CLASSES},
            "td": _ALIGNED,
            "th": _ALIGNED,
            "ul": {"contains-task-list"},
        },
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
