"""A model that exllamav2 has loaded: takes jobs for its dynamic generator. Knows tokens, not chats.

Source: https://github.com/turboderp-org/exllamav2/blob/master/exllamav2/generator/dynamic.py (version 0.3.2)
"""

import functools
import gc
from collections.abc import Mapping, Sequence
from typing import Any

from internal.biz.scores import LEAST_LOGPROB, TokenScore
from internal.generator.exllamav2.options import LoraOptions
from internal.generator.exllamav2.packages import Packages
from internal.generator.exllamav2.run import Run

_REMEMBERED = 16
"""Of the lists of texts that clients break repetitions at: looking them up takes as long as the vocabulary
is."""


def _at_least(logprob: float) -> float:
    return max(LEAST_LOGPROB, logprob)


class Model:
    """Implements batch.Library. Its methods belong to the thread that loaded it, but where they say
    otherwise."""

    def __init__(
        self,
        packages: Packages,
        generator: Any,
        adapters: Mapping[LoraOptions, Any],
        context: int,
        draft_tokens: int,
    ) -> None:
        """`context`: tokens of an answer with its prompt. `draft_tokens` are guessed at a time."""
        self.context = context
        self.slots = int(generator.max_batch_size)
        self.chunk_size = int(generator.max_chunk_size)
        self.is_paged = bool(generator.paged)
        self._packages = packages
        self._generator = generator
        self._adapters = dict(adapters)
        self._drafts = draft_tokens
        self._with_any = functools.lru_cache(_REMEMBERED)(self._tokens_with_any)

    @property
    def pages(self) -> int:
        return int(self._generator.max_pages)

    @property
    def free_pages(self) -> int:
        return len(self._generator.unreferenced_pages)

    def job(self, run: Run, max_new_tokens: int) -> Any:
        order, torch = run.order, self._packages.torch
        job = self._packages.generator.ExLlamaV2DynamicJob(
            input_ids=torch.tensor([run.tokens], dtype=torch.long),
            # The library stops as many before the end as it guesses.
            max_new_tokens=max_new_tokens + self._drafts,
            min_new_tokens=max(0, order.min_tokens - run.new_tokens),
            gen_settings=order.settings,
            seed=order.seed,
            stop_conditions=sorted(order.stop_tokens),
            filters=run.filters,
            return_logits=order.score is not None,
            identifier=run,
        )
        if run.library_job is not None:
            job.rng = run.library_job.rng  # or chance would begin anew
        return job

    def enqueue(self, job: Any) -> int:
        self._generator.enqueue(job)
        return int(job.current_new_pages_required())

    def cancel(self, job: Any) -> None:
        self._generator.cancel(job)

    def iterate(self) -> Sequence[Mapping[str, Any]]:
        results: Sequence[Mapping[str, Any]] = self._generator.iterate()
        return results

    def cached_tokens(self, job: Any) -> int:
        return int(job.cached_pages * self._generator.page_size + job.cached_tokens)

    def use(self, adapters: tuple[LoraOptions, ...]) -> None:
        if adapters:
            self._generator.set_loras([self._adapters[it] for it in adapters])
        else:
            # Its own way of taking none leaves an empty list, in which it then looks for the first.
            self._generator.current_loras = None
        # Pages are found by their tokens alone, and hold what another adapter made of them.
        self._generator.reset_page_table()

    def recover(self) -> None:
        generator = self._generator
        try:
            generator.clear_queue()
        except Exception:  # the step may have ended anywhere
            generator.active_jobs.clear()
            generator.pending_jobs.clear()
        generator.filter_queue.clear()  # or what failed in there would fail again in each step
        generator.reset_page_table()
        self._packages.settle()

    def unload(self) -> None:
        """Give the GPU's memory back. The interpreter stands still while it looks for what is left."""
        generator = self._generator
        for model in (generator.model, generator.draft_model):
            if model is not None:
                model.unload()
        # Its pages hold the generator, and it holds them.
        generator.cache = generator.draft_cache = generator.defrag_buffer = None
        self._adapters.clear()
        del self._generator, generator, model
        gc.collect()
        self._packages.torch.cuda.empty_cache()

    def scores(self, logits: Any, tokens: Sequence[int], top: int) -> list[TokenScore]:
        """How likely the tokens were, and the `top` likeliest others: before temperature and truncation,
        behind penalties and biases. `logits` of the shape (1, tokens or more, vocabulary)."""
        torch, pieces = self._packages.torch, self._generator.tokenizer.get_id_to_piece_list(True)
        likely = torch.log_softmax(logits[0, : len(tokens)].float(), dim=-1)
        best = torch.topk(likely, top, dim=-1) if top else None
        scores = []
        for row, token in enumerate(tokens):
            others: list[tuple[str, float]] = []
            if best is not None:
                found = zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)
                others = [(pieces[it], _at_least(value)) for it, value in found if it < len(pieces)]
            scores.append(TokenScore(pieces[token], _at_least(likely[row, token].item()), tuple(others)))
        return scores

    # ── on any thread ────────────────────────────────────────────────────────────────────────────

    def settings(self, fields: Mapping[str, Any]) -> Any:
        """What ExLlamaV2Sampler.Settings takes; `logit_bias` are pairs of a token and what is added to its
        logit, `dry_sequence_breakers` texts."""
        own = dict(fields)
        if biases := own.pop("logit_bias", ()):
            own["token_bias"] = self._bias(biases)
        if texts := own.pop("dry_sequence_breakers", ()):
            own["dry_sequence_breakers"] = self._with_any(texts)
        return self._packages.generator.ExLlamaV2Sampler.Settings(**own)

    def _bias(self, biases: Sequence[tuple[int, float]]) -> Any:
        size, torch = self._generator.padded_vocab_size, self._packages.torch
        bias = torch.zeros((size,), dtype=torch.float)
        for token, value in biases:
            if token < size:
                bias[token] = value
        return bias

    def _tokens_with_any(self, texts: tuple[str, ...]) -> frozenset[int]:
        pieces = self._generator.tokenizer.get_id_to_piece_list(True)
        return frozenset(token for token, piece in enumerate(pieces) if any(text in piece for text in texts))

    def mask(self, logits: Any, allowed: bytes) -> Any:
        torch = self._packages.torch
        forbidden = torch.ones(logits.shape, dtype=torch.bool)
        size = min(len(allowed), logits.shape[0])
        forbidden[:size] = torch.frombuffer(bytearray(allowed[:size]), dtype=torch.uint8) == 0
        return logits.masked_fill(forbidden, float("-inf"))
