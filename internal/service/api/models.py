"""The models of the server, as the OpenAI API has them.

Source: https://platform.openai.com/docs/api-reference/models
"""

from typing import Annotated, Literal

from pydantic import Field

from internal.biz.models import Condition, ModelState
from internal.service.api.base import Answer, Body


class Model(Answer):
    """`created`: Unix seconds. `state` is our own: where the model stands, as far as that is known, and while
    it is being loaded `progress`, 0 to 1. What is asked of a model that is not loaded waits."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    state: Annotated[ModelState | None, Field(exclude_if=lambda value: value is None)] = None
    progress: Annotated[float | None, Field(exclude_if=lambda value: value is None)] = None

    @classmethod
    def of(cls, name: str, created: int, condition: Condition | None) -> "Model":
        """The model; `condition`: how it is, where that is known."""
        state = condition.state if condition is not None else None
        progress = _progress(condition) if condition is not None else None
        return cls(
            id=name, object="model", created=created, owned_by="sluice", state=state, progress=progress
        )


def _progress(condition: Condition) -> float | None:
    """How far a load is; None when there is none."""
    return round(condition.progress, 2) if condition.state is ModelState.LOADING else None


class ModelOrder(Body):
    """`stream`: tell how far it is. Without, the answer comes when it is done."""

    stream: bool = False


class ModelList(Answer):
    """The default one first."""

    object: Literal["list"]
    data: list[Model]
