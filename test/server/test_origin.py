"""Which pages may open a WebSocket."""

import pytest

from internal.server.origin import is_allowed


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "chat.example"),
        ("https://chat.example", "chat.example"),
        ("http://chat.example", "chat.example"),
        ("http://localhost:8080", "localhost:8080"),
        ("HTTP://LocalHost:8080", "localhost:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_pages_of_the_same_host_may(origin: str | None, host: str) -> None:
    assert is_allowed(origin, host, [])


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "chat.example"),
        ("https://chat.example.evil", "chat.example"),
        ("https://evil-chat.example", "chat.example"),
        ("https://chat.example:8443", "chat.example"),
        ("http://localhost:3000", "localhost:8080"),
        ("http://chat.example@evil.example", "chat.example"),
        ("null", "chat.example"),
        ("", "chat.example"),
        ("", ""),
        ("file://", ""),
        ("chrome-extension://chat.example", "chat.example"),
        ("chat.example", "chat.example"),
        ("https://[", "["),
        ("http://[::1", "[::1"),
    ],
)
def test_others_may_not(origin: str, host: str) -> None:
    assert not is_allowed(origin, host, [])


def test_a_list_allows_exactly_what_is_in_it() -> None:
    allowed = ["https://app.example", "http://localhost:3000/"]
    assert is_allowed("https://app.example", "chat.example", allowed)
    assert is_allowed("https://APP.example", "chat.example", allowed)
    assert is_allowed("http://localhost:3000", "chat.example", allowed)
    assert is_allowed(None, "chat.example", allowed)
    assert not is_allowed("http://app.example", "chat.example", allowed)
    assert not is_allowed("https://app.example.evil", "chat.example", allowed)
    assert not is_allowed("https://chat.example", "chat.example", allowed)
    assert not is_allowed("null", "chat.example", allowed)


@pytest.mark.parametrize("origin", ["https://anything", "null", "", None])
def test_a_star_allows_all(origin: str | None) -> None:
    assert is_allowed(origin, "chat.example", ["https://app.example", "*"])
