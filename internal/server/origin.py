"""Which web pages may open a WebSocket here.

A browser sends cookies and reaches private networks for any page that asks; the Origin header is how a
server tells its own pages from strangers'. Source: RFC 6455 §10.2.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit


def is_allowed(origin: str | None, host: str, allowed: Sequence[str]) -> bool:
    """Whether a request with this Origin and Host header may be upgraded.

    `allowed` are origins such as `https://chat.example.org`, or `*`; empty: pages of the same host and
    port. Requests without an Origin do not come from a page, and pass.
    """
    if origin is None or "*" in allowed:
        return True
    if allowed:
        return origin.rstrip("/").lower() in {entry.rstrip("/").lower() for entry in allowed}
    try:
        page = urlsplit(origin)
        return page.scheme in ("http", "https") and page.netloc.lower() == host.lower()
    except ValueError:
        return False
