"""Norm, rotary embedding, activation and cache writes against plain formulas."""

import math

import pytest
import torch
from nfold.kernels import ops

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype: torch.dtype) -> None:
    x, weight = random(5, 48, dtype=dtype), random(48, dtype=dtype, seed=1)
    wanted = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    got = ops.rms_norm(x, weight, 1e-5)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype: torch.dtype) -> None:
    x, residual, weight = (random(5, 48, dtype=dtype, seed=seed) for seed in range(3))
    total = x + residual
    normed, new_residual = ops.add_rms_norm(x, residual.clone(), weight, 1e-5)
    assert torch.equal(new_residual, total)
    assert torch.equal(normed, ops.rms_norm(total, weight, 1e-5))


def test_rotary_turns_pairs_by_the_angle() -> None:
    T, X, d = 4, 3, 8
    x = random(T, X, d, dtype=torch.float32)
    angles = random(T, d // 2, dtype=torch.float32, seed=1)
    cos, sin = angles.cos(), angles.sin()
    got = ops.rotary(x, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))
    pairs = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * torch.complex(cos, sin)[:, None]
    torch.testing.assert_close(got, torch.cat((pairs.real, pairs.imag), -1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_and_mul(dtype: torch.dtype) -> None:
    x = random(3, 20, dtype=dtype)
    wanted = [[row[i] / (1 + math.exp(-row[i])) * row[i + 10] for i in range(10)] for row in x.double().tolist()]
    torch.testing.assert_close(
        ops.silu_and_mul(x).double(), torch.tensor(wanted).double(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


def test_write_kv_fills_the_slots_and_nothing_else() -> None:
    k, v = (random(3, 2, 4, dtype=torch.float32, seed=seed) for seed in range(2))
    k_cache, v_cache = torch.zeros(5, 4, 2, 4), torch.zeros(5, 4, 2, 4)
    slots = [17, 3, 8]
    ops.write_kv(k, v, k_cache, v_cache, torch.tensor(slots))
    for token, slot in enumerate(slots):
        assert torch.equal(k_cache[slot // 4, slot % 4], k[token])
        assert torch.equal(v_cache[slot // 4, slot % 4], v[token])
    assert int(k_cache.flatten(2).any(-1).sum()) == 3
