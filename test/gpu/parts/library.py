"""exllamav2 without Sluice: jobs in, steps, tokens counted. What Sluice is compared with.

As a program it loads the model that its argument describes (a Task, and how many slots) and answers one line
of standard input with one of standard output at a time.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from internal.generator.exllamav2.options import LoadOptions
from internal.generator.exllamav2.sampling import NEUTRAL, settings

MARK = "sluice-bare: "
"""Begins the lines of the program's output that are ours: libraries print, too."""


@dataclass(slots=True)
class Spoken:
    """An answer, token by token; `at_s` of each that said something, since the first was asked for."""

    tokens: list[int] = field(default_factory=list)
    texts: list[tuple[int, str]] = field(default_factory=list)
    """What was said, each with how many tokens there were before it."""
    at_s: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.texts)


@dataclass(frozen=True, slots=True)
class Round:
    """Answers at a time, and how long all took together."""

    answers: list[Spoken]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(len(answer.tokens) for answer in self.answers)


class Library:
    """A dynamic generator of the library's, on the thread that uses it, with nothing else to do."""

    def __init__(self, generator: Any, stop_tokens: Sequence[int]) -> None:
        self._generator = generator
        self._stop_tokens = list(stop_tokens)

    @classmethod
    def load(cls, options: LoadOptions, stop_tokens: Sequence[int]) -> "Library":
        """With what Sluice's loader gives the library for the same options."""
        import exllamav2
        from exllamav2.generator import ExLlamaV2DynamicGenerator

        config = exllamav2.ExLlamaV2Config(str(options.path))
        config.arch_compat_overrides(quiet=True)
        context = min(options.max_seq_len, config.max_seq_len)
        config.max_seq_len = context
        config.max_input_len = options.chunk_size
        config.max_attention_size = options.chunk_size**2
        model = exllamav2.ExLlamaV2(config)
        model.load()
        generator = ExLlamaV2DynamicGenerator(
            model=model,
            cache=exllamav2.ExLlamaV2Cache(model, max_seq_len=options.cache_tokens),
            tokenizer=exllamav2.ExLlamaV2Tokenizer(config),
            max_batch_size=options.slots,
            max_seq_len=context,
            max_chunk_size=options.chunk_size,
            max_q_size=1,
            paged=True,
        )
        generator.warmup()
        return cls(generator, stop_tokens)

    def answers(self, prompts: Sequence[Sequence[int]], tokens: int, *, least: int = 0) -> Round:
        """All at a time, greedy, each of at most `tokens` and at least `least` tokens."""
        begun_s = time.perf_counter()
        answers = []
        for prompt in prompts:
            answers.append(spoken := Spoken())
            self._generator.enqueue(self._job(prompt, tokens, least, identifier=spoken))
        while self._generator.num_remaining_jobs():
            results = self._generator.iterate()
            now_s = time.perf_counter() - begun_s
            for result in results:
                _hear(result, now_s)
        return Round(answers, time.perf_counter() - begun_s)

    def odds(self, tokens: Sequence[int], *, goes_on: bool = False) -> float:
        """How likely the second choice behind `tokens` is, by the likelihood of the first one: near 1 is a
        tie, which a rounding decides. `goes_on`: to end is none of the choices."""
        # Where it is 0, there is no second choice.
        settings_ = self._settings(temperature=1.0, top_k=0, top_p=1.0)
        job = self._job(tokens, 1, int(goes_on), gen_settings=settings_, return_top_tokens=2)
        self._generator.enqueue(job)
        found: list[float] = []
        while self._generator.num_remaining_jobs():
            for result in self._generator.iterate():
                for said in (result, result.get("held", {})):
                    if "top_k_probs" in said:
                        found = found or said["top_k_probs"].flatten().tolist()
        return found[1] / found[0] if len(found) > 1 and found[0] else 0.0

    def _job(self, prompt: Sequence[int], tokens: int, least: int, **more: Any) -> Any:
        import torch
        from exllamav2.generator import ExLlamaV2DynamicJob

        given: dict[str, Any] = {"gen_settings": self._settings(), **more}
        return ExLlamaV2DynamicJob(
            input_ids=torch.tensor([list(prompt)], dtype=torch.long),
            max_new_tokens=tokens,
            min_new_tokens=least,
            stop_conditions=self._stop_tokens,
            **given,
        )

    def _settings(self, **changes: Any) -> Any:
        """Those that Sluice has the library use where temperature is 0 and nothing else is asked for."""
        from exllamav2.generator import ExLlamaV2Sampler

        return ExLlamaV2Sampler.Settings(**{**settings(replace(NEUTRAL, temperature=0.0)), **changes})


def _hear(result: dict[str, Any], now_s: float) -> None:
    spoken: Spoken = result["identifier"]
    if result["stage"] != "streaming":
        return
    is_stop = result["eos"] and result["eos_reason"] == "stop_token"
    for said in (result, result.get("held", {}) if is_stop else {}):
        if text := said.get("text", ""):
            spoken.texts.append((len(spoken.tokens), text))
            spoken.at_s.append(now_s)
        if "token_ids" in said:
            spoken.tokens += said["token_ids"].flatten().tolist()
    if is_stop:
        spoken.tokens = spoken.tokens[:-1]


def _serve() -> None:
    import questions
    import task

    asked = task.read(sys.argv[1])
    reader = questions.Reader(asked.model)
    library = Library.load(asked.load(int(sys.argv[2])), reader.stop_tokens)
    print(f"{MARK}{{}}", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        prompts = reader.all_tokens(wanted["questions"])
        done = library.answers(prompts, wanted["tokens"], least=wanted["tokens"])
        told = {
            "seconds": done.seconds,
            "tokens": done.tokens,
            "texts": [answer.text for answer in done.answers],
            "at_s": [answer.at_s for answer in done.answers],
        }
        print(MARK + json.dumps(told), flush=True)


if __name__ == "__main__":
    _serve()
