"""Events out of bytes, however these are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.generator.openai.faults import Fault
from internal.generator.openai.sse import EventParser

STREAM = (
    ': hello\n\ndata: {"a": "ä✓"}\n\nevent: x\r\nid: 3\r\ndata:no space\r\n\r\n'
    "data: one\ndata: two\n\n\n\nerror: {}\n\ndata\ndata: [DONE]"
).encode()
EVENTS = ['{"a": "ä✓"}'.encode(), b"no space", b"one\ntwo", b"{}", b"[DONE]"]


@given(st.sets(st.integers(1, len(STREAM) - 1)))
def test_cuts_are_no_matter(cuts: set[int]) -> None:
    parser, events, start = EventParser(), [], 0
    for cut in [*sorted(cuts), len(STREAM)]:
        events += parser.feed(STREAM[start:cut])
        start = cut
    assert events + parser.end() == EVENTS


@given(st.lists(st.binary(max_size=40)))
def test_no_bytes_are_too_strange(pieces: list[bytes]) -> None:
    parser = EventParser()
    for piece in pieces:
        parser.feed(piece)
    parser.end()


@pytest.mark.parametrize("piece", [b"x" * 1000, b"data: " + b"x" * 1000 + b"\n", b"data: " + b"x" * 1000])
def test_an_event_has_an_end(piece: bytes) -> None:
    parser, pieces = EventParser(10_000), iter([piece] * 20)
    with pytest.raises(Fault):
        list(map(parser.feed, pieces))
    assert len(list(pieces)) >= 9


def test_the_bound_is_of_one_event_and_not_of_all() -> None:
    parser = EventParser(100)
    for _ in range(50):
        assert parser.feed(b"data: " + b"x" * 30) == []
        assert parser.feed(b"\n\n") == [b"x" * 30]
