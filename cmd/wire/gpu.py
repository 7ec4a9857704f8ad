"""The settings of models on a GPU, in the words of their engine, and what those share that have one path."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from internal.biz.models import Sampling
from internal.conf import exllamav2 as options
from internal.conf import settings as conf
from internal.generator.exllamav2.host import Host
from internal.generator.exllamav2.loader import load_model
from internal.generator.exllamav2.options import DraftOptions, ExLlamaV2Options, LoadOptions, LoraOptions
from internal.generator.exllamav2.stats import EngineStats
from internal.metrics.instruments import Instruments


def exllamav2_options(asked: options.ExLlamaV2Options) -> ExLlamaV2Options:
    return ExLlamaV2Options(
        load=_load_options(asked),
        loras=_loras(asked),
        template=asked.template,
        stop=tuple(asked.stop),
        max_output_tokens=asked.max_output_tokens,
        sampling=Sampling(
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            min_p=asked.min_p,
            repetition_penalty=asked.repetition_penalty,
        ),
    )


def _load_options(asked: options.ExLlamaV2Options) -> LoadOptions:
    draft = asked.draft
    return LoadOptions(
        path=asked.path,
        cache=asked.cache,
        cache_tokens=asked.cache_tokens,
        max_seq_len=asked.max_seq_len,
        slots=asked.max_batch_size,
        chunk_size=asked.chunk_size,
        gpu_split=None if asked.gpu_split == "auto" else tuple(asked.gpu_split),
        draft=None if draft is None else DraftOptions(draft.path, draft.tokens),
        warmup=asked.warmup,
    )


def _loras(asked: options.ExLlamaV2Options) -> tuple[LoraOptions, ...]:
    return tuple(LoraOptions(lora.path, lora.scale) for lora in asked.lora)


def hosts(models: Sequence[conf.ExLlamaV2Model], instruments: Instruments) -> dict[Path, Host]:
    """By the path of the model. What is counted has the name of the first model with that path."""
    made: dict[Path, Host] = {}
    is_alone = len({model.options.path for model in models}) == 1
    for model in models:
        path = model.options.path
        if path not in made:
            sharing = [it.options for it in models if it.options.path == path]
            adapters = [lora for asked in sharing for lora in _loras(asked)]
            stats = EngineStats()
            instruments.watch_engine(model.name, stats)
            load = replace(_load_options(model.options), graphs=is_alone)
            made[path] = Host(load, adapters, load_model, stats)
    return made
