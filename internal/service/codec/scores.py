"""How likely tokens were, as the APIs say it.

Source: https://platform.openai.com/docs/api-reference/chat/object (`logprobs`), and the same of `output_text`
"""

from collections.abc import Sequence
from typing import Any

from internal.biz.scores import TokenScore

LOGPROBS = "message.output_text.logprobs"
"""What asks for it, in `include` of the Responses API."""
MAX_TOP = 20


def said_scores(scores: Sequence[TokenScore]) -> list[dict[str, Any]]:
    """In events of the Responses API."""
    return [
        {
            "token": score.text,
            "logprob": score.logprob,
            "top_logprobs": [{"token": token, "logprob": logprob} for token, logprob in score.top],
        }
        for score in scores
    ]


def whole_scores(scores: Sequence[TokenScore], unknown: list[int] | None) -> list[dict[str, Any]]:
    """In Chat Completions, and in parts of the Responses API. `unknown` stands for the bytes of what is no
    character by itself."""
    return [
        {
            **_whole(score.text, score.logprob, unknown),
            "top_logprobs": [_whole(token, logprob, unknown) for token, logprob in score.top],
        }
        for score in scores
    ]


def _whole(token: str, logprob: float, unknown: list[int] | None) -> dict[str, Any]:
    known = "\N{REPLACEMENT CHARACTER}" not in token
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()) if known else unknown}
