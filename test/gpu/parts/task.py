"""What is to be tried: which models, and how much of everything."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from internal.generator.exllamav2.options import PAGE_TOKENS, DraftOptions, LoadOptions


@dataclass(frozen=True, slots=True)
class Sizes:
    """`chats` at a time are measured, `rounds` times each, with answers of `tokens`. `prompts` are compared,
    with answers of `compared_tokens`; a long answer has `long_tokens`. `killed_chats` lose their worker in
    answers of `killed_tokens`, under a lease of `lease_s`."""

    chats: tuple[int, ...] = (1, 8, 32, 128)
    rounds: int = 2
    tokens: int = 256
    prompts: int = 8
    compared_tokens: int = 48
    long_prompts: int = 2
    long_tokens: int = 700
    killed_chats: int = 32
    killed_tokens: int = 400
    lease_s: float = 3.0


SMALL = Sizes(
    chats=(1, 2),
    rounds=1,
    tokens=8,
    prompts=4,
    compared_tokens=6,
    long_prompts=1,
    long_tokens=280,
    killed_chats=2,
    killed_tokens=60,
    lease_s=3.0,
)
"""Enough to run every line on a processor that stands in for a GPU."""


@dataclass(frozen=True, slots=True)
class Task:
    """`quantised`: the folder of a quantised model, None where there is none. `context`: tokens of an answer
    with its prompt. `is_gpu`: no processor stands in for it."""

    model: Path
    quantised: Path | None
    sizes: Sizes
    context: int = 2048
    is_gpu: bool = True

    def load(self, slots: int = 8, **changes: Any) -> LoadOptions:
        """How the model is loaded: with room for the longest answer in each of the slots. What is `changes`
        is as in LoadOptions."""
        options = LoadOptions(
            path=self.model,
            cache="fp16",
            cache_tokens=slots * PAGE_TOKENS * 5,
            max_seq_len=self.context,
            slots=slots,
            chunk_size=512,
            gpu_split=None,
            draft=None,
            warmup=True,
        )
        return replace(options, **changes)

    def drafted(self) -> LoadOptions:
        """The model as its own draft."""
        return self.load(draft=DraftOptions(self.model, 4))

    def as_json(self) -> str:
        return json.dumps(asdict(self), default=str)


def read(text: str) -> Task:
    fields: Mapping[str, Any] = json.loads(text)
    sizes = {**fields["sizes"], "chats": tuple(fields["sizes"]["chats"])}
    quantised = fields["quantised"]
    return Task(
        model=Path(fields["model"]),
        quantised=Path(quantised) if quantised else None,
        sizes=Sizes(**sizes),
        context=fields["context"],
        is_gpu=fields["is_gpu"],
    )
