"""Under Triton's interpreter, against the reference."""

import pytest
import torch
from fp8_numbers import random_fp8
from nfold.kernels.reference import rotary_and_write_kv as reference
from nfold.kernels.reference.fp8 import largest
from nfold.kernels.triton import rotary_and_write_kv

SLOTS = [17, 3, 8, 0, 1, 2, 19]
BLOCK_SIZE, NUM_BLOCKS = 4, 5


def inputs(H: int, K: int, d: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(len(SLOTS), H + 2 * K, d, generator=generator).to(dtype)
    angles = torch.randn(len(SLOTS), d // 2, generator=generator)
    cos, sin = angles.cos(), angles.sin()
    return qkv, torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


@pytest.mark.parametrize(("H", "K"), [(1, 1), (3, 1), (8, 2), (9, 3)])
@pytest.mark.parametrize("d", [2, 24, 64])
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-2)])
def test_equals_the_reference(H: int, K: int, d: int, dtype: torch.dtype, accuracy: float) -> None:
    qkv, cos, sin = inputs(H, K, d, dtype)
    ours, theirs = (torch.zeros(2, NUM_BLOCKS, BLOCK_SIZE, K, d, dtype=dtype) for _ in range(2))
    slots = torch.tensor(SLOTS)
    wanted = reference.rotary_and_write_kv(qkv.clone(), cos, sin, *theirs, slots)
    got = rotary_and_write_kv.rotary_and_write_kv(qkv.clone(), cos, sin, *ours, slots)
    torch.testing.assert_close(got, wanted, atol=accuracy, rtol=accuracy)
    torch.testing.assert_close(ours[0], theirs[0], atol=accuracy, rtol=accuracy)
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_fp8_cache(fp8: torch.dtype) -> None:
    H, K, d = 4, 2, 16
    qkv = random_fp8(len(SLOTS), H + 2 * K, d, dtype=fp8) / 4
    qkv[0] *= 2.0**20  # beyond what the type holds
    cos, sin = torch.ones(len(SLOTS), d), torch.zeros(len(SLOTS), d)
    ours, theirs = (torch.zeros(2, NUM_BLOCKS, BLOCK_SIZE, K, d, dtype=fp8) for _ in range(2))
    slots = torch.tensor(SLOTS)
    reference.rotary_and_write_kv(qkv.clone(), cos, sin, *theirs, slots, 0.5, 0.25)
    rotary_and_write_kv.rotary_and_write_kv(qkv.clone(), cos, sin, *ours, slots, 0.5, 0.25)
    assert torch.equal(ours.float(), theirs.float())
    assert float(ours.float().abs().max()) == largest(fp8)
    assert int(ours[0].float().any(-1).sum()) == len(SLOTS) * K


def test_no_tokens() -> None:
    qkv, cos, sin = (x[:0] for x in inputs(2, 1, 8, torch.float32))
    cache = torch.zeros(2, NUM_BLOCKS, BLOCK_SIZE, 1, 8)
    got = rotary_and_write_kv.rotary_and_write_kv(qkv, cos, sin, *cache, torch.zeros(0, dtype=torch.int64))
    assert got.shape == (0, 2, 8)
    assert not cache.any()
