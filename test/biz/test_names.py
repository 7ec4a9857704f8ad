"""What users may be called, and what passwords may be."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.biz.errors import InvalidRequest
from internal.biz.names import (
    as_hashed,
    checked_email,
    checked_password,
    checked_username,
    file_name,
    username_key,
    visible_line,
)


@pytest.mark.parametrize("name", ["ada", "Ada", "a.b-c_d@e", "ädä", "Ελένη", "Наталья", "小林さん", "x" * 64])
def test_a_name_is_of_any_language(name: str) -> None:
    assert checked_username(name) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ada", "ADA"),
        ("straße", "STRASSE"),
        ("Ａｄａ", "ada"),
        ("cafe\u0301", "CAFÉ"),
        ("ﬁnn", "FINN"),
        ("Σίσυφος", "ΣΊΣΥΦΟΣ"),
        ("Kelvin", "kelvin"),
    ],
)
def test_names_that_differ_only_in_case_or_form_are_the_same(one: str, other: str) -> None:
    assert username_key(checked_username(one)) == username_key(checked_username(other))


@pytest.mark.parametrize(
    "name",
    [
        *("", "ab", "x" * 65, "ß" * 40, "ﷺ" * 10, "x" * 10_000_000),
        *("a da", " ada", "ada ", "ada\n", "a\tda", "a\u00a0da", "a\u3000da", "a\u00a8da"),
        *("ada\x00", "a\x1bda", "a\x7fda", "a\u200bda", "a\u200dda", "a\u202eda", "a\u2066da", "\ufeffada"),
        *("a\u00adda", "a\u034fda", "a\u3164da", "a\u115fda", "a\uffa0da", "ada\ufe0f", "a\u2800da"),
        *("ada\U000e0101", "a\ud800da", "a\ue000da", "a\uffffda", "\u0301ada", "a\U000e0041da", "a\u2028da"),
    ],
)
def test_what_cannot_be_told_from_another_name_is_none(name: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        checked_username(name)
    assert error.value.param == "username"
    assert len(error.value.message) < 200


@given(st.text(max_size=80))
def test_a_checked_name_is_its_own_normal_form_and_fits_its_columns(text: str) -> None:
    try:
        name = checked_username(text)
    except InvalidRequest:
        return
    key = username_key(name)
    assert checked_username(name) == name
    assert username_key(key) == key
    assert name.isprintable()
    assert 3 <= len(name) <= 64
    assert len(key) <= 64


@pytest.mark.parametrize("email", ["a@b", "ada@example.org", "a.b+c@ü.example", '"@"@x', "x" * 252 + "@b"])
def test_an_email_address_has_something_on_both_sides(email: str) -> None:
    assert checked_email(email) == email


@pytest.mark.parametrize(
    "email",
    ["", "ada", "@b", "a@", "a b@c", "a@b\n", "a@b\r\nBcc: x", "a@\x00", "a@\ud800", "x" * 253 + "@b"],
)
def test_what_is_no_email_address_is_refused(email: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        checked_email(email)
    assert error.value.param == "email"


@pytest.mark.parametrize("password", ["12345678", "x" * 1024, "ä" * 8, " \t\n\x00    ", "🙂" * 1024])
def test_a_password_is_anything_of_8_to_1024_characters(password: str) -> None:
    assert checked_password(password) == password


@pytest.mark.parametrize("password", ["", "1234567", "🙂" * 7, "x" * 1025, "1234567\ud800", "x" * 10_000_000])
def test_a_password_that_is_too_short_too_long_or_no_text_is_refused(password: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        checked_password(password, "new_password")
    assert error.value.param == "new_password"
    assert password not in error.value.message or not password


def test_every_keyboard_types_the_same_password() -> None:
    assert as_hashed(unicodedata.normalize("NFD", "pässword")) == as_hashed("pässword")


def test_the_longest_password_is_small() -> None:
    hashed = as_hashed("\ufdfa" * 1024)
    assert hashed is not None
    assert len(hashed.encode()) < 1 << 16


@pytest.mark.parametrize(
    "text",
    [
        *("A trip to Lisbon", "Äpfel 🍏", "旅行", "cafe\u0301", "“why?”", "a/b & <c>"),
        *("I ❤\ufe0f you", "1\ufe0f\u20e3", "👩\u200d💻", "❤\ufe0f\u200d🔥", "👍🏽", "🇵🇹", "\U0001fae8"),
        *("می\u200cخواهم", "ශ්\u200dරී"),
    ],
)
def test_what_can_be_seen_stays(text: str) -> None:
    assert visible_line(text) == text


@pytest.mark.parametrize(
    "char",
    [
        *("\0", "\x07", "\x1b", "\x7f", "\x9b", "\u00ad", "\u034f", "\u115f", "\u180e", "\u3164", "\u2800"),
        *("\u200b", "\u200c", "\u200d", "\u200e", "\u200f", "\u2060", "\ufeff", "\ufe0f", "\ufff9"),
        *("\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"),
        *("\U000e0041", "\U000e0101", "\ud800", "\ue000", "\uffff"),
    ],
)
def test_what_cannot_is_dropped(char: str) -> None:
    assert visible_line(f"{char}a {char} {char}b{char}c{char}") == "a bc"
    assert visible_line(char * 3) == ""


@given(st.text(max_size=80))
def test_a_visible_line_stays_as_it_is(text: str) -> None:
    line = visible_line(text)
    assert visible_line(line) == line
    assert line == " ".join(line.split())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("report.txt", "report.txt"),
        ("  two  words.md ", "two words.md"),
        ("grüße 🙂.txt", "grüße 🙂.txt"),
        ("/etc/passwd", "passwd"),
        ("../../secret.txt", "secret.txt"),
        ("C:\\Users\\ada\\notes.txt", "notes.txt"),
        ("a\r\nSet-Cookie: x.txt", "a Set-Cookie: x.txt"),
        ("exe\u202etxt.tab", "exetxt.tab"),
        ("nul\0\x1b.txt", "nul.txt"),
        ("half \ud83d.txt", "half .txt"),
        ("", "file"),
        (".", "file"),
        ("..", "file"),
        ("dir/", "file"),
        ("\u200b", "file"),
        (".gitignore", ".gitignore"),
        ("x" * 300 + ".txt", "x" * 251 + ".txt"),
        ("x" * 300, "x" * 255),
        ("x." + "y" * 300, "x." + "y" * 253),
        ("/" + "x" * 1_000_000, "x" * 255),
    ],
)
def test_what_a_file_is_called(text: str, name: str) -> None:
    assert file_name(text) == name
