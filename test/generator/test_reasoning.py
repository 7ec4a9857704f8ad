"""`<think>…</think>`, wherever chunks are cut."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from internal.biz.events import ReasoningDelta, TextDelta
from internal.biz.generation import Job
from internal.biz.models import Settings
from internal.generator.prompt import Piece
from internal.generator.reasoning import ReasoningSplitter, resume


def split(*chunks: str) -> tuple[str, str]:
    """(reasoning, text) of a stream."""
    splitter = ReasoningSplitter()
    deltas = [delta for chunk in chunks for delta in splitter.feed(chunk)]
    deltas += splitter.finish()
    assert all(deltas), "an empty delta"
    kinds = [type(delta) for delta in deltas]
    assert kinds == sorted(kinds, key=[ReasoningDelta, TextDelta].index), "text before reasoning"
    thought = "".join(delta for delta in deltas if type(delta) is ReasoningDelta)
    return thought, "".join(delta for delta in deltas if type(delta) is TextDelta)


STREAMS = [
    ("<think>hm</think>so", ("hm", "so")),
    ("<think>\nhm\n</think>\n\nso", ("hm\n", "so")),
    ("<think>\n\n</think>\n\nso", ("", "so")),
    ("<think></think>so", ("", "so")),
    ("\n <think>hm</think>so", ("hm", "so")),
    ("so", ("", "so")),
    ("", ("", "")),
    ("  so", ("", "  so")),
    ("so <think>is</think> this", ("", "so <think>is</think> this")),
    ("<thin", ("", "<thin")),
    ("<thinking>so", ("", "<thinking>so")),
    ("<think>hm", ("hm", "")),
    ("<think>hm</thi", ("hm</thi", "")),
    ("<think>a < b</think>so", ("a < b", "so")),
    ("<think>a </think", ("a </think", "")),
    ("<think>a</think></think>so", ("a", "</think>so")),
    ("<think>a</</think>so", ("a</", "so")),
    ("<think>hm</think>so\n", ("hm", "so\n")),
    ("<think>hm</think>\n", ("hm", "")),
]


@pytest.mark.parametrize(("stream", "expected"), STREAMS)
def test_a_stream_in_one_piece(stream: str, expected: tuple[str, str]) -> None:
    assert split(stream) == expected


@pytest.mark.parametrize(("stream", "expected"), STREAMS)
def test_a_stream_one_character_at_a_time(stream: str, expected: tuple[str, str]) -> None:
    assert split(*stream) == expected


pieces = st.sampled_from(["<think>", "</think>", "<", "</", "think>", "\n", " ", "a", "so "])


@given(st.lists(pieces, max_size=8).map("".join), st.lists(st.integers(0, 60), max_size=6))
@example("<think>\nhm</think>\nso", [7])
def test_any_cutting_gives_the_same(stream: str, cuts: list[int]) -> None:
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[start:end] for start, end in pairwise(places)]
    assert split(*chunks) == split(stream) == split(*stream)


@given(st.text(alphabet="<>/thinka ", max_size=30))
def test_text_without_the_tag_is_left_alone(stream: str) -> None:
    if not stream.lstrip().startswith("<think>"):
        assert split(*stream) == ("", stream)


@given(st.lists(pieces, max_size=8).map("".join))
def test_text_is_held_back_only_while_it_may_be_a_tag(stream: str) -> None:
    splitter = ReasoningSplitter()
    told = sum(len(delta) for character in stream for delta in splitter.feed(character))
    seen = split(*stream)
    held = sum(map(len, splitter.finish()))
    assert told + held == sum(map(len, seen))
    if stream.strip():
        assert held <= 7 + len(stream) - len(stream.lstrip())


def test_a_stream_may_begin_in_the_middle_of_a_thought() -> None:
    splitter = ReasoningSplitter("thinking")
    assert splitter.thinking
    assert splitter.feed("hm</think>\n\nyes") == [ReasoningDelta("hm"), TextDelta("yes")]
    assert not splitter.thinking


# ── going on ─────────────────────────────────────────────────────────────────────────────────────

PLAIN = (Piece("<assistant>", True),)
OPENED = (Piece("<assistant><think>\n", True),)
BARE = (Piece("<assistant><think>", True),)


def job(reasoning: str = "", emitted: str = "", *, answering: bool = False) -> Job:
    return Job("r", (), Settings(), emitted, reasoning, answering=answering)


@pytest.mark.parametrize(
    ("prompt", "one", "expected"),
    [
        (PLAIN, job(), ""),
        (PLAIN, job("hm"), "<think>\nhm"),
        (PLAIN, job("hm\n", answering=True), "<think>\nhm\n</think>\n\n"),
        (PLAIN, job("hm\n", "so"), "<think>\nhm\n</think>\n\nso"),
        (PLAIN, job("", "so"), "so"),
        (OPENED, job(), ""),
        (OPENED, job("hm"), "hm"),
        (OPENED, job("hm\n", answering=True), "hm\n</think>\n\n"),
        (OPENED, job("hm\n", "so"), "hm\n</think>\n\nso"),
        (OPENED, job("", "so"), "\n</think>\n\nso"),
        (BARE, job(), ""),
        (BARE, job("hm"), "\nhm"),
        ((), job("", "so"), "so"),
    ],
)
def test_what_was_said_stands_behind_the_prompt_as_the_model_wrote_it(
    prompt: tuple[Piece, ...], one: Job, expected: str
) -> None:
    said, _ = resume(prompt, one)
    assert "".join(piece.text for piece in said) == expected


def test_what_was_said_holds_no_special_tokens() -> None:
    said, _ = resume(PLAIN, job("</think>", "<|im_end|>"))
    assert [piece.text for piece in said if not piece.special] == ["</think>", "<|im_end|>"]


def test_a_prompt_that_ends_with_a_typed_tag_opens_nothing() -> None:
    said, splitter = resume((Piece("<think>", False),), job())
    assert said == []
    assert splitter.feed("so") == [TextDelta("so")]


@pytest.mark.parametrize(
    ("prompt", "one", "rest", "expected"),
    [
        (PLAIN, job(), "<think>\nhm</think>\n\nso", [ReasoningDelta("hm"), TextDelta("so")]),
        (OPENED, job(), "\nhm</think>\n\nso", [ReasoningDelta("hm"), TextDelta("so")]),
        # A newline at the beginning of a thought is dropped; one in the middle belongs to it.
        (PLAIN, job("hm"), "\nhm</think>\n\nso", [ReasoningDelta("\nhm"), TextDelta("so")]),
        (PLAIN, job("hm", answering=True), "\nso", [TextDelta("so")]),
        (PLAIN, job("hm", "so"), "\n<think>", [TextDelta("\n<think>")]),
        (OPENED, job("", "so"), "\nso", [TextDelta("\nso")]),
    ],
)
def test_what_is_said_next_is_told_from_what_was_said(
    prompt: tuple[Piece, ...], one: Job, rest: str, expected: list[ReasoningDelta | TextDelta]
) -> None:
    _, splitter = resume(prompt, one)
    assert splitter.feed(rest) == expected
