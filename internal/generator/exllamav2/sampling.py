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


MAX_DRY_RANGE = 2048
"""Tokens."""
DRY_NGRAM = 20
GREEDY = 0.01
"""Below this temperature the library takes the likeliest."""
LEAST = 0.01
"""What it divides by must not be as good as nothing."""
LEAST_SHARE = 1e-6
"""Of the probability: the likeliest alone. 0 it takes for all."""
_RARE = {
    "typical_p": "typical",
    "mirostat_mode": "mirostat",
    "repetition_range": "token_repetition_range",
    "repetition_decay": "token_repetition_decay",
}
"""What the library calls otherwise."""
_OF_THE_JOB = frozenset(("banned_strings", "min_tokens"))
"""What the library wants to be told elsewhere."""


def layered(*layers: Sampling) -> Sampling:
    """What the first one says, where it says nothing the second one, and so on."""
    result = layers[0]
    for layer in layers[1:]:
        names = (it.name for it in fields(layer))
        missing = {name: getattr(layer, name) for name in names if getattr(result, name) is None}
        result = replace(result, **missing)
    return result


def settings(sampling: Sampling) -> dict[str, Any]:
    """The fields of ExLlamaV2Sampler.Settings; `logit_bias` and `dry_sequence_breakers` are still as they
    were asked for. All of `NEUTRAL`'s are set in `sampling`."""
    rare = {**sampling.rare.asked} if sampling.rare is not None else {}
    if "dry_multiplier" in rare:
        # It looks for repetitions in the interpreter, while all others wait: seconds in a long prompt.
        rare["dry_range"] = min(rare.get("dry_range", MAX_DRY_RANGE), MAX_DRY_RANGE)
        rare["dry_max_ngram"] = min(DRY_NGRAM, rare["dry_range"] - 1)  # it insists on less than the range
    if (sampling.temperature or 0.0) < GREEDY:
        rare.pop("temperature_last", None)  # it would divide by it
    if "max_temp" in rare:
        rare["max_temp"] = max(rare["max_temp"], LEAST)
    return {
        "temperature": sampling.temperature,
        "top_p": max(sampling.top_p or 0.0, LEAST_SHARE),
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "token_frequency_penalty": sampling.frequency_penalty,
        "token_presence_penalty": sampling.presence_penalty,
        "token_repetition_penalty": max(sampling.repetition_penalty or 1.0, LEAST),
        **{_RARE.get(name, name): value for name, value in rare.items() if name not in _OF_THE_JOB},
    }
