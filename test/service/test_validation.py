"""What is wrong with what a client sends, in one sentence."""

import json
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from internal.biz.errors import InvalidRequest, UnsupportedParameter
from internal.service.api.base import Body, timestamp
from internal.service.validation import MAX_VALUES, complaint, load_object

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(text, json_value, max_size=5), st.booleans())
def test_every_object_is_read_as_it_was_written(fields: dict[str, object], escaped: bool) -> None:
    assert load_object(json.dumps(fields, ensure_ascii=escaped).encode()) == fields


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": 1, "b": 2, "a": 1}',
        b'{"a": "x", "\\u0061": "y"}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": [{"b": 1, "b": 2}]}',
        b'{"a": ["", "", ""], "a": 1}',
        b'{"a\\"b": 1, "a\\"b": 2}',
    ],
)
def test_a_field_may_be_named_once(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="named twice"):
        load_object(data)


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (b'{"a": "\\u0000"}', "a"),
        (b'{"a": {"b": ["x", "y\\u0000"]}}', "a"),
        (b'{"a": {"b\\u0000": 1}}', "a"),
        (b'{"a\\u0000": 1}', "a\ufffd"),
    ],
)
def test_a_nul_is_refused(data: bytes, param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        load_object(data)
    assert error.value.param == param


def test_what_only_looks_like_a_nul_is_text() -> None:
    assert load_object(b'{"a": "\\\\u0000"}') == {"a": "\\u0000"}


def test_the_number_of_values_is_bounded() -> None:
    load_object(b'{"a": [' + b"0," * (MAX_VALUES - 10) + b"0]}")
    with pytest.raises(InvalidRequest, match="values"):
        load_object(b'{"a": [' + b"0," * MAX_VALUES + b"0]}")


class Example(Body):
    name: Annotated[str, Field(min_length=2, pattern="^[a-z]+$")]
    count: Annotated[int, Field(ge=1)] = 1
    inner: "Example | None" = None
    many: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "name", "name: this field is required"),
        ({"name": 1}, "name", "name: Input should be a valid string"),
        ({"name": "a"}, "name", "name: String should have at least 2 characters"),
        ({"name": "AB"}, "name", "name: this has a form that is not allowed"),
        ({"name": "ab", "count": 0}, "count", "count: Input should be greater than or equal to 1"),
        ({"name": "ab", "count": "1"}, "count", "count: Input should be a valid integer"),
        ({"name": "ab", "many": (1, "2")}, "many[1]", "many[1]: Input should be a valid integer"),
        ({"name": "ab", "inner": {"name": "ab", "count": 0}}, "inner.count", None),
        ({"name": "ab", "x" * 500: 1}, "x" * 100, None),
    ],
)
def test_a_complaint_names_the_field(fields: object, param: str, message: str | None) -> None:
    with pytest.raises(ValidationError) as error:
        Example.model_validate(fields)
    refusal = complaint(error.value)
    assert refusal.param == param
    assert message is None or refusal.message == message


def test_what_nobody_reads_is_unsupported() -> None:
    with pytest.raises(ValidationError) as error:
        Example.model_validate({"name": "ab", "sudo": True})
    refusal = complaint(error.value)
    assert isinstance(refusal, UnsupportedParameter)
    assert refusal.message == "sudo is not supported here"


def test_what_is_no_object_at_all_has_no_field() -> None:
    with pytest.raises(ValidationError) as error:
        Example.model_validate(5)
    assert complaint(error.value).param is None


@pytest.mark.parametrize(
    ("unix_s", "text"),
    [(0, "1970-01-01T00:00:00Z"), (1_795_284_000.999, "2026-11-21T18:00:00Z")],
)
def test_times_are_utc_to_the_second(unix_s: float, text: str) -> None:
    assert timestamp(unix_s) == text
