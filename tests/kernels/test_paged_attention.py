"""Attention over scattered blocks against dense causal attention over each whole sequence."""

import random

import kv_layout
import pytest
import torch
from nfold.kernels import ops
from nfold.kernels.reference import fp8
from nfold.kernels.reference.write_kv import write_kv

pytestmark = pytest.mark.usefixtures("implementation")


def dense_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """q [C, H, d], k and v [C, K, d], all tokens of one sequence, in float64."""
    group = q.shape[1] // k.shape[1]
    k, v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,chd->hqc", q.double(), k) * scale
    scores += torch.full(scores.shape[1:], float("-inf"), dtype=torch.double).triu(1)
    return torch.einsum("hqc,chd->qhd", scores.softmax(-1), v)


def largest_error(
    spans: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    d: int,
    dtype: torch.dtype,
    block_size: int,
    cache_dtype: torch.dtype | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
) -> float:
    """Over a step that computes tokens [start, stop) of each sequence; those before are in the cache.

    With an FP8 cache the keys and values that count are those that it can hold.
    """
    generator = torch.Generator().manual_seed(len(spans))
    paged = kv_layout.PagedSequences.scatter([stop for _, stop in spans], block_size)
    shape = (paged.num_blocks, block_size, kv_heads, d)
    k_cache, v_cache = (torch.randn(*shape, generator=generator).to(cache_dtype or dtype) for _ in range(2))
    queries: list[torch.Tensor] = []
    wanted: list[torch.Tensor] = []
    for sequence, (start, stop) in enumerate(spans):
        q = torch.randn(stop, heads, d, generator=generator).to(dtype)
        k, v = (torch.randn(stop, kv_heads, d, generator=generator).to(dtype) for _ in range(2))
        write_kv(k, v, k_cache, v_cache, torch.tensor(paged.slots(sequence, 0, stop)), *scales)
        if cache_dtype is not None:
            k, v = (
                fp8.encode(x.float() / scale, cache_dtype).double() * scale
                for x, scale in zip((k, v), scales, strict=True)
            )
        queries.append(q[start:])
        wanted.append(dense_attention(q, k, v, d**-0.5)[start:])
    inputs, _ = paged.step([(sequence, *span) for sequence, span in enumerate(spans)])
    plan = ops.prepare_attention(inputs, k_cache)
    got = ops.paged_attention(torch.cat(queries), k_cache, v_cache, plan, d**-0.5, *scales)
    return float((got.double() - torch.cat(wanted)).abs().max())


SPANS = {
    "one decode": [(36, 37)],
    "decodes of one length": [(15, 16)] * 3,
    "decodes of very different lengths": [(n - 1, n) for n in (1, 300, 2, 17, 190, 16, 33)],
    "one prefill": [(0, 37)],
    "one chunk": [(20, 37)],
    "prefills of like lengths": [(0, 20), (0, 22), (0, 19)],
    "prefills and chunks": [(0, 40), (16, 50), (0, 3), (5, 9)],
    "decodes, prefills and chunks": [(36, 37), (4, 5), (99, 100), (0, 9), (8, 30), (0, 2), (60, 90)],
}


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 2), (3, 1), (20, 1)])
@pytest.mark.parametrize("name", SPANS)
def test_equals_dense_attention(name: str, heads: int, kv_heads: int) -> None:
    assert largest_error(SPANS[name], heads, kv_heads, 16, torch.float32, block_size=16) < 1e-5


@pytest.mark.parametrize("name", SPANS)
def test_equals_dense_attention_in_bfloat16(name: str) -> None:
    assert largest_error(SPANS[name], 8, 4, 32, torch.bfloat16, block_size=16) < 3e-2


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.25, 2.0)])
@pytest.mark.parametrize("cache_dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
@pytest.mark.parametrize("name", SPANS)
def test_fp8_cache(name: str, cache_dtype: torch.dtype, scales: tuple[float, float]) -> None:
    assert largest_error(SPANS[name], 8, 2, 16, torch.float32, 16, cache_dtype, scales) < 1e-5
    assert largest_error(SPANS[name], 8, 2, 16, torch.bfloat16, 16, cache_dtype, scales) < 6e-2


def test_an_fp8_cache_keeps_its_largest_number_for_larger_ones() -> None:
    cache = torch.zeros(2, 2, 1, 2, dtype=torch.float8_e4m3fn)
    k, v = torch.tensor([[[1e9, -500.0]]]), torch.tensor([[[3.0, -1e9]]])
    write_kv(k, v, cache, cache.clone(), torch.tensor([2]), k_scale=1.0, v_scale=1.0)
    assert cache[1, 0, 0].tolist() == [448.0, -448.0]


@pytest.mark.parametrize("block_size", [1, 5, 32])
def test_any_block_size(block_size: int) -> None:
    assert largest_error(SPANS["decodes, prefills and chunks"], 4, 2, 16, torch.float32, block_size) < 1e-5


@pytest.mark.parametrize("d", [8, 24, 80, 128, 200])
def test_any_head_size(d: int) -> None:
    assert largest_error(SPANS["decodes, prefills and chunks"], 4, 2, d, torch.float32, block_size=16) < 1e-5


def test_scores_of_any_size() -> None:
    """Where a softmax without its maximum taken off would overflow."""
    inputs, _ = kv_layout.PagedSequences.scatter([130], 16).step([(0, 0, 130)])
    q = torch.full((130, 1, 16), 40.0)
    k_cache = torch.full((12, 16, 1, 16), -40.0)
    table = inputs.block_tables_SB[0].long()
    k_cache[table[3:]] = 40.0  # the maximum rises later
    v_cache = torch.zeros(12, 16, 1, 16)
    v_cache[table[3:]] = 1.0
    got = ops.paged_attention(q, k_cache, v_cache, ops.prepare_attention(inputs, k_cache), 1.0)
    wanted = (torch.arange(130) >= 48).float()[:, None, None].expand(130, 1, 16)
    torch.testing.assert_close(got, wanted)


def test_many_sequences_fill_several_groups() -> None:
    lens = random.Random(0)
    spans = [(n - 1, n) for n in (lens.randint(1, 400) for _ in range(60))]
    spans += [(start, start + lens.randint(2, 40)) for start in (lens.randint(0, 60) for _ in range(20))]
    assert largest_error(spans, 8, 4, 64, torch.float32, block_size=16) < 1e-5
