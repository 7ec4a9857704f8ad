"""What all bodies of the REST API have in common."""

import re
from datetime import UTC, datetime
from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from internal.biz.errors import InvalidRequest
from internal.biz.ids import ID_PATTERN
from internal.service.validation import MAX_VALUES, complaint


class Body(BaseModel):
    """What a client sends as JSON: exact types, and nothing that nobody reads."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_values: ClassVar[int] = MAX_VALUES
    """How many values it may hold, in all its depth."""

    @classmethod
    def refusal(cls, error: ValidationError) -> InvalidRequest:
        """What is told who sent something else."""
        return complaint(error)


class Query(BaseModel):
    """What a client sends behind the `?`: text, each name once."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _whole(value: object) -> object:
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,9}", value):
            raise ValueError("write a whole number")
        return int(value)
    return value


WHOLE_NUMBER = BeforeValidator(_whole)
"""For an int in a query, where everything is text."""

Id = Annotated[str, Field(pattern=f"^{ID_PATTERN}$", examples=["conv_019ab2c4d1f0a1b2c3d4e5f6a7b8c9d0"])]

Timestamp = Annotated[
    str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-11-21T18:00:00Z"])
]
"""RFC 3339, UTC."""


def timestamp(unix_s: float) -> str:
    """A Timestamp of Unix seconds."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
