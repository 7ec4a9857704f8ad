"""How a client says how tokens are to be chosen, in whatever dialect.

Source: the names of exllamav2, which TabbyAPI, text-generation-webui, vLLM and llama.cpp have as well
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from internal.biz.errors import InvalidRequest
from internal.biz.models import Sampling
from internal.biz.sampling import RARE_NAMES, RareSampling
from internal.service.api.base import Body

SEED = 2**63
MAX_BIASES = 300
MAX_BANNED = 128
MAX_BREAKERS = 16
MAX_CHARS = 128
"""Bounds of what is compared with every token; characters of one string. For 16 breakers llama.cpp answers
nobody for 0.14 s with 49,152 tokens; exllamav2 needs 0.1 s of the interpreter with 150,000."""

_OTHER_NAMES = {
    "typical": "typical_p",
    "mirostat": "mirostat_mode",
    "penalty_range": "repetition_range",
    "repetition_penalty_range": "repetition_range",
    "dry_penalty_last_n": "dry_range",
    "min_new_tokens": "min_tokens",
}
"""By which a parameter is known elsewhere."""


def _few(value: object) -> object:
    # pydantic would look at all of them first.
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"{len(value)} tokens are too many, {MAX_BIASES} are allowed")
    return value


def _ids(value: dict[str, float]) -> dict[str, float]:
    if any(int(token) >= 2**31 for token in value):
        raise ValueError("this is no token's id")
    return value


_Share = Annotated[float, Field(ge=0, le=1)]
_Temperature = Annotated[float, Field(ge=0, le=10)]
_Tokens = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Range = Annotated[int, Field(ge=-1, le=2**31 - 1)]
_Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARS)]
_TokenId = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,9})$")]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_Biases = Annotated[
    dict[_TokenId, _Bias],
    Field(max_length=MAX_BIASES),
    BeforeValidator(_few),
    AfterValidator(_ids),
]


class SamplingParameters(Body):
    """Those that the dialects call by one name."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: _Share | None = None
    top_k: _Tokens | None = None
    min_p: _Share | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=-SEED, lt=SEED)] | None = None
    # The rarer ones: what they mean stands at RareSampling.
    top_a: _Share | None = None
    tfs: _Share | None = None
    typical_p: _Share | None = None
    skew: Annotated[float, Field(ge=-10, le=10)] | None = None
    min_temp: _Temperature | None = None
    max_temp: _Temperature | None = None
    temp_exponent: Annotated[float, Field(ge=0, le=10)] | None = None
    smoothing_factor: Annotated[float, Field(ge=0, le=10)] | None = None
    temperature_last: bool | None = None
    mirostat_mode: Literal[0, 2] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] | None = None
    mirostat_eta: _Share | None = None
    repetition_range: _Range | None = None
    repetition_decay: _Tokens | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=10)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    dry_range: Annotated[_Range | None, Field(description="0 or -1: all")] = None
    dry_sequence_breakers: Annotated[list[_Text], Field(max_length=MAX_BREAKERS, fail_fast=True)] | None = (
        None
    )
    xtc_probability: _Share | None = None
    xtc_threshold: _Share | None = None
    logit_bias: _Biases | None = None
    banned_strings: Annotated[list[_Text], Field(max_length=MAX_BANNED, fail_fast=True)] | None = None
    min_tokens: _Tokens | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_our_names(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or _OTHER_NAMES.keys().isdisjoint(fields):
            return fields
        named = dict(fields)
        for theirs, ours in _OTHER_NAMES.items():
            if theirs not in named:
                continue
            value = named[theirs]
            if named.get(ours) is None:
                named[ours] = named.pop(theirs)
            elif value is None or (isinstance(value, int | float) and value == named[ours]):
                # Some clients say it by both names.
                del named[theirs]
        return named

    @property
    def sampling(self) -> Sampling:
        """Raises InvalidRequest for what contradicts itself."""
        rare = {name: value for name in RARE_NAMES if (value := getattr(self, name)) is not None}
        usual = {name: getattr(self, name) for name in _USUAL_NAMES}
        return Sampling(**usual, rare=_rare(rare) if rare else None)


_USUAL_NAMES = tuple(name for name in SamplingParameters.model_fields if name not in RARE_NAMES)


def _rare(given: dict[str, Any]) -> RareSampling:
    if given.get("max_temp") and given.get("min_temp", 0.0) > given["max_temp"]:
        raise InvalidRequest("min_temp: max_temp is less", code="invalid_value", param="min_temp")
    if (biases := given.get("logit_bias")) is not None:
        given["logit_bias"] = tuple((int(token), bias) for token, bias in biases.items())
    for name in ("dry_sequence_breakers", "banned_strings"):
        given[name] = tuple(given.get(name, ()))
    given["dry_range"] = None if "dry_range" not in given else max(0, given["dry_range"])
    return RareSampling(**given)
