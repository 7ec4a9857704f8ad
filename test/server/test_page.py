"""The web page's files: how they are served, and that they ask for nothing from elsewhere."""

import gzip
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from internal.server.page import FOLDER, Page

Client = TestClient[web.Request, web.Application]
MAX_BYTES = 65536
PLAIN = {"Accept-Encoding": "identity"}


@pytest.fixture
async def client(watched_loop: None) -> AsyncIterator[Client]:
    app = web.Application()
    Page(MAX_BYTES).register(app)
    async with TestClient(TestServer(app)) as client:
        yield client


async def loaded(client: Client, path: str = "/") -> list[str]:
    """What a page loads."""
    return re.findall(r'(?:href|src)="(/static/[^"]+)"', await (await client.get(path)).text())


@pytest.mark.parametrize("path", ["/", "/c/conv_01a22f310fac16253b7a9d6a3a9347da"])
async def test_the_page_loads_every_module_and_style_at_once(client: Client, path: str) -> None:
    names = {address.split("/", 3)[3] for address in await loaded(client, path)}
    assert names == {file.name for file in FOLDER.iterdir() if file.suffix != ".html"}


async def test_it_runs_nothing_but_its_own_scripts_and_reaches_no_other_host(client: Client) -> None:
    for address in ["/", *await loaded(client)]:
        reply = await client.get(address)
        policy = dict(
            part.strip().split(" ", 1) for part in reply.headers["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in reply.headers["Content-Security-Policy"]
        assert policy["require-trusted-types-for"] == "'script'"
    for file in FOLDER.iterdir():
        # An address of elsewhere may be a name (of SVG), or an example for people.
        foreign = set(re.findall(r"https?://[\w.-]+", file.read_text("utf-8")))
        assert foreign <= {"http://www.w3.org", "https://api.example.org"}, file.name


async def test_html_is_made_of_a_string_in_one_place_only(client: Client) -> None:
    makes = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createPolicy|\beval\b|new Function"
    )
    found = {file.name: makes.findall(file.read_text("utf-8")) for file in FOLDER.glob("*.js")}
    assert {name: uses for name, uses in found.items() if uses} == {
        "markdown.js": ["createPolicy", "innerHTML"]
    }


async def test_a_browser_asks_again_for_the_page_and_keeps_the_rest(client: Client) -> None:
    page = await client.get("/")
    assert page.headers["Cache-Control"] == "no-cache"
    again = await client.get("/", headers={"If-None-Match": page.headers["ETag"]})
    assert (again.status, await again.read()) == (304, b"")
    for address in await loaded(client):
        assert "immutable" in (await client.get(address)).headers["Cache-Control"]


async def test_the_page_knows_how_long_a_message_may_be_and_is_another_one_with_another_limit(
    client: Client,
) -> None:
    page = await client.get("/")
    assert '<meta name="max-message-bytes" content="65536">' in await page.text()
    app = web.Application()
    Page(MAX_BYTES + 1).register(app)
    async with TestClient(TestServer(app)) as other:
        again = await other.get("/", headers={"If-None-Match": page.headers["ETag"]})
        assert again.status == 200


async def test_who_takes_it_gets_it_compressed(client: Client) -> None:
    for address in await loaded(client):
        plain = await client.get(address, headers=PLAIN)
        assert "Content-Encoding" not in plain.headers
        async with client.get(address, headers={"Accept-Encoding": "br, gzip"}) as zipped:
            assert await zipped.read() == await plain.read()


async def test_another_file_is_another_version(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<html>{version}{modules}</html>")
    (tmp_path / "a.js").write_text("1")
    before = Page(MAX_BYTES, tmp_path).version
    assert Page(MAX_BYTES, tmp_path).version == before
    (tmp_path / "a.js").write_text("2")
    assert Page(MAX_BYTES, tmp_path).version != before


async def test_what_is_no_file_of_the_page_is_not_found(client: Client) -> None:
    version = Page(MAX_BYTES).version
    for name in ("nothing.js", "../page.py", "%2e%2e/page.py", "index.html", ""):
        assert (await client.get(f"/static/{version}/{name}")).status == 404
    assert (await client.get("/static/0000000000000000/app.js")).status == 404


def test_the_whole_page_is_small() -> None:
    """What a browser loads before anything can be seen."""
    files = [gzip.compress(file.read_bytes()) for file in FOLDER.iterdir()]
    assert sum(map(len, files)) < 60_000
