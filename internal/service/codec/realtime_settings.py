"""How a Realtime session, or one response of it, is to be answered.

What the Responses API has too is checked as there. What says how sound is to be is let pass, because there
is none; sound itself is refused.
Source: https://platform.openai.com/docs/api-reference/realtime-client-events/session/update
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from internal.biz.errors import InvalidRequest, UnsupportedParameter
from internal.biz.models import Settings
from internal.service.codec.responses_request import (
    ResponseCreate,
    invalid,
    require_small,
)
from internal.service.codec.sampling import SamplingParameters

_SHARED = frozenset(
    (
        "instructions",
        "max_output_tokens",
        "parallel_tool_calls",
        "reasoning",
        "stop",
        "text",
        "tool_choice",
        "tools",
        "truncation",
        *SamplingParameters.model_fields,
    )
)
_OF_A_SESSION = frozenset(
    (
        "audio",
        "expires_at",
        "id",
        "include",
        "model",
        "object",
        "output_modalities",
        "prompt",
        "tracing",
        "type",
    )
)
_OF_A_RESPONSE = frozenset(("audio", "conversation", "input", "metadata", "output_modalities", "prompt"))
"""What may be said beside that: it is looked at elsewhere, or changes nothing."""


class RealtimeSettings:
    """Those of a session. Bound: a few fields, each as large as a message may be."""

    __slots__ = ("_fields", "model")

    def __init__(self, model: str) -> None:
        self.model = model
        self._fields: dict[str, Any] = {}

    def update(self, fields: Mapping[str, Any]) -> None:
        """Set the given fields; null is the default. Raises InvalidRequest, and then sets nothing."""
        found = self._checked(fields, "session", _OF_A_SESSION)
        if fields.get("type", "realtime") != "realtime":
            raise UnsupportedParameter("session.type: only realtime is supported here", param="session.type")
        if fields.get("model") not in (None, self.model):
            raise InvalidRequest(
                f"session.model: this session is with {self.model!r}; connect again to choose another one",
                code="invalid_value",
                param="session.model",
            )
        merged = _without_null({**self._fields, **found})
        _read(merged, "session")
        self._fields = merged

    def of_response(self, fields: Mapping[str, Any]) -> Settings:
        """Those of one response, where `fields` go before the session's. Raises InvalidRequest."""
        found = self._checked(fields, "response", _OF_A_RESPONSE)
        if "metadata" in fields:
            found["metadata"] = fields["metadata"]
        return _read(_without_null({**self._fields, **found}), "response")

    def _checked(self, fields: Mapping[str, Any], place: str, passed: frozenset[str]) -> dict[str, Any]:
        """The fields that the Responses API has too."""
        require_small(fields, place)
        for name in sorted(fields.keys() - _SHARED - passed):
            param = f"{place}.{name}"[:100]
            raise UnsupportedParameter(f"{param} is not supported here", param=param)
        if fields.get("prompt") is not None:
            param = f"{place}.prompt"
            raise UnsupportedParameter(f"{param} is not supported here; use instructions", param=param)
        if fields.get("output_modalities") not in (None, ["text"]):
            param = f"{place}.output_modalities"
            raise UnsupportedParameter(f'{param}: only ["text"] is supported here', param=param)
        return {name: value for name, value in fields.items() if name in _SHARED}

    def fields(self, session_id: str) -> dict[str, Any]:
        """The API's session object."""
        return {
            "object": "realtime.session",
            "type": "realtime",
            "id": session_id,
            "model": self.model,
            "output_modalities": ["text"],
            "instructions": "",
            "max_output_tokens": "inf",
            "tools": [],
            "tool_choice": "auto",
            "truncation": "auto",
            "prompt": None,
            "tracing": None,
            **self._fields,
        }


def _without_null(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _read(fields: dict[str, Any], place: str) -> Settings:
    """Raises InvalidRequest."""
    read = {"truncation": "auto", **fields, "input": ""}
    if read.get("max_output_tokens") == "inf":
        del read["max_output_tokens"]
    if isinstance(tools := read.get("tools"), list):
        # Arguments that follow their schema to the letter are not what is asked for here.
        read["tools"] = [{"strict": False, **it} if isinstance(it, dict) else it for it in tools]
    try:
        settings = ResponseCreate.model_validate(read).ask().settings
    except ValidationError as error:
        raise placed(invalid(error), place) from error
    except InvalidRequest as error:
        raise placed(error, place) from error
    return replace(settings, instructions=settings.instructions or None)


def placed(error: InvalidRequest, place: str) -> InvalidRequest:
    """The complaint, about a field of the object `place`."""
    if error.param is None:
        return error
    param = f"{place}.{error.param}"
    message = error.message
    if message.startswith(error.param):
        message = f"{place}.{message}"
    return type(error)(message, code=error.code, param=param)
