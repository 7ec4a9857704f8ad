"""Settings of models that exllamav2 runs on a GPU."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from internal.conf.values import Count, Duration, OptionalFile, Positive


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Draft(_Section):
    """A small model of the same vocabulary; it guesses `tokens` at a time."""

    path: Path
    tokens: Annotated[int, Field(ge=1, le=16)] = 4


class Lora(_Section):
    path: Path
    scale: float = 1.0


class ExLlamaV2Options(_Section):
    """`path` is a folder with an exl2 model (or GPTQ, or fp16). Models with one `path` share what is loaded.

    The cache keeps `cache_tokens` (0: as many as one answer may have) for all answers together, of which one
    has at most `max_seq_len` with its prompt (0: what the model was made for), and `max_batch_size` run at a
    time. A step reads at most `chunk_size` tokens of prompts, so that long ones do not hold up the answers of
    others. `gpu_split`: GiB on each GPU, or "auto". `warmup`: generate something before anybody asks.
    `template` empty: the model's own. A model that nobody has asked for `idle_unload` gives the GPU's memory
    back until somebody does (0: never). What is left out of the rest is what the model's files say.
    """

    path: Path
    cache: Literal["fp16", "q8", "q6", "q4"] = "fp16"
    cache_tokens: Count = 0
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 32
    max_seq_len: Count = 0
    chunk_size: Annotated[int, Field(ge=256, multiple_of=256)] = 512
    gpu_split: Literal["auto"] | Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = "auto"
    warmup: bool = True
    draft: Draft | None = None
    lora: list[Lora] = []
    template: OptionalFile = None
    stop: list[Annotated[str, Field(min_length=1)]] = []
    max_output_tokens: Positive = 4096
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Count | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    idle_unload: Duration = 0.0

    @property
    def loading(self) -> tuple[object, ...]:
        """All that models which share a `path` have to agree on."""
        return (
            self.cache,
            self.cache_tokens,
            self.max_batch_size,
            self.max_seq_len,
            self.chunk_size,
            self.gpu_split,
            self.warmup,
            self.draft,
        )
