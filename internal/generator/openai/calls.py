"""Function calls, out of the pieces that a stream brings."""

from typing import Any

import orjson

from internal.biz.ids import new_id
from internal.biz.models import ToolCall
from internal.generator.openai.faults import broken

MAX_CALLS = 128
MAX_CALLS_CHARS = 1 << 20
MAX_ID_CHARS = 256


class CallCollector:
    """Bound: MAX_CALLS, and MAX_CALLS_CHARS of them all; raises Fault beyond."""

    def __init__(self) -> None:
        self._calls: list[_Pieces] = []
        self._by_index: dict[Any, _Pieces] = {}
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, delta: dict[str, Any]) -> None:
        """A piece of the call with this `index`; without one, of the last call, unless it has a name."""
        function = delta.get("function") or {}
        call_id, name = delta.get("id") or "", function.get("name") or ""
        index = delta.get("index")
        call = self._by_index.get(index)
        # Some number all calls 0, but their ids differ; some do not number them.
        is_next = name if index is None else call_id and call is not None and call_id != call.id != ""
        if call is None or is_next:
            call = self._begin(index)
        call.id = call.id or str(call_id)
        call.name += name
        arguments = function.get("arguments")
        if arguments is not None and not isinstance(arguments, str):  # they should be text, and are JSON
            arguments = orjson.dumps(arguments).decode()
        call.arguments.append(arguments or "")
        self._size += len(call.arguments[-1]) + len(name)
        if self._size > MAX_CALLS_CHARS:
            raise broken("the model's server sends a function call without end")

    def _begin(self, index: Any) -> "_Pieces":
        if len(self._calls) == MAX_CALLS:
            raise broken(f"the model wants more than {MAX_CALLS} function calls at once")
        call = _Pieces()
        self._calls.append(call)
        self._by_index[index] = call
        return call

    def calls(self, *, whole_only: bool) -> list[ToolCall]:
        """All of them. `whole_only`: not the one that the end of the answer has cut."""
        calls = [call.joined() for call in self._calls if call.name]
        return [call for call in calls if not whole_only or _is_json(call.arguments)]


class _Pieces:
    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    def joined(self) -> ToolCall:
        is_id = 0 < len(self.id) <= MAX_ID_CHARS and self.id.isprintable()
        arguments = "".join(self.arguments).replace("\0", "") or "{}"
        return ToolCall(self.id if is_id else new_id("call"), self.name.replace("\0", ""), arguments)


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True
