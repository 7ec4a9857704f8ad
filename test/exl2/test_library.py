"""What our adapter relies on in exllamav2, asked of the library itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from test.exl2.conftest import Loaded

pytest.importorskip("exllamav2", reason="`make test-exl2` has exllamav2")

PAGE = 256
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
BEGINNINGS = ("The capital of France is", "Once upon a time", "def add(a, b):", "Water boils at")
LONG = "The cat sat on the mat, and the dog lay by the fire. " * 24


@dataclass(frozen=True, slots=True)
class Answer:
    """`text`: in the order of the steps; `last`: the library's last result for the job."""

    text: str
    tokens: tuple[int, ...]
    last: dict[str, Any]


def job_of(tokenizer: Any, prompt: str, tokens: int = 12, **options: Any) -> Any:
    from exllamav2.generator import ExLlamaV2DynamicJob, ExLlamaV2Sampler

    given: dict[str, Any] = {
        "gen_settings": ExLlamaV2Sampler.Settings.greedy(),
        "stop_conditions": [tokenizer.eos_token_id],
        **options,
    }
    ids = tokenizer.encode(prompt, encode_special_tokens=True)
    return ExLlamaV2DynamicJob(ids, max_new_tokens=tokens, **given)


def run(generator: Any, *jobs: Any) -> list[Answer]:
    for job in jobs:
        generator.enqueue(job)
    return finish(generator, jobs)


def finish(generator: Any, jobs: Sequence[Any]) -> list[Answer]:
    results: list[dict[str, Any]] = []
    while generator.num_remaining_jobs():
        results += generator.iterate()
    return [answer_of(job, results) for job in jobs]


def answer_of(job: Any, results: Sequence[dict[str, Any]]) -> Answer:
    own = [result for result in results if result["job"] is job]
    tokens = [
        id_ for result in own if "token_ids" in result for id_ in result["token_ids"].flatten().tolist()
    ]
    return Answer("".join(result.get("text", "") for result in own), tuple(tokens), own[-1])


def test_a_question_is_answered(generator: Any, tokenizer: Any) -> None:
    (answer,) = run(generator, job_of(tokenizer, QUESTION))

    assert answer.last["full_completion"] == "The capital of France is Paris."
    assert answer.last["eos_reason"] == "stop_token"
    assert answer.last["prompt_tokens"] == 16


def test_text_before_a_stop_token_can_be_held_back_to_the_end(generator: Any, tokenizer: Any) -> None:
    """The full stop could have been the beginning of the stop string."""
    stops = [tokenizer.eos_token_id, ".\n\nThe end"]
    (answer,) = run(generator, job_of(tokenizer, QUESTION, stop_conditions=stops))

    assert answer.last["eos_reason"] == "stop_token"
    assert answer.text == "The capital of France is Paris"
    assert answer.last["held"]["text"] == "."


def test_a_stop_string_is_not_said(generator: Any, tokenizer: Any) -> None:
    (answer,) = run(generator, job_of(tokenizer, QUESTION, stop_conditions=[" Par"]))

    assert answer.last["eos_reason"] == "stop_string"
    assert answer.text == "The capital of France is"


def test_together_they_say_what_each_says_alone(generator: Any, tokenizer: Any) -> None:
    alone = [run(generator, job_of(tokenizer, beginning))[0] for beginning in BEGINNINGS]
    together = run(generator, *(job_of(tokenizer, beginning) for beginning in BEGINNINGS))

    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    assert len({answer.tokens for answer in alone}) == len(BEGINNINGS)
    assert alone[0].text.startswith(" Paris")


def test_a_step_says_something_of_each_job(generator: Any, tokenizer: Any) -> None:
    jobs = [job_of(tokenizer, beginning) for beginning in BEGINNINGS]
    for job in jobs:
        generator.enqueue(job)
    generator.iterate()

    step = generator.iterate()
    assert [result["job"] for result in step if result["stage"] == "streaming"] == jobs
    finish(generator, jobs)


def test_a_seed_repeats_an_answer(generator: Any, tokenizer: Any) -> None:
    from exllamav2.generator import ExLlamaV2Sampler

    def said(seed: int) -> str:
        settings = ExLlamaV2Sampler.Settings(temperature=1.5, top_k=0, top_p=1.0)
        (answer,) = run(generator, job_of(tokenizer, BEGINNINGS[1], gen_settings=settings, seed=seed))
        return answer.text

    assert said(1) == said(1) != said(2)


def test_whoever_is_cancelled_gives_back_its_pages(generator: Any, tokenizer: Any) -> None:
    free = len(generator.unreferenced_pages)
    cancelled, other = (job_of(tokenizer, beginning, 2 * PAGE) for beginning in BEGINNINGS[:2])
    generator.enqueue(cancelled)
    generator.enqueue(other)
    generator.iterate()
    both = len(generator.unreferenced_pages)

    generator.cancel(cancelled)

    assert both < len(generator.unreferenced_pages) < free
    step = generator.iterate()
    assert {result["job"] for result in step} == {other}
    generator.cancel(other)
    assert len(generator.unreferenced_pages) == free == generator.max_pages
    assert generator.iterate() == []


def test_a_second_turn_finds_the_first_one_in_the_cache(generator: Any, tokenizer: Any) -> None:
    (first,) = run(generator, job_of(tokenizer, LONG))
    assert first.last["cached_tokens"] == 0
    (second,) = run(generator, job_of(tokenizer, LONG + first.last["full_completion"] + " And then"))

    assert first.last["prompt_tokens"] > PAGE
    assert second.last["cached_tokens"] >= first.last["prompt_tokens"]


def test_a_long_prompt_is_read_a_chunk_at_each_step(generator: Any, tokenizer: Any) -> None:
    job = job_of(tokenizer, LONG)
    generator.enqueue(job)

    step = generator.iterate()
    assert [result["stage"] for result in step] == ["started", "prefill"]
    assert step[1]["curr_progress"] == PAGE < step[1]["max_progress"]
    (answer,) = finish(generator, [job])
    assert answer.text


def test_what_exceeds_the_cache_is_refused_and_hurts_nobody(generator: Any, tokenizer: Any) -> None:
    other = job_of(tokenizer, QUESTION)
    generator.enqueue(other)
    generator.iterate()

    with pytest.raises(AssertionError, match="pages"):
        generator.enqueue(job_of(tokenizer, LONG, generator.max_pages * PAGE))

    assert generator.num_remaining_jobs() == 1
    (answer,) = finish(generator, [other])
    assert answer.last["full_completion"] == "The capital of France is Paris."
    assert len(generator.unreferenced_pages) == generator.max_pages


def test_what_does_not_fit_now_waits(generator: Any, tokenizer: Any) -> None:
    """Pages for all that a job may say are taken when it starts."""
    large = job_of(tokenizer, QUESTION, (generator.max_pages - 1) * PAGE)
    small = job_of(tokenizer, BEGINNINGS[1], 2 * PAGE)
    generator.enqueue(large)
    generator.enqueue(small)
    first = generator.iterate()

    assert {result["job"] for result in first} == {large}
    while generator.num_remaining_jobs() == 2:
        generator.iterate()
    assert {result["job"] for result in generator.iterate()} == {small}
    generator.cancel(small)


def test_it_goes_on_after_an_error(generator: Any, tokenizer: Any, loaded: "Loaded") -> None:
    """With `clear_queue` and `reset_page_table`."""
    forward = loaded.model.forward_chunk
    generator.enqueue(job_of(tokenizer, QUESTION))
    try:
        loaded.model.forward_chunk = None
        with pytest.raises(TypeError):
            generator.iterate()
    finally:
        loaded.model.forward_chunk = forward

    generator.clear_queue()
    generator.reset_page_table()

    (answer,) = run(generator, job_of(tokenizer, QUESTION))
    assert answer.last["full_completion"] == "The capital of France is Paris."
