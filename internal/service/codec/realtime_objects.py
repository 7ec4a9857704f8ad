"""What a client of the Realtime API is told of a response.

Source: https://platform.openai.com/docs/api-reference/realtime-server-events/response/created
"""

from typing import Any

from internal.biz.models import ItemKind, Response, Status, Usage
from internal.service.codec.realtime_items import said_item


def response_object(response: Response) -> dict[str, Any]:
    """The API's `response` object."""
    settings = response.settings
    status, details = _status(response)
    return {
        "object": "realtime.response",
        "id": response.id,
        "status": status,
        "status_details": details,
        "output": [
            said_item(response.id, index, item).fields
            for index, item in enumerate(response.output)
            if item.kind is not ItemKind.REASONING
        ],
        "conversation_id": settings.conversation_id,
        "output_modalities": ["text"],
        "max_output_tokens": settings.max_output_tokens or "inf",
        "metadata": dict(settings.metadata) or None,
        "usage": response.usage and _usage(response.usage),
    }


def _status(response: Response) -> tuple[str, dict[str, Any] | None]:
    match response.status:
        case Status.COMPLETED:
            return "completed", None
        case Status.FAILED:
            failure = response.failure
            code, message = (failure.code, failure.message) if failure else (None, None)
            error = {"type": "server_error", "code": code, "message": message}
            return "failed", {"type": "failed", "error": error}
        case Status.INCOMPLETE | Status.CANCELLED:
            if response.incomplete_reason in (None, "cancelled"):
                return "cancelled", {"type": "cancelled", "reason": "client_cancelled"}
            return "incomplete", {"type": "incomplete", "reason": response.incomplete_reason}
        case _:
            return "in_progress", None


def _usage(usage: Usage) -> dict[str, Any]:
    text = {"text_tokens": usage.cached_tokens, "audio_tokens": 0, "image_tokens": 0}
    return {
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "input_token_details": {
            "text_tokens": usage.input_tokens,
            "audio_tokens": 0,
            "image_tokens": 0,
            "cached_tokens": usage.cached_tokens,
            "cached_tokens_details": text,
        },
        "output_token_details": {"text_tokens": usage.output_tokens, "audio_tokens": 0},
    }
