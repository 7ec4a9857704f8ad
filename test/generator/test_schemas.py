"""JSON Schemas as grammars: what an answer must be, and what cannot be followed."""

import time
from typing import Any

import pytest

from internal.biz.errors import InvalidSchema
from internal.generator.schemas import Grammar, check, json_rule

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
