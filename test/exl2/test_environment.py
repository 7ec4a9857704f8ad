"""The stand-ins for a GPU: what a process sees of them, and that they compute what the real ones do."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="`make test-exl2` has torch")
pytest.importorskip("exllamav2", reason="`make test-exl2` has exllamav2")


def answer_of(program: str, environment: Mapping[str, str]) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return finished.stdout


def test_a_process_with_the_folder_on_its_path_sees_a_gpu(exllamav2_environment: Mapping[str, str]) -> None:
    program = "import torch; print(torch.cuda.is_available(), torch.cuda.device_count())"
    assert answer_of(program, exllamav2_environment).split() == ["True", "1"]


def test_a_process_with_the_folder_on_its_path_has_the_library(
    exllamav2_environment: Mapping[str, str],
) -> None:
    program = "import exllamav2.attn; print(exllamav2.attn.has_flash_attn_with_paged)"
    assert answer_of(program, exllamav2_environment).split()[-1] == "True"


def test_a_process_that_imports_nothing_of_it_has_no_cost(exllamav2_environment: Mapping[str, str]) -> None:
    program = (
        "import sys; print([name for name in ('torch', 'exllamav2', 'flash_attn') if name in sys.modules])"
    )
    assert answer_of(program, exllamav2_environment).strip() == "[]"


def test_a_kernel_that_is_missing_says_so() -> None:
    import exllamav2_ext

    with pytest.raises(AttributeError, match="cannot do gemm_half_q_half: it runs Llama-like models in fp16"):
        _ = exllamav2_ext.gemm_half_q_half


def attended(q: Any, k: Any, v: Any) -> Any:
    """Attention of one sequence as it is defined, a query and a head at a time."""
    heard = torch.zeros_like(q)
    per_head = q.shape[1] // k.shape[1]
    for i in range(q.shape[0]):
        seen = k.shape[0] - q.shape[0] + i + 1
        for head in range(q.shape[1]):
            keys, values = k[:seen, head // per_head], v[:seen, head // per_head]
            weights = torch.softmax(keys @ q[i, head] / q.shape[2] ** 0.5, 0)
            heard[i, head] = weights @ values
    return heard


@pytest.mark.parametrize("news", [1, 3])
def test_attention_reads_each_sequence_from_its_own_pages(news: int) -> None:
    import flash_attn

    torch.manual_seed(0)
    page, lengths, table = 4, [5, 9], torch.tensor([[3, 0, 5], [1, 4, 2]])
    sequences = [torch.randn(2, length + news, 2, 8) for length in lengths]
    # What is behind the end of a sequence may be anything.
    caches = torch.full((2, 6, page, 2, 8), float("nan"))
    for (sequence, length), pages in zip(zip(sequences, lengths, strict=True), table, strict=True):
        for at in range(length):
            caches[:, pages[at // page], at % page] = sequence[:, at]
    fresh = torch.stack([sequence[:, -news:] for sequence in sequences], 1)
    queries = torch.randn(2, news, 4, 8)

    heard = flash_attn.flash_attn_with_kvcache(
        q=queries,
        k=fresh[0],
        v=fresh[1],
        k_cache=caches[0],
        v_cache=caches[1],
        cache_seqlens=torch.tensor(lengths, dtype=torch.int),
        block_table=table.int(),
        causal=True,
    )

    for i, (keys, values) in enumerate(sequences):
        torch.testing.assert_close(heard[i], attended(queries[i], keys, values))
        at = lengths[i]
        torch.testing.assert_close(caches[0, table[i, at // page], at % page], keys[at])


def test_sequences_in_a_row_do_not_hear_each_other() -> None:
    import flash_attn

    torch.manual_seed(0)
    q, k, v = (torch.randn(7, 2, 8) for _ in range(3))
    ends = torch.tensor([0, 3, 7], dtype=torch.int)
    heard = flash_attn.flash_attn_varlen_func(q, k, v, ends, ends, 4, 4, causal=True)

    expected = [attended(q[a:b], k[a:b], v[a:b]) for a, b in ((0, 3), (3, 7))]
    torch.testing.assert_close(heard, torch.cat(expected))


def test_pages_take_each_others_places() -> None:
    from exllamav2_ext import cache_rotate

    pages = torch.arange(5).repeat(2, 1).T.clone()
    cache_rotate(pages, torch.tensor([3, 0, 4], dtype=torch.int), None)
    assert pages[:, 0].tolist() == [4, 1, 2, 0, 3]


@pytest.mark.parametrize(("longest", "same"), [(5, 3), (2, 2)])
def test_a_common_beginning_is_counted(longest: int, same: int) -> None:
    from exllamav2_ext import count_match

    assert count_match(torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[1, 2, 3, 9, 5, 6]]), longest) == same
