"""What people ask for, in the library's names."""

from internal.biz.models import Sampling
from internal.biz.sampling import RareSampling
from internal.generator.exllamav2.sampling import NEUTRAL, layered, settings


def test_what_stands_first_counts_and_what_it_leaves_out_comes_from_behind() -> None:
    asked, configured = Sampling(temperature=0.0, seed=3), Sampling(temperature=0.5, top_p=0.7)
    assert layered(asked, configured, Sampling(top_p=0.1, top_k=9)) == Sampling(
        temperature=0.0, top_p=0.7, top_k=9, seed=3
    )


def test_nothing_asked_for_is_no_penalty_and_no_rare_way() -> None:
    assert settings(layered(Sampling(), NEUTRAL)) == {
        "temperature": 0.8,
        "top_p": 0.95,
        "top_k": 0,
        "min_p": 0.0,
        "token_frequency_penalty": 0.0,
        "token_presence_penalty": 0.0,
        "token_repetition_penalty": 1.0,
    }


def test_the_least_of_top_p_is_the_likeliest_token_and_not_all() -> None:
    assert settings(layered(Sampling(top_p=0.0), NEUTRAL))["top_p"] == 1e-6


def test_rare_ways_have_the_librarys_names() -> None:
    rare = RareSampling(
        typical_p=0.9,
        mirostat_mode=2,
        repetition_range=64,
        repetition_decay=32,
        xtc_probability=0.5,
        dry_multiplier=0.8,
        dry_sequence_breakers=("\n",),
        logit_bias=((7, -100.0),),
        min_tokens=5,
    )
    asked = settings(layered(Sampling(rare=rare), NEUTRAL))
    assert {name: value for name, value in asked.items() if name not in settings(NEUTRAL)} == {
        "typical": 0.9,
        "mirostat": 2,
        "token_repetition_range": 64,
        "token_repetition_decay": 32,
        "xtc_probability": 0.5,
        "dry_multiplier": 0.8,
        "dry_range": 2048,
        "dry_max_ngram": 20,
        "dry_sequence_breakers": ("\n",),
        "logit_bias": ((7, -100.0),),
    }


def test_repetitions_are_looked_for_in_so_much_that_nobody_waits_for_it() -> None:
    """And in as little as somebody wants, which the library takes only with shorter repetitions."""

    def asked(dry_range: int) -> tuple[int, int]:
        rare = RareSampling(dry_multiplier=1.0, dry_range=dry_range)
        made = settings(layered(Sampling(rare=rare), NEUTRAL))
        return made["dry_range"], made["dry_max_ngram"]

    assert [asked(size) for size in (0, 10, 100, 10**6)] == [(2048, 20), (10, 9), (100, 20), (2048, 20)]


def test_what_the_library_divides_by_is_never_nothing() -> None:
    rare = RareSampling(temperature_last=True, max_temp=1e-30)
    asked = settings(layered(Sampling(temperature=0.0, repetition_penalty=1e-38, rare=rare), NEUTRAL))
    assert "temperature_last" not in asked
    assert asked["max_temp"] == asked["token_repetition_penalty"] == 0.01
