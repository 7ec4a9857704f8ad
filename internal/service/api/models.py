"""The models of the server, as the OpenAI API has them.

Source: https://platform.openai.com/docs/api-reference/models
"""

from typing import Literal

from internal.service.api.base import Answer


class Model(Answer):
    """`created`: Unix seconds."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Answer):
    """The default one first."""

    object: Literal["list"]
    data: list[Model]
