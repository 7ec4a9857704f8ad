"""What a client may say of how tokens are chosen, and by which names."""

import time
from typing import Any

import pytest
from pydantic import ValidationError

from internal.biz.errors import InvalidRequest
from internal.biz.models import Sampling
from internal.biz.sampling import RARE_NAMES, RareSampling
from internal.service.codec.sampling import SamplingParameters

RARE: dict[str, Any] = {
    "top_a": 0.1,
    "tfs": 0.9,
    "typical_p": 0.8,
    "skew": -1.0,
    "min_temp": 0.5,
    "max_temp": 2.0,
    "temp_exponent": 1.5,
    "smoothing_factor": 0.3,
    "temperature_last": True,
    "mirostat_mode": 2,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "repetition_range": -1,
    "repetition_decay": 64,
    "dry_multiplier": 0.8,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_range": 1024,
    "dry_sequence_breakers": ["\n", ":"],
    "xtc_probability": 0.5,
    "xtc_threshold": 0.1,
    "logit_bias": {"5": -100, "0": 1.5},
    "banned_strings": ["delve"],
    "min_tokens": 4,
}


def sampling(**fields: object) -> Sampling:
    return SamplingParameters.model_validate(fields).sampling


def refused(**fields: object) -> InvalidRequest:
    try:
        sampling(**fields)
    except ValidationError as error:
        return SamplingParameters.refusal(error)
    except InvalidRequest as error:
        return error
    raise AssertionError(f"not refused: {fields}")


def test_every_way_is_understood() -> None:
    assert RARE.keys() == set(RARE_NAMES)
    found = sampling(temperature=0.5, **RARE)
    texts = {"dry_sequence_breakers": ("\n", ":"), "banned_strings": ("delve",)}
    assert found.temperature == 0.5
    assert found.rare == RareSampling(**{**RARE, **texts, "logit_bias": ((5, -100.0), (0, 1.5))})


def test_who_says_nothing_rare_has_nothing_of_it() -> None:
    assert sampling(temperature=0.5, top_a=None) == Sampling(temperature=0.5)


@pytest.mark.parametrize(
    ("theirs", "value", "expected"),
    [
        ("typical", 0.8, RareSampling(typical_p=0.8)),
        ("mirostat", 2, RareSampling(mirostat_mode=2)),
        ("penalty_range", 64, RareSampling(repetition_range=64)),
        ("repetition_penalty_range", 64, RareSampling(repetition_range=64)),
        ("dry_penalty_last_n", -1, RareSampling(dry_range=0)),
        ("min_new_tokens", 3, RareSampling(min_tokens=3)),
    ],
)
def test_names_of_other_servers_are_known(theirs: str, value: object, expected: RareSampling) -> None:
    assert sampling(**{theirs: value}).rare == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"typical": 0.8, "typical_p": 0.8},
        {"typical": None, "typical_p": 0.8},
        {"typical": 0.8, "typical_p": None},
    ],
)
def test_the_same_may_be_said_by_two_names(fields: dict[str, object]) -> None:
    assert sampling(**fields).rare == RareSampling(typical_p=0.8)


def test_the_same_may_be_said_by_all_names() -> None:
    fields = dict.fromkeys(("penalty_range", "repetition_penalty_range", "repetition_range"), 64)
    assert sampling(**fields).rare == RareSampling(repetition_range=64)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_a": 1.1}, "top_a"),
        ({"tfs": -0.1}, "tfs"),
        ({"typical_p": "1"}, "typical_p"),
        ({"typical": 2}, "typical_p"),
        ({"skew": 11}, "skew"),
        ({"min_temp": -1}, "min_temp"),
        ({"min_temp": 2, "max_temp": 1}, "min_temp"),
        ({"max_temp": 11}, "max_temp"),
        ({"temp_exponent": -1}, "temp_exponent"),
        ({"smoothing_factor": -1}, "smoothing_factor"),
        ({"temperature_last": 1}, "temperature_last"),
        ({"mirostat_mode": 1}, "mirostat_mode"),
        ({"mirostat_tau": -1}, "mirostat_tau"),
        ({"mirostat_eta": 2}, "mirostat_eta"),
        ({"repetition_range": -2}, "repetition_range"),
        ({"repetition_decay": 1.5}, "repetition_decay"),
        ({"dry_multiplier": -1}, "dry_multiplier"),
        ({"dry_base": 0.5}, "dry_base"),
        ({"dry_allowed_length": 0}, "dry_allowed_length"),
        ({"dry_range": -2}, "dry_range"),
        ({"dry_sequence_breakers": ["x"] * 17}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers[0]"),
        ({"xtc_probability": 2}, "xtc_probability"),
        ({"xtc_threshold": 2}, "xtc_threshold"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"2147483648": 1}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias"),
        ({"logit_bias": [[5, 1]]}, "logit_bias"),
        ({"banned_strings": ["x"] * 129}, "banned_strings"),
        ({"banned_strings": ["x" * 129]}, "banned_strings[0]"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"typical": 0.5, "typical_p": 0.6}, "typical"),
        ({"typical": [0.5], "typical_p": [0.5]}, "typical_p"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, object], param: str) -> None:
    error = refused(**fields)
    assert error.param == param
    assert param in error.message


@pytest.mark.parametrize("token", ["x", "05", "-1", "1.0", "", "12345678901"])
def test_a_bias_is_of_a_token(token: str) -> None:
    assert (refused(logit_bias={token: 1}).param or "").startswith("logit_bias")


def test_a_hundred_thousand_biases_are_refused_at_once() -> None:
    begin = time.thread_time()
    assert refused(logit_bias={f"x{n}": "x" for n in range(100_000)}).param == "logit_bias"
    assert time.thread_time() - begin < 0.5
