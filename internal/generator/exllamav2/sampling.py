"""How tokens are chosen: from what is asked for to the library's own names.

Source: https://github.com/turboderp-org/exllamav2/blob/master/exllamav2/generator/sampler.py
"""

from dataclasses import fields, replace
from typing import Any

from internal.biz.models import Sampling

NEUTRAL = Sampling(
    temperature=0.8,
    top_p=0.95,
    top_k=0,
    min_p=0.0,
    frequency_penalty=0.0,
    presence_penalty=0.0,
    repetition_penalty=1.0,
)
"""Where neither a request, nor the configuration, nor the model's files say anything."""


def layered(*layers: Sampling) -> Sampling:
    """What the first one says, where it says nothing the second one, and so on."""
    result = layers[0]
    for layer in layers[1:]:
        missing = {
            it.name: getattr(layer, it.name) for it in fields(layer) if getattr(result, it.name) is None
        }
        result = replace(result, **missing)
    return result


def settings(sampling: Sampling) -> dict[str, Any]:
    """The fields of ExLlamaV2Sampler.Settings. All of `NEUTRAL`'s are set in `sampling`."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "token_frequency_penalty": sampling.frequency_penalty,
        "token_presence_penalty": sampling.presence_penalty,
        "token_repetition_penalty": sampling.repetition_penalty,
    }
