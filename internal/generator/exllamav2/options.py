"""What is known of a model on exllamav2, before it is loaded."""

from dataclasses import dataclass
from pathlib import Path

from internal.biz.models import Sampling

PAGE_TOKENS = 256
"""The cache is shared out in pages of so many tokens."""


@dataclass(frozen=True, slots=True)
class DraftOptions:
    """A small model of the same vocabulary, which guesses `tokens` at a time for the large one."""

    path: Path
    tokens: int


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """An adapter's folder, and how strongly it works (1: as it was trained)."""

    path: Path
    scale: float


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded. Models that share a `path` are loaded once, and so share all of this.

    `cache` is how a token is kept: fp16, q8, q6 or q4. `cache_tokens` are for all answers together (0: as
    many as one may have), of which one has at most `max_seq_len` (0: as many as the model takes). `slots`
    answers are generated at a time. A step reads at most `chunk_size` tokens of prompts. `gpu_split` are GiB
    for each GPU (None: they are filled one after the other). `graphs`: what is asked of the GPU in a step is
    recorded, and then repeated at once; for the only model of a process, since all are asked in one stream,
    and what another one does meanwhile would be recorded in place of being done.
    """

    path: Path
    cache: str
    cache_tokens: int
    max_seq_len: int
    slots: int
    chunk_size: int
    gpu_split: tuple[float, ...] | None
    draft: DraftOptions | None
    warmup: bool
    graphs: bool = True

    @property
    def draft_tokens(self) -> int:
        return self.draft.tokens if self.draft is not None else 0


@dataclass(frozen=True, slots=True)
class ExLlamaV2Options:
    """A model as it is asked for. `template`: a file with a chat template (None: the model's own). Answers
    end before one of `stop`. `max_output_tokens` and `sampling` apply where a request says nothing; where
    both say nothing, what the model's files say."""

    load: LoadOptions
    loras: tuple[LoraOptions, ...]
    template: Path | None
    stop: tuple[str, ...]
    max_output_tokens: int
    sampling: Sampling
