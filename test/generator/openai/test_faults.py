"""What the answers of an upstream mean that are none."""

import pytest

from internal.generator.openai.faults import MAX_RETRY_AFTER_S, refused


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("1.5", 1.5),
        ("86400", MAX_RETRY_AFTER_S),
        ("9" * 400, MAX_RETRY_AFTER_S),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER_S),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
    ],
)
def test_no_node_is_left_alone_for_ever(told: str, seconds: float | None) -> None:
    assert refused(429, {"Retry-After": told}, b"", ()).retry_after_s == seconds
