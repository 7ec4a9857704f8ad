"""The page about the API, in a browser."""

from typing import TYPE_CHECKING

from playwright.async_api import expect

if TYPE_CHECKING:
    from conftest import Visit

    from test.conftest import Server


async def test_the_api_is_described_to_somebody_with_a_browser(server: "Server", visit: "Visit") -> None:
    visitor = await visit(server, "/docs")
    await expect(visitor.page.get_by_text("/v1/responses", exact=True).first).to_be_visible()
