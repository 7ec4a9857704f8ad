"""What exllamav2 asks of whatever limits the next token of a job.

Source: https://github.com/turboderp-org/exllamav2/blob/master/exllamav2/generator/filters/base.py
"""

from abc import ABC, abstractmethod
from concurrent.futures import Executor
from typing import Any


class Filter(ABC):
    """Takes the place of an ExLlamaV2Filter: masks logits, and by itself does nothing in the background."""

    def begin(self, prefix_str: str) -> None:  # noqa: B027
        """A job of the library begins."""

    @abstractmethod
    def feed(self, token: Any) -> None:
        """`token` was chosen: a tensor of the shape (1, 1)."""

    def can_mask_logits(self) -> bool:
        return True

    def use_background_worker(self) -> bool:
        # Where one of a job says no, the library asks the others for lists of tokens in place of masks.
        return True

    def background_prepare_logit_mask(self, pool: Executor) -> None:  # noqa: B027
        """The GPU is busy with the next token, before which `mask_logits` is asked."""

    def background_drop(self) -> None:  # noqa: B027
        """Wait until nothing is in the background."""

    def get_next(self, mask: bool = False) -> bool:
        return True

    @abstractmethod
    def mask_logits(self, logits: Any) -> Any:
        """`logits` of the shape (vocabulary, padded); what may not come becomes -inf."""
