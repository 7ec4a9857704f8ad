"""What models write, as HTML; and whatever anybody writes, as HTML that does nothing but show it."""

import html
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.service.highlighting import MAX_CODE_CHARS, MAX_LINE_CHARS, highlight, languages
from internal.service.markdown import plain, render

CODE = '<div class="code"><div class="code-head">{head}</div><pre><code{known}>{code}</code></pre></div>\n'


def code(inner: str, name: str = "", known: str = "") -> str:
    head = f'<span class="code-language">{name}</span>' if name else ""
    return CODE.format(head=head, known=f' class="language-{known}"' if known else "", code=inner)


def link(target: str, text: str, title: str = "") -> str:
    title = f' title="{title}"' if title else ""
    return f'<a href="{target}"{title} target="_blank" rel="noopener noreferrer nofollow">{text}</a>'


class Seen(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.odd: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.odd.append(data)

    def handle_decl(self, decl: str) -> None:
        self.odd.append(decl)

    def handle_pi(self, data: str) -> None:
        self.odd.append(data)

    def unknown_decl(self, data: str) -> None:
        self.odd.append(data)


PLAIN = "p br hr h1 h2 h3 h4 h5 h6 blockquote em strong s table thead tbody tr"
ALLOWED: dict[str, set[str]] = {
    **{tag: set() for tag in PLAIN.split(" ")},
    **{tag: {"class"} for tag in ("div", "span", "code", "pre", "ul", "li", "td", "th")},
    "a": {"href", "title", "target", "rel"},
    "ol": {"start", "class"},
}


def require_harmless(source: str) -> None:
    seen = Seen(render(source))
    assert not seen.odd
    for tag, attributes in seen.tags:
        assert tag in ALLOWED
        assert set(attributes) <= ALLOWED[tag], (tag, attributes)
        if tag == "a":
            assert attributes["target"] == "_blank"
            assert attributes["rel"] == "noopener noreferrer nofollow"
            # What is no address at all has lost it at the second wall.
            target = attributes.get("href", "http://")
            assert re.match(r"(https?://|mailto:)", target or "", re.IGNORECASE)
        for word in (attributes.get("class") or "").split():
            assert re.fullmatch(r"[a-z0-9+#_./:*-]+", word, re.IGNORECASE), word


# ── what it looks like ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", ""),
        ("one\ntwo\n\nthree", "<p>one<br>\ntwo</p>\n<p>three</p>\n"),
        ("# A *b*", "<h1>A <em>b</em></h1>\n"),
        ("**b** ~~c~~ `<d>`", "<p><strong>b</strong> <s>c</s> <code>&lt;d&gt;</code></p>\n"),
        ("> a", "<blockquote>\n<p>a</p>\n</blockquote>\n"),
        ("3. a\n4. b", '<ol start="3">\n<li>a</li>\n<li>b</li>\n</ol>\n'),
        ("a\n\n---", "<p>a</p>\n<hr>\n"),
        ("a\n---", "<p>a</p>\n<hr>\n"),
        ("<b>a</b>\n\n<div>b", "<p>&lt;b&gt;a&lt;/b&gt;</p>\n<p>&lt;div&gt;b</p>\n"),
    ],
)
def test_markdown_becomes_html(source: str, expected: str) -> None:
    assert render(source) == expected


def test_tasks_are_ticked_or_not() -> None:
    assert render("- [ ] a\n- [x] b").splitlines() == [
        '<ul class="contains-task-list">',
        '<li class="task-list-item">☐ a</li>',
        '<li class="task-list-item">☑ b</li>',
        "</ul>",
    ]


def test_a_table_can_be_scrolled_and_is_aligned_without_styles() -> None:
    made = render("| a | b |\n|:-:|--:|\n| 1 | 2 |")
    assert made.startswith('<div class="table"><table>\n<thead>')
    assert made.endswith("</tbody>\n</table>\n</div>\n")
    assert '<th class="align-center">a</th>\n<th class="align-right">b</th>' in made
    assert '<td class="align-center">1</td>\n<td class="align-right">2</td>' in made


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[a](https://b.c/d 'e')", link("https://b.c/d", "a", "e")),
        (
            "see https://b.c/d?e=f&g.",
            "see " + link("https://b.c/d?e=f&amp;g", "https://b.c/d?e=f&amp;g") + ".",
        ),
        ("<https://b.c>", link("https://b.c", "https://b.c")),
        ("<a@b.cd>", link("mailto:a@b.cd", "a@b.cd")),
        ("[a]\n\n[a]: HTTPS://b.c", link("HTTPS://b.c", "a")),
        ("![a *b*](https://b.c/d.png)", link("https://b.c/d.png", "a b")),
        ("![](https://b.c/d.png)", link("https://b.c/d.png", "https://b.c/d.png")),
        ("[![a](https://b.c/d.png) e](https://f.g)", link("https://f.g", "a e")),
    ],
)
def test_links_lead_away_and_images_are_links(source: str, expected: str) -> None:
    assert render(source) == f"<p>{expected}</p>\n"


@pytest.mark.parametrize(
    "source", ["main.py", "README.md", "www.b.c", "a@b.cd", "ftp://b.c", "//b.c", "[a](/b)", "[a](b.html)"]
)
def test_what_only_looks_like_an_address_is_text(source: str) -> None:
    assert render(source) == f"<p>{source}</p>\n"


def test_code_has_a_head_and_colours() -> None:
    inner = '<span class="k">def</span>'
    made = render("```Python title\ndef f(): pass\n```")
    assert made.startswith(code("|", "Python", "python").partition("|")[0] + inner)
    assert Seen(made).text == "Pythondef f(): pass\n\n"
    assert "style" not in made


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("```\na <b>\n```", code("a &lt;b&gt;\n")),
        ("~~~ nonsense\na\n~~~", code("a\n", "nonsense")),
        ("    a\n    b", code("a\nb\n")),
        ("```<img/onerror=x>\na\n```", code("a\n", "&lt;img/onerror=x&gt;")),
        ("```\"'&lt;x&gt;\na\n```", code("a\n", "\"'&lt;x&gt;")),
        (f"```{'x' * 1000}\na\n```", code("a\n", "x" * 40)),
    ],
)
def test_code_of_no_language_is_plain(source: str, expected: str) -> None:
    assert render(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a\n\n```", "<p>a</p>\n" + code("")),
        ("```py", code("", "py", "py")),
        ("```\na\n``", code("a\n``")),
        ("a **b", "<p>a **b</p>\n"),
        ("a `b", "<p>a `b</p>\n"),
        ("[a](https://b", "<p>[a](" + link("https://b", "https://b") + "</p>\n"),
        ("some:\n-", "<p>some:<br>\n-</p>\n"),
        ("- a\n-", "<ul>\n<li>a</li>\n<li></li>\n</ul>\n"),
        ("| a | b |\n|--", "<p>| a | b |<br>\n|--</p>\n"),
    ],
)
def test_what_is_not_finished_is_rendered_as_far_as_it_goes(source: str, expected: str) -> None:
    assert render(source) == expected


def test_code_too_large_has_no_colours() -> None:
    assert highlight("a = 1\n" * (MAX_CODE_CHARS // 6), "python")
    assert highlight("a = 1\n" * (MAX_CODE_CHARS // 6 + 1), "python") is None
    assert highlight("a" * MAX_LINE_CHARS + "\n", "python")
    assert highlight("a" * (MAX_LINE_CHARS + 1) + "\n", "python") is None
    assert highlight("a", "nonsense") is None
    assert highlight("a", "") is None


@given(st.text(), st.sampled_from(["python", "c", "html", "json", "sh", "pycon", "diff", "php", "md"]))
def test_colours_change_no_code(source: str, language: str) -> None:
    made = highlight(source, language)
    assert made is None or Seen(made).text == source


def test_a_lexer_that_fails_or_is_cut_short_leaves_code_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("internal.service.highlighting.get_lexer_by_name", broken)
    assert render("```py\na\n```") == code("a\n", "py", "py")


@given(st.text())
def test_plain_text_is_the_text(source: str) -> None:
    seen = Seen(plain(source))
    assert seen.tags == [("pre", {"class": "plain"})]
    # A browser drops the first newline and takes each kind of line end for the same; `html.parser` does not.
    assert seen.text == "\n" + source


# ── what it must not look like ───────────────────────────────────────────────────────────────────

SCRIPTS = [
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java\tscript:alert(1)",
    "java\nscript:alert(1)",
    "java\0script:alert(1)",
    "\1javascript:alert(1)",
    " javascript:alert(1)",
    "javascript&colon;alert(1)",
    "javascript&#58;alert(1)",
    "&#106;avascript:alert(1)",
    "&#x6A;&#x61;vascript:alert(1)",
    "java&Tab;script:alert(1)",
    "java&NewLine;script:alert(1)",
    "javascript\\:alert(1)",
    "%6Aavascript:alert(1)",
    "javascript%3Aalert(1)",
    "javascript://b.c/%0aalert(1)",
    "vbscript:msgbox(1)",
    "data:text/html,<script>alert(1)</script>",
    "data:image/png;base64,AAAA",
    "data:image/svg+xml,<svg onload=alert(1)>",
    "file:///etc/passwd",
    "blob:https://b.c/1",
    "//evil.example",
    "\\\\evil.example",
    "/\\evil.example",
    "https:evil.example",
    "?a=b",
    "#id",
    "ws://b.c",
]
MARKUP = [
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//evil.example></SCRIPT>",
    "<scr<script>ipt>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<img src=x onerror=alert(1)//",
    "<svg onload=alert(1)><animate onbegin=alert(1)></svg>",
    "<svg><style><img src=x onerror=alert(1)></style></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<math><mi//xlink:href='data:x,<script>alert(1)</script>'>",
    "<form action=https://evil.example><input name=password><button>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<object data=x></object><embed src=x><base href=//evil.example>",
    "<meta http-equiv=refresh content=0><link rel=stylesheet href=//evil.example>",
    "<p style='position:fixed' id=app name=app class=x onclick=alert(1)>",
    "<style>*{display:none}</style>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<template><script>alert(1)</script></template>",
    "<textarea></textarea><img src=x onerror=alert(1)>",
    "<title><a title='</title><img src=x onerror=alert(1)>'></a>",
    "<!-- a --><!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[<img src=x onerror=alert(1)>]]>",
    "<?php alert(1) ?>",
    "<!DOCTYPE html>",
    "<plaintext>",
    "<a href='javascript:alert(1)'>x</a>",
    "<a\nhref=javascript:alert(1)>x",
    "</code></pre></div></div><script>alert(1)</script>",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    '" onmouseover="alert(1)',
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "\ud800<script>\udc00",
    "<x\0script>alert(1)</x\0script>",
    "\N{FULLWIDTH LESS-THAN SIGN}script\N{FULLWIDTH GREATER-THAN SIGN}",
]
AROUND = [
    "{}",
    "a\n\n{}\n\nb",
    "*{}*",
    "`{}`",
    "- {}",
    "> {}",
    "# {}",
    "| {} |\n|--|\n| {} |",
    "    {}",
    "```\n{}\n```",
    "```{}\na\n```",
    "```html\n{}\n```",
    "~~~ {}\n{}\n~~~",
    "[{}]({})",
    "[a]({})",
    "[a](<{}>)",
    "![{}]({})",
    "[a](https://b.c '{}')",
    '[a](https://b.c "{}")',
    "[a](https://b.c/{})",
    "![{}](https://b.c)",
    "[![{}]({})](https://b.c)",
    "[a]\n\n[a]: {}",
    "[a]\n\n[a]: https://b.c '{}'",
    "[{0}]\n\n[{0}]: https://b.c",
    "<{}>",
    "https://b.c/{}",
    "mailto:{}@b.c",
    "- [ ] {}",
    "1. [x] {}",
]


@pytest.mark.parametrize("around", AROUND)
def test_no_attack_comes_through(around: str) -> None:
    for attack in (*SCRIPTS, *MARKUP):
        require_harmless(around.format(attack, attack))
        require_harmless(around.format(html.escape(attack), attack))


@pytest.mark.parametrize("attack", MARKUP)
def test_markup_is_shown_as_it_was_written(attack: str) -> None:
    code = attack.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    assert Seen(render(f"```\n{attack}\n```")).text.strip() == code


PIECES = st.sampled_from(
    [*SCRIPTS, *MARKUP, *AROUND, *"\n\t\\`*_[]()<>!&\"'#|-:~", "\n\n", "```", "http://", "](", "<a ", "&#x"]
)


@given(st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=12).map("".join))
def test_nothing_comes_through_but_what_is_allowed(source: str) -> None:
    require_harmless(source)


@given(st.text(st.characters(), max_size=200))
def test_any_text_is_rendered(source: str) -> None:
    require_harmless(source)


@given(st.lists(PIECES, max_size=6).map("".join), st.sampled_from(sorted(languages())))
def test_no_lexer_lets_markup_through(source: str, language: str) -> None:
    require_harmless(f"``````{language}\n{source}\n``````")


@pytest.mark.parametrize(
    "source", ["> " * 3000 + "a", "- " * 3000 + "a", "[" * 5000, "*a " * 5000, "![" * 500]
)
def test_deep_nesting_does_no_harm(source: str) -> None:
    require_harmless(source)


@pytest.mark.parametrize("marker", ["> ", "- ", "1. > "])
def test_nothing_is_lost_in_the_depth(marker: str) -> None:
    made = [render(marker * depth + "needle") for depth in range(220)]
    assert all("needle" in one for one in made)
    assert "<pre" not in made[60]
    assert made[-1] == plain(marker * 219 + "needle")


def test_what_would_become_too_large_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "*a* " * 100
    monkeypatch.setattr("internal.service.markdown.MAX_HTML_CHARS", len(render(source)))
    assert render(source).startswith("<p><em>")
    assert render(source + "b") == plain(source + "b")
