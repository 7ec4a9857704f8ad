"""Stands in for exllamav2's compiled extension: the library imports this name before it compiles its own.

The sampler and the search for stop strings are the library's own C++ (`native`); what CUDA kernels did for a
Llama-like model in fp16 is done with torch (`kernels`).
"""

from typing import NoReturn

from exllamav2_ext import native
from exllamav2_ext.kernels import cache_rotate, count_match, rms_norm, rope_, stloader_read

__all__ = ["cache_rotate", "count_match", "rms_norm", "rope_", "stloader_read"]

for _name, _function in vars(native.load()).items():
    if not _name.startswith("_"):
        globals()[_name] = _function


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(f"exllamav2 on a CPU cannot do {name}: it runs Llama-like models in fp16 only")
