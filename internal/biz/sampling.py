"""The rarer ways to choose tokens, under the names by which servers of open models know them.

Source: https://github.com/turboderp-org/exllamav2/blob/master/exllamav2/generator/sampler.py
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class RareSampling:
    """None, or nothing in it: the engine's default. Whatever stands in brackets changes nothing.

    - Which tokens may come: `top_a` 0 to 1 (0), `tfs` (tail-free) and `typical_p` 0 to 1 (0 and 1); `skew`
      -10 to 10 (0) prefers the likelier (under 0) or the less likely ones.
    - Temperature: from `min_temp` to `max_temp`, both 0 to 10 (`max_temp` 0: as `Sampling` says), by how sure
      the model is, to the power of `temp_exponent`. `smoothing_factor` 0 to 10 (0): quadratic sampling.
      `temperature_last`: after everything else.
    - Mirostat: `mirostat_mode` 2 or (0), towards a surprise of `mirostat_tau`, at the rate `mirostat_eta`.
    - Repetition: the penalties look at the last `repetition_range` tokens (-1: all, 0: none), and fade over
      `repetition_decay` tokens more (0).
    - DRY: `dry_multiplier` (0) times `dry_base` to the power of how many tokens a repetition is longer than
      `dry_allowed_length`, among the last `dry_range` tokens (0: all). No repetition goes on behind one of
      `dry_sequence_breakers`.
    - XTC: with `xtc_probability` (0) the likeliest are left out of those over `xtc_threshold`, but for one.
    - `logit_bias`: what is added to the logits of tokens, by their ids, -100 (never) to 100. The answer has
      none of `banned_strings`, in upper or lower case, and at least `min_tokens` (0).
    """

    top_a: float | None = None
    tfs: float | None = None
    typical_p: float | None = None
    skew: float | None = None
    min_temp: float | None = None
    max_temp: float | None = None
    temp_exponent: float | None = None
    smoothing_factor: float | None = None
    temperature_last: bool | None = None
    mirostat_mode: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    repetition_range: int | None = None
    repetition_decay: int | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_range: int | None = None
    dry_sequence_breakers: tuple[str, ...] = ()
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    banned_strings: tuple[str, ...] = ()
    min_tokens: int | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """What changes something, by its name. Clients with many settings send them all, each time: what is
        off, or belongs to what is off, is not asked of an engine that may not have it."""
        given = {name: getattr(self, name) for name in RARE_NAMES}
        on = {
            name: value
            for name, value in given.items()
            if value not in (None, ()) and value not in _OFF.get(name, ())
        }
        return {name: value for name, value in on.items() if _SWITCHES.get(name, name) in on}


RARE_NAMES = tuple(field.name for field in fields(RareSampling))
_OFF: Mapping[str, tuple[float, ...]] = {
    "top_a": (0,),
    "tfs": (0, 1),
    "typical_p": (0, 1),
    "skew": (0,),
    "max_temp": (0,),
    "smoothing_factor": (0,),
    "temperature_last": (False,),
    "mirostat_mode": (0,),
    "repetition_decay": (0,),
    "dry_multiplier": (0,),
    "dry_range": (0,),
    "xtc_probability": (0,),
    "min_tokens": (0,),
}
_SWITCHES = {
    "min_temp": "max_temp",
    "temp_exponent": "max_temp",
    "mirostat_tau": "mirostat_mode",
    "mirostat_eta": "mirostat_mode",
    "dry_base": "dry_multiplier",
    "dry_allowed_length": "dry_multiplier",
    "dry_range": "dry_multiplier",
    "dry_sequence_breakers": "dry_multiplier",
    "xtc_threshold": "xtc_probability",
}
"""What has to be on for something to have a meaning."""
