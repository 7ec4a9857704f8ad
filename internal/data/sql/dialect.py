"""What SQLite, PostgreSQL and MySQL say in words of their own. Knows SQL, not what is stored."""

from typing import Any

from sqlalchemy import ColumnElement, Table, func, insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ClauseElement, Insert
from sqlalchemy.sql.base import SyntaxExtension
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal

from internal.data.sql.types import storable


def insert_or_ignore(table: Table) -> Insert:
    """An insert that leaves a row alone which is there already, by its primary key or another unique one."""
    return insert(table).ext(_OrIgnore(next(iter(table.primary_key))))


class _OrIgnore(SyntaxExtension, ClauseElement):
    _traverse_internals = [("column", InternalTraversal.dp_clauseelement)]  # noqa: RUF012

    def __init__(self, column: ColumnElement[Any]) -> None:
        self.column = column

    def apply_to_insert(self, insert_stmt: Insert) -> None:
        insert_stmt.apply_syntax_extension_point(self.append_replacing_same_type, "post_values")


@compiles(_OrIgnore)
def _standard(element: _OrIgnore, compiler: SQLCompiler, **options: Any) -> str:
    return "ON CONFLICT DO NOTHING"


@compiles(_OrIgnore, "mysql", "mariadb")
def _mysql(element: _OrIgnore, compiler: SQLCompiler, **options: Any) -> str:
    # Not INSERT IGNORE: that lets pass what is wrong with a row, too.
    name = compiler.preparer.format_column(element.column)
    return f"ON DUPLICATE KEY UPDATE {name} = {name}"


def contains(column: ColumnElement[str], word: str, dialect: str) -> ColumnElement[bool]:
    """Whether `word` occurs in the column, whatever the case. Each of its characters stands for itself."""
    word = storable(word)
    if dialect != "sqlite":
        position = func.strpos if dialect == "postgresql" else func.instr
        return position(func.lower(column), func.lower(word)) > 0
    if word.isascii():
        # Its own `lower` knows these only, but needs no Python for each row.
        return func.instr(func.lower(column), word.lower()) > 0
    return func.contains_folded(column, word.casefold()) == 1


def contains_folded(text: str, word: str) -> bool:
    """For SQLite, which is told of it when a connection opens. `word` is folded already."""
    return word in text.casefold()
