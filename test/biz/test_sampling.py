"""The rarer ways to choose tokens: what is asked of an engine, and what is not."""

from typing import Any

import pytest

from internal.biz.models import SAMPLING_FEATURES, Feature, OutputFormat, Sampling, Settings
from internal.biz.sampling import RARE_NAMES, RareSampling

EVERYTHING: dict[str, Any] = {
    "top_a": 0.1,
    "tfs": 0.9,
    "typical_p": 0.9,
    "skew": -1.0,
    "min_temp": 0.5,
    "max_temp": 2.0,
    "temp_exponent": 1.5,
    "smoothing_factor": 0.3,
    "temperature_last": True,
    "mirostat_mode": 2,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "repetition_range": 512,
    "repetition_decay": 64,
    "dry_multiplier": 0.8,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_range": 1024,
    "dry_sequence_breakers": ("\n",),
    "xtc_probability": 0.5,
    "xtc_threshold": 0.1,
    "logit_bias": ((5, -100.0),),
    "banned_strings": ("delve",),
    "min_tokens": 4,
}
OFF = RareSampling(
    top_a=0.0,
    tfs=1.0,
    typical_p=1.0,
    skew=0.0,
    min_temp=0.0,
    max_temp=0.0,
    temp_exponent=1.0,
    smoothing_factor=0.0,
    temperature_last=False,
    mirostat_mode=0,
    mirostat_tau=5.0,
    mirostat_eta=0.1,
    repetition_decay=0,
    dry_multiplier=0.0,
    dry_base=1.75,
    dry_allowed_length=2,
    dry_range=0,
    dry_sequence_breakers=("\n",),
    xtc_probability=0.0,
    xtc_threshold=0.1,
    min_tokens=0,
)


def features(rare: RareSampling) -> frozenset[Feature]:
    return Settings(sampling=Sampling(rare=rare)).features


def test_each_is_a_feature_of_its_own_name() -> None:
    assert EVERYTHING.keys() == set(RARE_NAMES)
    assert RareSampling(**EVERYTHING).asked == EVERYTHING
    assert features(RareSampling(**EVERYTHING)) == set(map(Feature, RARE_NAMES))
    assert set(map(Feature, RARE_NAMES)) < SAMPLING_FEATURES


def test_what_is_off_is_asked_of_nobody() -> None:
    assert OFF.asked == {}
    assert features(OFF) == frozenset()


@pytest.mark.parametrize(
    ("switch", "names"),
    [
        ("max_temp", {"min_temp", "temp_exponent"}),
        ("mirostat_mode", {"mirostat_tau", "mirostat_eta"}),
        ("dry_multiplier", {"dry_base", "dry_allowed_length", "dry_range", "dry_sequence_breakers"}),
        ("xtc_probability", {"xtc_threshold"}),
    ],
)
def test_what_belongs_to_something_is_asked_with_it(switch: str, names: set[str]) -> None:
    belongs = {name: EVERYTHING[name] for name in names}
    assert RareSampling(**belongs).asked == {}
    assert RareSampling(**belongs, **{switch: EVERYTHING[switch]}).asked.keys() == names | {switch}


def test_that_a_penalty_looks_nowhere_is_asked_for() -> None:
    assert RareSampling(repetition_range=0).asked == {"repetition_range": 0}


def test_a_pattern_is_no_json() -> None:
    assert Settings(output_format=OutputFormat()).features == {Feature.OUTPUT_FORMAT}
    assert Settings(output_format=OutputFormat(pattern="a")).features == {Feature.PATTERN}
