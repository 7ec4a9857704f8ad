"""How far an operator's order is, as server-sent events: a dialect of our own."""

import contextlib
from collections.abc import AsyncGenerator

import orjson

from internal.biz.errors import SluiceError
from internal.biz.models import Condition, Order
from internal.service.errors import error_body

STREAM = (
    "Then events tell how far that is: `model.loading` (`model`, `progress`) or `model.unloading`, and in "
    "the end `model.loaded`, `model.unloaded` or `model.failed` (`model`, `error`)."
)


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
