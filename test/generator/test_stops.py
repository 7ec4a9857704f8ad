"""Stop strings: the answer ends before the first one, wherever it is cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.generator.stops import StopFilter


def said(stops: tuple[str, ...], *chunks: str) -> str:
    filter_ = StopFilter(stops)
    return "".join(map(filter_.feed, chunks)) + filter_.finish()


@given(
    st.text("ab\n", max_size=20),
    st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(0, 20), max_size=5),
)
def test_an_answer_ends_before_the_first_stop_string_however_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = [0, *sorted(cuts), len(text)]
    chunks = [text[start:end] for start, end in itertools.pairwise(edges)]
    # Of several, the one that is complete first.
    found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    assert said(tuple(stops), *chunks) == text[: min(found, default=(0, len(text)))[1]]


def test_what_may_become_a_stop_string_is_held_back_and_no_more() -> None:
    filter_ = StopFilter(("END", "\n\n"))
    assert filter_.feed("the E") == "the "
    assert filter_.feed("N") == ""
    assert filter_.feed("emy\n") == "ENemy"
    assert not filter_.stopped
    assert filter_.feed("\nmore") == ""
    assert filter_.stopped
    assert filter_.feed("and more") == filter_.finish() == ""


@pytest.mark.parametrize("cut", range(1, 12))
def test_an_attempt_that_goes_on_behind_what_was_said_finds_the_same_stop_string(cut: int) -> None:
    text = "aab abab END"
    lost = StopFilter(("abab",))
    emitted = lost.feed(text[:cut])
    # What was held back is lost, and the model writes it again.
    assert emitted + said(("abab",), text[len(emitted) :]) == "aab "
