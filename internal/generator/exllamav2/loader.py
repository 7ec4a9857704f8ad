"""Loads models with exllamav2, and says what to do where that fails.

Source: https://github.com/turboderp-org/exllamav2 (config.py, model.py, cache.py; version 0.3.2)
"""

import gc
import logging
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from internal.biz.errors import GenerationFailed
from internal.biz.ports import Progress
from internal.generator.exllamav2.model import Model
from internal.generator.exllamav2.options import PAGE_TOKENS, LoadOptions, LoraOptions
from internal.generator.exllamav2.packages import Packages, line_of

log = logging.getLogger(__name__)

_GIB = 1 << 30
_SHARE_OF_DRAFT = 0.2
"""Of the time that loading takes."""
_NO_MEMORY = ("out of memory", "Insufficient", "ALLOC_FAILED")
"""How the end of memory is told by those who have no error of its own for it: CUDA and the library's
extension, the library where it shares out GPUs, cuBLAS."""


class Interrupted(Exception):
    """The model is not wanted any more."""


def load_model(
    options: LoadOptions, adapters: Sequence[LoraOptions], progress: Progress, wanted: Callable[[], bool]
) -> Model:
    """Load a model on this thread, which takes up to minutes. `wanted` is asked now and then.

    Raises Interrupted, GenerationFailed, which says what to do, and EngineLost when that would fail in this
    process for ever.
    """
    packages = Packages.load()
    loader = _Loader(packages, options, progress, wanted)
    try:
        return loader.load(adapters)
    except Exception as error:
        # Its frames hold what was loaded so far.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        packages.settle()
        if isinstance(error, (GenerationFailed, Interrupted)):
            raise
        raise _translated(error, packages.torch.cuda, options, loader.at) from error


class _Loader:
    def __init__(
        self, packages: Packages, options: LoadOptions, progress: Progress, wanted: Callable[[], bool]
    ) -> None:
        self._packages = packages
        self._options = options
        self._progress = progress
        self._wanted = wanted
        self.at = options.path
        """What is being loaded: the model, its draft or an adapter."""

    def load(self, adapters: Sequence[LoraOptions]) -> Model:
        options, exllamav2 = self._options, self._packages.exllamav2
        config = self._config(options.path)
        own = config.max_seq_len
        if options.max_seq_len > own:
            raise _invalid(f"{options.path} takes {own} tokens: set options.max_seq_len to no more")
        config.max_seq_len = context = min(options.max_seq_len or own, options.cache_tokens or own)
        paged = self._packages.paged and not config.no_flash_attn
        if not paged and self._packages.paged:
            log.warning(
                "exllamav2 generates one answer at a time: it cannot use flash-attn for %s", options.path
            )
        slots = options.slots if paged else 1
        queries = options.draft_tokens + 2 if options.draft is not None else 1
        # The library cuts it to the context when it fills several GPUs.
        chunk_size = min(
            _whole_pages(max(options.chunk_size, slots * queries)),
            max(PAGE_TOKENS, _whole_pages(context - PAGE_TOKENS + 1)),
        )
        cache_tokens = _whole_pages(options.cache_tokens or context)
        draft, draft_cache, begun = None, None, 0.0
        if options.draft is not None:
            draft_config = self._draft_config(options.draft.path, context, config.vocab_size)
            draft, draft_cache = self._weights(
                draft_config, chunk_size, cache_tokens, self._told(0.0, _SHARE_OF_DRAFT)
            )
            begun = _SHARE_OF_DRAFT
            self.at = options.path
        model, cache = self._weights(config, chunk_size, cache_tokens, self._told(begun, 0.95))
        tokenizer = exllamav2.ExLlamaV2Tokenizer(config)
        # Made when it is asked for first, and seen half made by whoever asks on another thread meanwhile.
        tokenizer.get_id_to_piece_list(True)
        generator = self._packages.generator.ExLlamaV2DynamicGenerator(
            model=model,
            cache=cache,
            tokenizer=tokenizer,
            max_batch_size=slots,
            max_seq_len=context,
            max_chunk_size=chunk_size,
            max_q_size=queries,  # its default holds eight rows of the vocabulary for each answer
            draft_model=draft,
            draft_cache=draft_cache,
            num_draft_tokens=options.draft_tokens,
            paged=paged,
        )
        loaded = {adapter: self._adapter(model, adapter) for adapter in dict.fromkeys(adapters)}
        self.at = options.path
        if options.warmup:
            generator.warmup()
        return Model(self._packages, generator, loaded, context, options.draft_tokens)

    def _config(self, path: Path) -> Any:
        self.at = path
        config = self._packages.exllamav2.ExLlamaV2Config(str(path))
        config.arch_compat_overrides(quiet=True)
        if not self._options.graphs:
            config.no_graphs = True
        return config

    def _draft_config(self, path: Path, context: int, vocabulary: int) -> Any:
        config = self._config(path)
        if config.vocab_size > vocabulary:
            raise _invalid(
                f"the draft model {path} has another vocabulary: {config.vocab_size} tokens, not {vocabulary}"
            )
        if config.max_seq_len < context:
            raise _invalid(
                f"the draft model {path} takes {config.max_seq_len} tokens: "
                "set options.max_seq_len to no more"
            )
        return config

    def _told(self, start: float, end: float) -> Callable[[int, int], None]:
        """A callback of the library's, which tells how far all of it is."""

        def callback(done: int, total: int) -> None:
            if not self._wanted():
                raise Interrupted
            self._progress(start + (end - start) * done / max(total, 1))

        return callback

    def _weights(
        self, config: Any, chunk_size: int, cache_tokens: int, told: Callable[[int, int], None]
    ) -> tuple[Any, Any]:
        """A model and its cache."""
        exllamav2, split = self._packages.exllamav2, self._options.gpu_split
        config.max_input_len = chunk_size
        config.max_attention_size = chunk_size**2
        model = exllamav2.ExLlamaV2(config)
        make_cache = {
            "fp16": exllamav2.ExLlamaV2Cache,
            "q8": exllamav2.ExLlamaV2Cache_Q8,
            "q6": exllamav2.ExLlamaV2Cache_Q6,
            "q4": exllamav2.ExLlamaV2Cache_Q4,
        }[self._options.cache]
        if split is None and self._packages.torch.cuda.device_count() > 1:
            cache = make_cache(model, max_seq_len=cache_tokens, lazy=True)
            model.load_autosplit(cache, callback=told)
            return model, cache
        model.load(None if split is None else list(split), callback=told)
        return model, make_cache(model, max_seq_len=cache_tokens)

    def _adapter(self, model: Any, adapter: LoraOptions) -> Any:
        if not (adapter.path / "adapter_config.json").is_file():
            raise _invalid(f"there is no LoRA in {adapter.path}: it has no adapter_config.json")
        self.at = adapter.path
        return self._packages.exllamav2.ExLlamaV2Lora.from_directory(model, str(adapter.path), adapter.scale)


def _whole_pages(tokens: int) -> int:
    return -(-tokens // PAGE_TOKENS) * PAGE_TOKENS


def _invalid(message: str) -> GenerationFailed:
    return GenerationFailed(message, code="model_invalid")


def _translated(error: Exception, cuda: Any, options: LoadOptions, at: Path) -> GenerationFailed:
    """What to do about a model that could not be loaded, with all that belongs to it; it failed `at` this."""
    if isinstance(error, cuda.OutOfMemoryError) or any(it in str(error) for it in _NO_MEMORY):
        split = "share out more in gpu_split, " if options.gpu_split is not None else ""
        return GenerationFailed(
            f"{options.path} does not fit into the GPU's memory ({_free_memory(cuda)}): {split}lower "
            "cache_tokens or max_seq_len, set cache to q8, q6 or q4, or take a smaller model",
            code="gpu_memory",
        )
    return _invalid(f"exllamav2 cannot load {at}: {line_of(error)}")


def _free_memory(cuda: Any) -> str:
    try:
        sizes = [cuda.mem_get_info(device) for device in range(cuda.device_count())]
    except Exception as error:  # even that takes some
        return line_of(error)
    return ", ".join(f"{left / _GIB:.1f} of {size / _GIB:.1f} GiB free" for left, size in sizes)
