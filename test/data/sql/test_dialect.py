"""Statements that each database wants in words of its own."""

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table
from sqlalchemy.dialects import registry

from internal.data.sql.dialect import insert_or_ignore

TABLE = Table("pets", MetaData(), Column("id", Integer, primary_key=True), Column("name", String(9)))


@pytest.mark.parametrize(
    ("dialect", "end"),
    [
        ("sqlite", "ON CONFLICT DO NOTHING"),
        ("postgresql", "ON CONFLICT DO NOTHING"),
        ("mysql", "ON DUPLICATE KEY UPDATE id = id"),
    ],
)
def test_every_database_is_told_in_its_own_words_to_leave_a_row_alone(dialect: str, end: str) -> None:
    statement = insert_or_ignore(TABLE).compile(dialect=registry.load(dialect)())
    assert str(statement).endswith(f") {end}")


def test_two_tables_do_not_share_a_compiled_statement() -> None:
    other = Table("toys", MetaData(), Column("key", Integer, primary_key=True))
    one, two = insert_or_ignore(TABLE), insert_or_ignore(other)
    assert one._generate_cache_key() == insert_or_ignore(TABLE)._generate_cache_key() is not None
    assert one._generate_cache_key() != two._generate_cache_key()
