"""How tokens are to be chosen, in the fields of a request to llama.cpp.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md (POST /completion)
"""

from typing import Any, Protocol

from internal.biz.errors import UnsupportedParameter
from internal.biz.models import Feature, Sampling
from internal.biz.sampling import RareSampling

FEATURES = frozenset(
    (
        Feature.SEED,
        Feature.TOP_K,
        Feature.MIN_P,
        Feature.FREQUENCY_PENALTY,
        Feature.PRESENCE_PENALTY,
        Feature.REPETITION_PENALTY,
        Feature.TYPICAL_P,
        Feature.MIN_TEMP,
        Feature.MAX_TEMP,
        Feature.TEMP_EXPONENT,
        # It always is, there.
        Feature.TEMPERATURE_LAST,
        Feature.MIROSTAT_MODE,
        Feature.MIROSTAT_TAU,
        Feature.MIROSTAT_ETA,
        Feature.REPETITION_RANGE,
        Feature.DRY_MULTIPLIER,
        Feature.DRY_BASE,
        Feature.DRY_ALLOWED_LENGTH,
        Feature.DRY_RANGE,
        Feature.DRY_SEQUENCE_BREAKERS,
        Feature.XTC_PROBABILITY,
        Feature.XTC_THRESHOLD,
        Feature.LOGIT_BIAS,
    )
)

_SEEDS = 2**32 - 1
"""llama.cpp takes 32 bits, the last of which means a random one."""
_THEIR_NAMES = {
    "typical_p": "typical_p",
    "temp_exponent": "dynatemp_exponent",
    "mirostat_mode": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "repetition_range": "repeat_last_n",
    "dry_multiplier": "dry_multiplier",
    "dry_base": "dry_base",
    "dry_allowed_length": "dry_allowed_length",
    "dry_range": "dry_penalty_last_n",
    "dry_sequence_breakers": "dry_sequence_breakers",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "logit_bias": "logit_bias",
}


class Defaults(Protocol):
    """What applies where a request says nothing."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def repeat_penalty(self) -> float: ...


def fields(sampling: Sampling, defaults: Defaults, seed: int | None) -> dict[str, Any]:
    """`seed` is that of the request, or the one to take where it has none; None: any. Raises
    UnsupportedParameter for what would keep llama.cpp from all other answers."""
    temperature = defaults.temperature if sampling.temperature is None else sampling.temperature
    repetition = sampling.repetition_penalty
    chosen = {
        "temperature": temperature,
        "top_p": defaults.top_p if sampling.top_p is None else sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "repeat_penalty": defaults.repeat_penalty if repetition is None else repetition,
        "seed": None if seed is None else seed % _SEEDS,
    }
    if sampling.rare is not None:
        chosen |= _rare(sampling.rare)
        if sampling.temperature != 0:  # else the likeliest is wanted
            chosen |= _temperatures(sampling.rare.asked)
    return {name: value for name, value in chosen.items() if value is not None}


def _rare(rare: RareSampling) -> dict[str, Any]:
    asked = rare.asked
    # Of a longer one llama.cpp tokenizes the rest behind each token that ends as it begins: 0.36 s of "ea",
    # on the thread that all responses share.
    if any(len(text) > 1 for text in asked.get("dry_sequence_breakers", ())):
        raise UnsupportedParameter(
            "dry_sequence_breakers: the model's engine takes single characters only",
            param="dry_sequence_breakers",
        )
    return {theirs: asked[ours] for ours, theirs in _THEIR_NAMES.items() if ours in asked}


def _temperatures(asked: dict[str, Any]) -> dict[str, Any]:
    """A middle, and how far around it."""
    if "max_temp" not in asked:
        return {}
    low, high = asked.get("min_temp", 0.0), asked["max_temp"]
    return {"temperature": (low + high) / 2, "dynatemp_range": (high - low) / 2}
