"""The packages exllamav2, torch and flash-attn: imported when a model is loaded, or what to do about them."""

import importlib.util
import logging
import os
from dataclasses import dataclass
from typing import Any

from internal.biz.errors import EngineLost, GenerationFailed

log = logging.getLogger(__name__)

_HOW = "see README, \"Models on a GPU\", and: pip install '.[gpu]'"
_PAGED_CAPABILITY = 8
"""Compute capability of the oldest GPUs that flash-attn runs on: Ampere."""


@dataclass(frozen=True, slots=True)
class Packages:
    """What was imported. `paged`: answers can be generated together."""

    torch: Any
    exllamav2: Any
    generator: Any
    paged: bool

    @classmethod
    def load(cls) -> "Packages":
        """Raises GenerationFailed, which says what to install."""
        try:
            import torch
        except (ImportError, OSError) as error:  # it loads the libraries of CUDA by their names
            raise _missing(f"exllamav2 needs torch, which cannot be imported ({line_of(error)})") from error
        if not torch.cuda.is_available():
            why = "it was built without CUDA" if torch.version.cuda is None else "is a driver installed?"
            message = f"exllamav2 needs an NVIDIA GPU, and torch {torch.__version__} finds none ({why})"
            raise _missing(message, "gpu_missing")
        reason = why_not_paged(torch)
        if reason:
            # Its other way of attention is not causal while it reads a prompt, and a flash-attn that is there
            # and cannot be imported would end it.
            os.environ["EXLLAMA_NO_SDPA"] = "1"
            os.environ["EXLLAMA_NO_FLASH_ATTN"] = "1"
            log.warning("exllamav2 generates one answer at a time: %s", reason)
        try:
            import exllamav2
            import exllamav2.generator
        except Exception as error:  # it compiles what it lacks while it is imported
            raise _missing(f"exllamav2 cannot be imported ({line_of(error)})") from error
        return cls(torch, exllamav2, exllamav2.generator, not reason)

    def settle(self) -> None:
        """Behind what failed: wait for the GPUs, and give back what torch keeps of their memory for later.
        Raises EngineLost when they are of no more use to this process."""
        cuda = self.torch.cuda
        try:
            # An error of CUDA stays: everything after it fails too. Of GPUs that are not in use nothing is
            # asked: that alone would take memory there, which others may have left none of.
            for device in range(cuda.device_count()):
                if cuda.memory_reserved(device):
                    cuda.synchronize(device)
            cuda.empty_cache()
        except Exception as error:
            raise EngineLost(f"the GPU is of no more use to this process ({line_of(error)})") from error


def _missing(message: str, code: str = "engine_missing") -> GenerationFailed:
    return GenerationFailed(f"{message}; {_HOW}", code=code)


def line_of(error: BaseException) -> str:
    """What a library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def why_not_paged(torch: Any) -> str:
    """Empty when flash-attn can be used."""
    devices = range(torch.cuda.device_count())
    if any(torch.cuda.get_device_properties(it).major < _PAGED_CAPABILITY for it in devices):
        return "flash-attn needs GPUs of the Ampere generation or newer"
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed (pip install flash-attn)"
    try:
        import flash_attn
        import flash_attn_2_cuda  # noqa: F401  # as exllamav2 does
    except (ImportError, OSError) as error:
        return f"flash-attn cannot be imported ({line_of(error)}): install one that was built for this torch"
    version = tuple(int(part) for part in flash_attn.__version__.split(".")[:3] if part.isdecimal())
    if version < (2, 5, 7):
        return f"flash-attn {flash_attn.__version__} is too old: it needs 2.5.7"
    return "EXLLAMA_NO_FLASH_ATTN is set" if "EXLLAMA_NO_FLASH_ATTN" in os.environ else ""
