"""JSON Schemas as grammars: what an answer must be, and what cannot be followed."""

import time
from typing import Any

import pytest

from internal.biz.errors import InvalidSchema
from internal.generator.schemas import Grammar, check, json_rule, pattern_rule

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def grammar(schema: dict[str, Any], *, strict: bool = True) -> Grammar:
    param = "response_format"
    check(schema, param)
    return Grammar(["json"], f"json: {json_rule(schema, strict=strict)}\n", param)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def test_an_answer_is_json_of_the_schema_in_one_line() -> None:
    assert grammar(PERSON).accepts('{"name": "Ä\\n", "age": 1}')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{\n"name": "a", "age": 1}',
        '{"name": "a", "age": 1}\n',
        '{"name": "a"}',
        '{"name": "a", "age": "1"}',
        '{"name": "a", "age": 1, "x": 1}',
        "Sure: {}",
    ],
)
def test_an_answer_that_is_something_else_is_noticed(text: str) -> None:
    assert not grammar(PERSON).accepts(text)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "fnord"},
        {"$ref": "#/nowhere"},
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"type": "string", "pattern": "^(a$"},
        {"type": "string", "pattern": r"^(a)\1$"},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"not": {"type": "string"}},
        {"type": "array", "uniqueItems": True},
        {"x": float("nan"), "type": 5},
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_by_name(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidSchema) as error:
        grammar(schema)
    assert (error.value.code, error.value.param) == ("invalid_json_schema", "response_format")
    assert "llguidance" not in error.value.message


def test_of_a_pattern_it_is_told_what_is_wrong() -> None:
    with pytest.raises(InvalidSchema, match=r"regex parse error: unclosed group$"):
        grammar({"type": "string", "pattern": "("})


def test_what_is_not_strict_leaves_out_what_is_not_known() -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"type": "integer"}}
    assert grammar(schema, strict=False).accepts("[1, 1]")
    assert not grammar(schema, strict=False).accepts('["1"]')


def test_one_of_is_taken_for_any_of() -> None:
    schema = {"oneOf": [{"type": "integer"}, {"type": "null"}]}
    assert grammar(schema).accepts("null")
    assert not grammar(schema).accepts('"null"')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"const": 1}, "minItems": 10**9},
        {"type": "array", "maxItems": 10**9},
        {"type": "array", "maxItems": 1e300},
        {"type": "array", "maxItems": 10**400},
        {"type": "integer", "multipleOf": 10**400 + 1},
        {"anyOf": [{"type": "array", "maxItems": 400}] * 20},
        {"$defs": {"a": {"type": "array", "maxItems": 400}}, "anyOf": [{"$ref": "#/$defs/a"}] * 20},
        {"type": "integer", "multipleOf": 999983},
        {"type": "number", "multipleOf": 0.0999983},
        {"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]},
        {"anyOf": [{"const": str(n) * 50} for n in range(2000)]},
        {"type": "string", "pattern": "(a{1000}){1000}"},
        {"type": "object", "patternProperties": {"^(a{1000}){1000}$": {}}},
        nested(100),
        nested(5000),
        {"x-guidance": {"whitespace_pattern": "(a{1,1000}){1,1000}"}, "type": "array", "minItems": 10**6},
    ],
)
def test_a_hostile_schema_is_refused_at_once(schema: dict[str, Any]) -> None:
    begin = time.thread_time()
    with pytest.raises(InvalidSchema):
        grammar(schema)
    assert time.thread_time() - begin < 1.0


def test_settings_of_the_library_are_not_the_clients_to_choose() -> None:
    schema = {"type": "array", "x-guidance": {"lenient": True, "item_separator": ";"}}
    assert grammar(schema).accepts("[1, 2]")
    assert not grammar(schema).accepts("[1;2]")


def test_the_answer_may_stand_behind_a_thought() -> None:
    text = grammar({"type": "integer"})
    assert "thought" not in text.behind(None)
    assert "<think>" in text.behind("<think>")
    assert "<think>" not in text.behind("")


# ── patterns ─────────────────────────────────────────────────────────────────────────────────────


def pattern(expression: str) -> Grammar:
    param = "response_format"
    return Grammar(["pattern"], f"pattern: {pattern_rule(expression, param)}\n", param)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (r"\d{3}-\d{4}", "555-1234"),
        (r"^\d{3}$", "555"),
        ("^yes|no$", "no"),
        ("a/b", "a/b"),
        (r"a\/b", "a/b"),
        (r"[/]\\", "/\\"),
        ("//", "//"),
        ("/*", ""),
        ("x\nstart: /y/\n", "x\nstart: /y/\n"),
        ("(?i)ja|nein", "NEIN"),
        ("[äöü]+", "üü"),
    ],
)
def test_a_whole_answer_is_of_the_pattern(expression: str, text: str) -> None:
    assert pattern(expression).accepts(text)
    assert not pattern(expression).accepts(f"{text}?")
    assert not pattern(expression).accepts(f"?{text}")


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("(a", "unclosed group"),
        (r"(a)\1", "backreferences are not supported"),
        ("(?=a)b", "look-around"),
        (r"\bword", "lookarounds not supported"),
        ("a\\", "it ends with half of an escape"),
        ("a\\\\\\", "it ends with half of an escape"),
        ("(" * 1000 + ")" * 1000, "nested"),
    ],
)
def test_a_pattern_that_cannot_be_followed_is_refused_by_name(expression: str, says: str) -> None:
    with pytest.raises(InvalidSchema, match=f"^the regular expression cannot be followed: .*{says}") as error:
        pattern(expression)
    assert (error.value.code, error.value.param) == ("invalid_pattern", "response_format")


@pytest.mark.parametrize(
    "expression",
    [
        "a{5001}",
        "a{3000}b{3000}",
        "a{3000}|b{3000}",
        "(a{1000}){1000}",
        "((a{100}){100}){100}",
        "(?:(?<n>a{100}b)*?){1,\n100}",
        "a{100}{100}",
        "a{100}+{100}",
        "[[a]{2}({]{5001}",
        "[])]{5001}",
        "[^]a]{5001}",
        r"[\]]{5001}",
        r"\){5001}",
        r"\p{L}{5001}",
        r"\pL{ 5001 }",
        "(" * 100 + "a" + "){4294967295}" * 100,
    ],
)
def test_a_pattern_that_repeats_too_often_is_refused(expression: str) -> None:
    with pytest.raises(InvalidSchema, match="cannot be followed: its counts") as error:
        pattern(expression)
    assert (error.value.code, error.value.param) == ("invalid_pattern", "response_format")


def test_nobody_hides_counts_behind_comments() -> None:
    with pytest.raises(InvalidSchema, match="it has the flag x"):
        pattern("(?ix)(a{1000}#\n){1000}")


@pytest.mark.parametrize(
    "expression",
    ["a{5000}", "(a{70}){70}", "a{2500}|b{2500}", r"\x{9999}", r"\{5001}", "[{5001}]", "(?i-x)a", "(?<x>a)"],
)
def test_a_pattern_may_repeat_as_often(expression: str) -> None:
    pattern(expression)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("(a?){2000}a{2000}", "a" * 3000),
        ("(.*a.{12}){3}", "ab" * 1000),
        ("(a*)*b", "a" * 5000),
        (r"[\p{L}]{1,500}x", "ä" * 600),
    ],
)
def test_a_hostile_pattern_takes_no_time(expression: str, text: str) -> None:
    begin = time.thread_time()
    pattern(expression).accepts(text)
    assert time.thread_time() - begin < 1.0
