"""What is asked of `torch.cuda`, answered by the processor: one device, which is always done already."""

import contextlib
import os
from types import SimpleNamespace

__all__ = [
    "Stream",
    "current_device",
    "device",
    "device_count",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "is_available",
    "max_memory_allocated",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "reset_peak_memory_stats",
    "set_device",
    "set_stream",
    "stream",
    "synchronize",
]

NAME = "a CPU that stands in for a GPU"
CAPABILITY = (9, 0)
"""exllamav2 uses flash-attn from 8.0."""


class Stream:
    """Work is done when it was asked for: there is nothing to wait for."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def synchronize(self) -> None: ...


class device(contextlib.nullcontext[None]):  # noqa: N801  # torch's name
    """A choice between one."""

    def __init__(self, *_: object) -> None:
        super().__init__()


stream = device


def is_available() -> bool:
    return True


def device_count() -> int:
    return 1


def current_device() -> int:
    return 0


def get_device_name(*_: object) -> str:
    return NAME


def get_device_capability(*_: object) -> tuple[int, int]:
    return CAPABILITY


def get_device_properties(*_: object) -> SimpleNamespace:
    major, minor = CAPABILITY
    total_bytes = mem_get_info()[1]
    return SimpleNamespace(
        name=NAME, major=major, minor=minor, total_memory=total_bytes, multi_processor_count=1
    )


def mem_get_info(*_: object) -> tuple[int, int]:
    """Bytes that are free, and all there are."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page_bytes, os.sysconf("SC_PHYS_PAGES") * page_bytes


def memory_allocated(*_: object) -> int:
    return 0


def memory_reserved(*_: object) -> int:
    return 0


def max_memory_allocated(*_: object) -> int:
    return 0


def reset_peak_memory_stats(*_: object) -> None: ...


def set_device(*_: object) -> None: ...


def set_stream(*_: object) -> None: ...


def synchronize(*_: object) -> None: ...
