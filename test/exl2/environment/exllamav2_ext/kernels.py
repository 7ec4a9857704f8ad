"""What CUDA kernels do for a Llama-like model in fp16, with torch. Names and arguments are the kernels'."""

from pathlib import Path
from typing import Any

import torch


def rms_norm(x: Any, weight: Any, out: Any, epsilon: float) -> None:
    """Each row of `x`, divided by its root mean square, times `weight`."""
    rows = x.float()
    scale = torch.rsqrt(rows.square().mean(-1, keepdim=True) + epsilon)
    out.copy_(rows * scale * weight.float())


def rope_(
    x: Any, sin: Any, cos: Any, past_len: int, heads: int, head_dim: int, offsets: Any, neox: bool
) -> None:
    """Turn queries or keys by their positions, in place.

    Sequence `i` begins at `past_len + offsets[i]`, or at `past_len` where `offsets` is on the device `meta`,
    which has no data. `sin`, `cos`: (1, 1, positions, head_dim).
    """
    if not neox:
        raise NotImplementedError("exllamav2 on a CPU turns halves (NeoX) only, as Llama does")
    states = x.view(x.shape[0], -1, heads, head_dim)
    positions = past_len + torch.arange(states.shape[1])[None]
    if not offsets.is_meta:
        positions = positions + offsets.long().view(-1, 1)
    sines, cosines = (table[0, 0, positions].float().unsqueeze(2) for table in (sin, cos))
    first, second = states.float().chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    states.copy_(states * cosines + turned * sines)


def cache_rotate(cache: Any, order: Any, temporary: Any) -> None:
    """Page `order[0]` takes what `order[1]` has, that one what `order[2]` has, …, the last the first's."""
    pages = order.long()
    cache[pages] = cache[pages.roll(-1)]


def stloader_read(filename: str, offset: int, size: int, target: Any) -> None:
    """Fill `target`, `size` bytes long, from a file."""
    if not target.numel():
        return
    with Path(filename).open("rb") as file:
        file.seek(offset)
        if file.readinto(target.view(-1).view(torch.uint8).numpy()) != size:
            raise OSError(f"{filename} ends too early")


def count_match(a: Any, b: Any, max_a: int) -> int:
    """How many tokens at the beginning of `a`, `max_a` at most, are those of `b`."""
    length = min(max_a, b.shape[-1])
    same = a.view(-1)[:length] == b.view(-1)[:length]
    return int(same.long().cumprod(0).sum())
