"""Stands in for flash-attn 2 in tests: the three functions that exllamav2 imports, forward only, in torch.

One sequence after the other, each with exactly its own keys: slower than all at once would be with many of
them, but what one gets does not depend on the others.
"""

from typing import Any

import torch

__version__ = "2.8.3"
EVERYTHING = (-1, -1)
"""No window: each query sees all that comes before it."""


def flash_attn_func(
    q: Any,
    k: Any,
    v: Any,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = EVERYTHING,
    softcap: float = 0.0,
) -> Any:
    """Queries (batch, n, heads, size) over keys and values (batch, m, fewer heads, size)."""
    if window_size != EVERYTHING or softcap:
        raise NotImplementedError("flash_attn on a CPU knows neither sliding windows nor softcap")
    queries, keys, values = (tensor.transpose(1, 2).float() for tensor in (q, k, v))
    n, m = queries.shape[2], keys.shape[2]
    # The last query sees all keys, the one before it all but one: aligned at the bottom right.
    seen = torch.ones(n, m, dtype=torch.bool).tril(m - n) if causal and n > 1 else None
    heard = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=seen, scale=softmax_scale, enable_gqa=True
    )
    return heard.transpose(1, 2).to(q.dtype).contiguous()


def flash_attn_varlen_func(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    **options: Any,
) -> Any:
    """Sequences that stand one behind the other, without a batch: `cu_seqlens_…` say where each begins."""
    queries, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    spans = zip(queries, queries[1:], keys, keys[1:], strict=False)
    parts = [flash_attn_func(q[None, a:b], k[None, c:d], v[None, c:d], **options)[0] for a, b, c, d in spans]
    return torch.cat(parts)


def flash_attn_with_kvcache(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    k: Any = None,
    v: Any = None,
    cache_seqlens: Any = None,
    block_table: Any = None,
    **options: Any,
) -> Any:
    """Over a cache (pages, page size, heads, size). Row `i` of `block_table` lists the pages of sequence `i`,
    which holds `cache_seqlens[i]` tokens; `k` and `v`, where given, are written behind these first."""
    page = k_cache.shape[1]
    rows = []
    for i, (length, pages) in enumerate(zip(cache_seqlens.tolist(), block_table.long(), strict=True)):
        if k is not None:
            at = torch.arange(length, length + k.shape[1])
            length = length + k.shape[1]
            k_cache[pages[at // page], at % page] = k[i]
            v_cache[pages[at // page], at % page] = v[i]
        own = pages[: -(-length // page)]
        keys, values = (cache[own].flatten(0, 1)[None, :length] for cache in (k_cache, v_cache))
        rows.append(flash_attn_func(q[i : i + 1], keys, values, **options))
    return torch.cat(rows)
