"""Strings that answers must not have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.biz.errors import GenerationFailed
from internal.generator.exllamav2.bans import MAX_REWINDS, BannedStrings, Heard


def feed(bans: BannedStrings, *texts: str) -> str:
    """What is said of texts that come one by one, each as a token."""
    said = [heard.text for text in texts for heard in bans.feed(Heard(text, [ord(text[0])]))]
    return "".join(said)


def test_what_may_become_a_banned_string_is_held_back_until_it_does_not() -> None:
    bans = BannedStrings(["cats"])
    assert feed(bans, "I love ", "ca", "t") == "I love "
    assert feed(bans, "tle") == "cattle"
    assert feed(bans, " c") == ""
    assert [heard.text for heard in bans.finish()] == [" c"]


def test_a_banned_string_is_taken_back_and_its_beginning_is_blocked() -> None:
    bans = BannedStrings(["Cats"])
    assert feed(bans, "I love ", "CA") == "I love "
    assert feed(bans, "ts!") == ""
    assert bans.rewound == 2
    assert bans.blocked == {ord("C")}
    assert feed(bans, "c") == ""  # another token for the same beginning
    assert feed(bans, "ats") == ""
    assert bans.blocked == {ord("C"), ord("c")}
    assert feed(bans, "dogs") == "dogs"
    assert bans.blocked == frozenset()


def test_a_token_that_ends_before_and_begins_a_banned_string_is_taken_back_whole() -> None:
    bans = BannedStrings(["cats"])
    assert feed(bans, "I", " love ca") == "I"
    assert feed(bans, "ts") == ""
    assert bans.rewound == 2
    assert bans.blocked == {ord(" ")}


def test_who_bans_everything_gets_an_end() -> None:
    bans = BannedStrings(["a"])
    for _ in range(MAX_REWINDS):
        bans.feed(Heard("a", [1]))
    with pytest.raises(GenerationFailed, match="nothing to say"):
        bans.feed(Heard("a", [1]))


@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=20))
def test_what_is_said_has_no_banned_string_and_loses_nothing_else(texts: list[str]) -> None:
    bans, said, kept = BannedStrings(["ab", "cc"]), list[str](), list[str]()
    for text in texts:
        kept.append(text)
        said += [heard.text for heard in bans.feed(Heard(text, [1]))]
        del kept[len(kept) - bans.rewound :]
    said += [heard.text for heard in bans.finish()]
    assert said == kept
    assert "ab" not in "".join(said)
    assert "cc" not in "".join(said)
