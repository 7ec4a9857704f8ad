"""Types of columns. Knows what a database cannot keep."""

from typing import Any

from sqlalchemy import Dialect, String, Text
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.types import TypeDecorator, TypeEngine


def storable(text: str) -> str:
    """`text` with � for what PostgreSQL refuses, a NUL, and what none keeps, half of a surrogate pair."""
    text = text.replace("\0", "�")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Words(TypeDecorator[str]):
    """What people and models say, of any length."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable(value)

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        # A TEXT of MySQL ends at 64 KiB.
        return LONGTEXT() if dialect.name in ("mysql", "mariadb") else super().load_dialect_impl(dialect)


class Line(TypeDecorator[str]):
    """A few words, at most as many characters as it is made with."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable(value)
