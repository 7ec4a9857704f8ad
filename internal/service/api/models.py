"""The models of the server, as the OpenAI API has them.

Source: https://platform.openai.com/docs/api-reference/models
"""

import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Literal

import orjson
from pydantic import Field

from internal.biz.errors import SluiceError
from internal.biz.models import Condition, ModelState, Order
from internal.service.api.base import Answer, Body
from internal.service.errors import error_body

ORDER_STREAM = (
    "Then events tell how far that is: `model.loading` (`model`, `progress`) or `model.unloading`, and in "
    "the end `model.loaded`, `model.unloaded` or `model.failed` (`model`, `error`)."
)


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
        progress = progress_of(condition) if condition is not None else None
        return cls(
            id=name, object="model", created=created, owned_by="sluice", state=state, progress=progress
        )


def progress_of(condition: Condition) -> float | None:
    """How far a load is; None when there is none."""
    return round(condition.progress, 2) if condition.state is ModelState.LOADING else None


class ModelOrder(Body):
    """`stream`: tell how far it is. Without, the answer comes when it is done."""

    stream: bool = False


class ModelTeller:
    """An order as server-sent events. Implements Teller of server/sse."""

    def __init__(self, model: str, order: Order, conditions: AsyncGenerator[Condition, None]) -> None:
        self._model = model
        self._order = order
        self._conditions = conditions

    async def next(self) -> AsyncGenerator[bytes, None]:
        told: dict[str, object] = {}
        async with contextlib.aclosing(self._conditions) as conditions:
            async for condition in conditions:
                fields = self._fields(condition) or told
                news, told = self._event(**fields) if fields != told else b"", fields
                yield news
        yield self._event(f"model.{self._order.goal}")

    def _fields(self, condition: Condition) -> dict[str, object]:
        """What is to be told of it; nothing where the goal is reached, which is told in the end."""
        if condition.state is self._order.goal:
            return {}
        if self._order is Order.UNLOAD:
            return {"kind": "model.unloading"}
        return {"kind": "model.loading", "progress": round(condition.progress, 2)}

    def encode_error(self, error: SluiceError) -> bytes:
        return self._event("model.failed", error=error_body(error))

    def _event(self, kind: object, **fields: object) -> bytes:
        data = orjson.dumps({"type": kind, "model": self._model, **fields})
        return b"event: %b\ndata: %b\n\n" % (str(kind).encode(), data)


class ModelList(Answer):
    """The default one first."""

    object: Literal["list"]
    data: list[Model]
