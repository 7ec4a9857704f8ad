"""A model that exllamav2 has loaded: takes jobs for its dynamic generator. Knows tokens, not chats.

Source: https://github.com/turboderp-org/exllamav2/blob/master/exllamav2/generator/dynamic.py (version 0.3.2)
"""

import gc
from collections.abc import Mapping, Sequence
from typing import Any

from internal.biz.errors import EngineLost
from internal.generator.exllamav2.options import LoraOptions
from internal.generator.exllamav2.packages import Packages, line_of
from internal.generator.exllamav2.run import Order, Run


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
        self._packages = packages
        self._generator = generator
        self._adapters = dict(adapters)
        self._drafts = draft_tokens

    @property
    def pages(self) -> int:
        return int(self._generator.max_pages)

    @property
    def free_pages(self) -> int:
        return len(self._generator.unreferenced_pages)

    def job(self, run: Run, tokens: Sequence[int], max_new_tokens: int, order: Order, last: Any) -> Any:
        job = self._packages.generator.ExLlamaV2DynamicJob(
            input_ids=self._packages.torch.tensor([tokens], dtype=self._packages.torch.long),
            # The library stops as many before the end as it guesses.
            max_new_tokens=max_new_tokens + self._drafts,
            gen_settings=order.settings,
            seed=order.seed,
            stop_conditions=sorted(order.stop_tokens),
            filters=[order.filter] if order.filter is not None else None,
            identifier=run,
        )
        if last is not None:
            job.rng = last.rng  # or chance would begin anew
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
        self._generator.set_loras([self._adapters[it] for it in adapters] or None)
        # Pages are found by their tokens alone, and hold what another adapter made of them.
        self._generator.reset_page_table()

    def recover(self) -> None:
        generator, cuda = self._generator, self._packages.torch.cuda
        try:
            generator.clear_queue()
        except Exception:  # the step may have ended anywhere
            generator.active_jobs.clear()
            generator.pending_jobs.clear()
        generator.reset_page_table()
        try:
            # An error of CUDA stays: everything after it fails too.
            for device in range(cuda.device_count()):
                cuda.synchronize(device)
            cuda.empty_cache()
        except Exception as error:
            raise EngineLost(f"the GPU is of no more use to this process ({line_of(error)})") from error

    def unload(self) -> None:
        """Give the GPU's memory back."""
        generator = self._generator
        for model in (generator.model, generator.draft_model):
            if model is not None:
                model.unload()
        self._adapters.clear()
        del self._generator, generator, model
        gc.collect()
        self._packages.torch.cuda.empty_cache()

    # ── on any thread ────────────────────────────────────────────────────────────────────────────

    def settings(self, fields: Mapping[str, Any]) -> Any:
        return self._packages.generator.ExLlamaV2Sampler.Settings(**fields)

    def mask(self, logits: Any, allowed: bytes) -> Any:
        torch = self._packages.torch
        forbidden = torch.ones(logits.shape, dtype=torch.bool)
        size = min(len(allowed), logits.shape[0])
        forbidden[:size] = torch.frombuffer(bytearray(allowed[:size]), dtype=torch.uint8) == 0
        return logits.masked_fill(forbidden, float("-inf"))
