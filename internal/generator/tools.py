"""How models write calls of functions: `<tool_call>` and JSON, as Qwen, Hermes and SmolLM were taught.

Finds calls in a model's stream, writes what earlier attempts have called, and makes the grammar that a call
has to follow.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from internal.biz.events import TextDelta
from internal.biz.ids import new_id
from internal.biz.models import Tool, ToolCall, Tooling
from internal.generator.schemas import check, json_rule
from internal.generator.stops import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALLS = 16
"""How many calls an answer that has to be a list of calls may have."""

_SPACE = "SPACE: /[ \\n]{0,8}/\n"
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class CallFormat:
    """`is_list`: the tags enclose a list of all calls; otherwise each call has its own. `before` and
    `behind`: the white space inside of the tags."""

    is_list: bool
    before: str = "\n"
    behind: str = "\n"

    @classmethod
    def of(cls, rendered: str, call: ToolCall) -> "CallFormat | None":
        """That in which a template has rendered `call`. None: in another one than we read."""
        for body in re.findall(f"{OPEN}(.*?){CLOSE}", rendered, re.DOTALL):
            if _read_calls(body) == [(call.name, call.arguments)]:
                bare = body.strip()
                before, _, behind = body.partition(bare)
                return cls(bare.startswith("["), before, behind)
        return None

    def write(self, calls: Sequence[ToolCall]) -> str:
        """Calls as the model writes them."""
        bodies = [f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}' for call in calls]
        if self.is_list:
            bodies = [f"[{', '.join(bodies)}]"]
        return "\n".join(f"{OPEN}{self.before}{body}{self.behind}{CLOSE}" for body in bodies)

    def rules(self, tooling: Tooling) -> str:
        """The grammar's rules of `calls`: of a call and nothing else, or of a list of some.

        Where each call has its own tags there is one: the library may want another token at an answer's end
        than the model does, which then would go on calling.
        """
        more = f'(SPACE "," SPACE call){{0,{MAX_CALLS - 1}}} ' if tooling.parallel else ""
        body = f'"[" SPACE call {more}SPACE "]"' if self.is_list else "call"
        calls = f'calls: "{OPEN}" SPACE {body} SPACE "{CLOSE}"\n'
        return calls + _call_rule(tooling.offered) + _SPACE


def _call_rule(tools: Sequence[Tool]) -> str:
    """The rule of `call`: the name of a tool and what it takes. Raises InvalidSchema."""
    check([tool.parameters for tool in tools], "tools")
    choices = []
    for tool in tools:
        arguments = tool.parameters or _NO_ARGUMENTS
        # References inside of the schema count from its root: it has to be a text of its own.
        rule = json_rule(arguments, strict=tool.strict)
        name = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
        choices.append(f'{name} {rule} "}}"')
    return f"call: {' | '.join(choices)}\n"


class CallSplitter:
    """Feed it text; it yields text and calls, the same however it was cut.

    Holds back what may be the beginning of a tag and white space before it, and a call until it is whole.
    What is not a call of a tool that was offered stays text.
    """

    __slots__ = ("_calling", "_has_called", "_held", "_names", "_searched")

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._names = frozenset(tool.name for tool in tools)
        self._held = ""
        self._calling = False
        self._has_called = False
        self._searched = 0
        """How far what is held was searched for the end of a call: not all of it anew for each token."""

    @property
    def holds(self) -> bool:
        """Whether something is held back."""
        return bool(self._held)

    def feed(self, text: str) -> list[TextDelta | ToolCall]:
        said: list[TextDelta | ToolCall] = []
        self._held += text
        while self._step(said):
            pass
        return said

    def _step(self, said: list[TextDelta | ToolCall]) -> bool:
        """Take from what is held; False when more has to come first."""
        if self._calling:
            return self._call(said)
        before, tag, behind = self._held.partition(OPEN)
        if not tag:
            keep = len(before) - len(before.rstrip())
            begun = overlap(before, OPEN)
            if begun:
                keep = begun + len(before[:-begun]) - len(before[:-begun].rstrip())
            _say(said, before[: len(before) - keep])
            self._held = before[len(before) - keep :]
            return False
        self._calling = True
        # The white space stays held: it counts if this turns out to be no call.
        _say(said, before.rstrip())
        self._held = before[len(before.rstrip()) :] + tag + behind
        return True

    def _call(self, said: list[TextDelta | ToolCall]) -> bool:
        begin = self._held.index(OPEN) + len(OPEN)
        end = self._held.find(CLOSE, max(begin, self._searched))
        while end >= 0 and _is_inside_string(self._held[begin:end]):
            end = self._held.find(CLOSE, end + 1)
        if end < 0:
            self._searched = len(self._held) - len(CLOSE) + 1
            return False
        calls = _read_calls(self._held[begin:end])
        if calls is None or any(name not in self._names for name, _ in calls):
            _say(said, self._held[: end + len(CLOSE)])
        else:
            said += [ToolCall(new_id("call"), name, arguments) for name, arguments in calls]
            self._has_called = True
        self._held = self._held[end + len(CLOSE) :]
        self._calling = False
        self._searched = 0
        return True

    def finish(self) -> list[TextDelta | ToolCall]:
        """What was held back when the stream ended. White space behind a call is nothing."""
        said: list[TextDelta | ToolCall] = []
        if not self._has_called or not self._held.isspace():
            _say(said, self._held)
        self._held = ""
        return said


def _say(said: list[TextDelta | ToolCall], text: str) -> None:
    if text:
        said.append(TextDelta(text))


def _is_inside_string(json_text: str) -> bool:
    return re.sub(r"\\.", "", json_text, flags=re.DOTALL).count('"') % 2 == 1


def _read_calls(body: str) -> list[tuple[str, str]] | None:
    """The names and arguments of the calls in `body`; None when it is something else."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    calls = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        arguments = call.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        calls.append((call["name"], arguments))
    return calls
