"""Norm, rotary embedding, activation and cache writes against plain formulas."""

import math

import pytest
import torch
from nfold.kernels import ops

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}
pytestmark = pytest.mark.usefixtures("implementation")


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


@pytest.mark.parametrize("d", [8, 24, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_turns_pairs_by_the_angle_and_the_cache_gets_keys_and_values(dtype: torch.dtype, d: int) -> None:
    T, H, K = 7, 3, 2
    qkv = random(T, H + 2 * K, d, dtype=dtype)
    angles = random(T, d // 2, dtype=torch.float32, seed=1)
    cos, sin = angles.cos(), angles.sin()
    k_cache, v_cache = (torch.zeros(5, 4, K, d, dtype=dtype) for _ in range(2))
    slots = [17, 3, 8, 0, 1, 2, 19]
    tables = torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)
    got = ops.rotary_and_write_kv(qkv.clone(), *tables, k_cache, v_cache, torch.tensor(slots))
    x = qkv[:, : H + K].float()
    pairs = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * torch.complex(cos, sin)[:, None]
    turned = torch.cat((pairs.real, pairs.imag), -1)
    accuracy = {"atol": 4 * TOLERANCE[dtype], "rtol": 4 * TOLERANCE[dtype]}
    torch.testing.assert_close(got.float(), turned[:, :H], **accuracy)
    torch.testing.assert_close(k_cache.view(20, K, d)[slots].float(), turned[:, H:], **accuracy)
    assert torch.equal(v_cache.view(20, K, d)[slots], qkv[:, H + K :])
    for cache in (k_cache, v_cache):
        assert int(cache.view(20, -1).any(-1).sum()) == T


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_and_mul(dtype: torch.dtype) -> None:
    x = random(3, 20, dtype=dtype)
    wanted = [[row[i] / (1 + math.exp(-row[i])) * row[i + 10] for i in range(10)] for row in x.double().tolist()]
    torch.testing.assert_close(
        ops.silu_and_mul(x).double(), torch.tensor(wanted).double(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


def test_silu_of_large_and_small_values() -> None:
    gate = torch.tensor([[-1e4, -200.0, -90.0, -20.0, 0.0, 20.0, 200.0, 1e4]])
    got = ops.silu_and_mul(torch.cat((gate, torch.ones_like(gate)), -1))
    torch.testing.assert_close(got, torch.nn.functional.silu(gate), atol=1e-30, rtol=1e-6)


@pytest.mark.parametrize("V", [1, 15, 16, 100, 4099])
def test_argmax_takes_the_lowest_id_of_equals(V: int) -> None:
    logits = random(9, V, dtype=torch.float32).round(decimals=1)
    wanted = [row.index(max(row)) for row in logits.tolist()]
    assert ops.argmax(logits).tolist() == wanted


def test_argmax_of_minus_infinities() -> None:
    logits = torch.full((2, 40), float("-inf"))
    logits[1, 39] = -1e30
    assert ops.argmax(logits).tolist() == [0, 39]
