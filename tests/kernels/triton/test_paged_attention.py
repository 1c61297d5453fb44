"""Under Triton's interpreter, against the reference. Tiles there are of 16 and 32 rows and keys.

Its products do not know bfloat16, so float16 stands for types that are rounded to.
"""

import kv_layout
import pytest
import torch
from nfold.kernels.reference import paged_attention as reference
from nfold.kernels.triton import paged_attention

SPANS = {
    "one token": [(0, 1)],
    "one decode": [(36, 37)],
    "decodes of very different lengths": [(n - 1, n) for n in (1, 300, 2, 17, 32, 16, 33)],
    "one prefill": [(0, 37)],
    "one chunk": [(20, 37)],
    "block boundaries": [(16, 17), (15, 16), (0, 16), (16, 32), (15, 33)],
    "decodes, prefills and chunks": [(36, 37), (4, 5), (99, 100), (0, 9), (8, 30), (0, 2), (60, 90)],
}


def largest_error(
    spans: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    d: int,
    *,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    block_size: int = 16,
) -> float:
    generator = torch.Generator().manual_seed(len(spans))
    paged = kv_layout.PagedSequences.scatter([stop for _, stop in spans], block_size)
    inputs, _ = paged.step([(sequence, *span) for sequence, span in enumerate(spans)])
    shape = (paged.num_blocks, block_size, kv_heads, d)
    k_cache, v_cache = (torch.randn(*shape, generator=generator).to(cache_dtype or dtype) for _ in range(2))
    qkv = torch.randn(sum(inputs.query_lens), heads + 2 * kv_heads, d, generator=generator).to(dtype)
    q = qkv[:, :heads]  # as rotary_and_write_kv leaves them
    scales = (0.5, 2.0) if cache_dtype else (1.0, 1.0)
    plan = reference.prepare_attention(inputs, k_cache)
    wanted = reference.paged_attention(q, k_cache, v_cache, plan, d**-0.5, *scales)
    got = paged_attention.paged_attention(
        q, k_cache, v_cache, paged_attention.prepare_attention(inputs), d**-0.5, *scales
    )
    assert got.dtype == dtype
    return float((got.double() - wanted.double()).abs().max())


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (8, 2), (8, 1), (3, 1)])
@pytest.mark.parametrize("name", SPANS)
def test_equals_the_reference(name: str, heads: int, kv_heads: int) -> None:
    assert largest_error(SPANS[name], heads, kv_heads, 16) < 2e-6


@pytest.mark.parametrize("name", ["decodes of very different lengths", "decodes, prefills and chunks"])
def test_equals_the_reference_in_float16(name: str) -> None:
    assert largest_error(SPANS[name], 8, 1, 32, dtype=torch.float16) < 4e-3


def test_more_heads_of_a_group_than_rows_of_a_tile() -> None:
    assert largest_error([(30, 31), (0, 3)], 40, 1, 16) < 2e-6


@pytest.mark.parametrize("d", [8, 24, 80])
def test_any_head_size(d: int) -> None:
    assert largest_error([(36, 37), (0, 9)], 4, 2, d) < 2e-6


@pytest.mark.parametrize("block_size", [1, 5, 32, 64])
def test_any_block_size(block_size: int) -> None:
    assert largest_error([(69, 70), (63, 64), (8, 40)], 4, 2, 16, block_size=block_size) < 2e-6


@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_fp8_cache(fp8: torch.dtype) -> None:
    assert largest_error([(36, 37), (299, 300), (8, 30)], 8, 2, 16, cache_dtype=fp8) < 1e-5


# Contexts longer than a split (256 keys), whose splits are of unequal length, or empty for the shorter sequence.
@pytest.mark.parametrize("spans", [[(700, 701)], [(1023, 1024), (2, 3)], [(620, 630)], [(513, 515), (0, 4)]])
def test_split_over_keys(spans: list[tuple[int, int]]) -> None:
    paged = kv_layout.PagedSequences.scatter([stop for _, stop in spans], 16)
    inputs, _ = paged.step([(sequence, *span) for sequence, span in enumerate(spans)])
    assert max(tiles.num_splits for tiles in paged_attention.prepare_attention(inputs).launches(8, 1)) > 1
    assert largest_error(spans, 8, 1, 16) < 2e-6
    assert largest_error(spans, 8, 1, 16, dtype=torch.float16) < 4e-3


@pytest.mark.parametrize(
    ("num_programs", "longest", "wanted"),
    [(4096, 300, 1), (1, 300, 2), (8, 4096, 16), (4096, 100_000, 16), (64, 4096, 8), (0, 0, 1), (1, 1_000_000, 64)],
)
def test_number_of_splits(num_programs: int, longest: int, wanted: int) -> None:
    assert paged_attention.choose_num_splits(num_programs, 528, longest, 8192) == wanted


def test_scores_of_any_size() -> None:
    """Where a softmax without its maximum taken off would overflow."""
    inputs, _ = kv_layout.PagedSequences.scatter([40], 16).step([(0, 0, 40)])
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(40, 1, 16, generator=generator) * 100
    k_cache, v_cache = (torch.randn(6, 16, 1, 16, generator=generator) for _ in range(2))
    k_cache *= 100
    wanted = reference.paged_attention(q, k_cache, v_cache, reference.prepare_attention(inputs, k_cache), 1.0)
    got = paged_attention.paged_attention(q, k_cache, v_cache, paged_attention.prepare_attention(inputs), 1.0)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
