"""Rotary position embedding and the cache write in one pass; the queries are turned where they lie.

    heads of a token   | q0 ... qH-1 | k0 .. kK-1 | v0 .. vK-1 |
                         turned        turned       as they are
                         in place      to the cache, divided by their scale where the cache is FP8

Legend: as in `kernels/ops.py`, X = H + 2 K, h = d / 2.
"""

# pyright: reportMissingParameterType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# A kernel is Python in form only: the launch decides what its parameters are.

import torch
import triton
import triton.language as tl

from ..reference import fp8
from .tuning import tuning


@triton.jit
def _rotary_and_write_kv(
    qkv,
    cos,
    sin,
    k_cache,
    v_cache,
    slots,
    k_inverse,
    v_inverse,
    H,
    K,
    stride_slot,
    D: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_h: tl.constexpr,
    MAX: tl.constexpr,
):
    token = tl.program_id(1).to(tl.int64)
    head = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)[:, None]
    i = tl.arange(0, BLOCK_h)[None, :]
    inside = (head < H + 2 * K) & (i < D // 2)
    low = qkv + token * (H + 2 * K) * D + head * D + i
    x1 = tl.load(low, mask=inside, other=0.0)
    x2 = tl.load(low + D // 2, mask=inside, other=0.0)
    angle = token * D + i
    half = i < D // 2
    cos1 = tl.load(cos + angle, mask=half, other=0.0).to(tl.float32)
    cos2 = tl.load(cos + angle + D // 2, mask=half, other=0.0).to(tl.float32)
    sin1 = tl.load(sin + angle, mask=half, other=0.0).to(tl.float32)
    sin2 = tl.load(sin + angle + D // 2, mask=half, other=0.0).to(tl.float32)
    y1 = x1.to(tl.float32) * cos1 + x2.to(tl.float32) * sin1
    y2 = x2.to(tl.float32) * cos2 + x1.to(tl.float32) * sin2

    is_query = inside & (head < H)
    tl.store(low, y1.to(qkv.dtype.element_ty), mask=is_query)
    tl.store(low + D // 2, y2.to(qkv.dtype.element_ty), mask=is_query)

    slot = tl.load(slots + token) * stride_slot
    is_key = inside & (head >= H) & (head < H + K)
    to_key = k_cache + slot + (head - H) * D + i
    tl.store(to_key, _stored(y1, k_inverse, k_cache, MAX), mask=is_key)
    tl.store(to_key + D // 2, _stored(y2, k_inverse, k_cache, MAX), mask=is_key)
    is_value = inside & (head >= H + K)
    to_value = v_cache + slot + (head - H - K) * D + i
    tl.store(to_value, _stored(x1, v_inverse, v_cache, MAX), mask=is_value)
    tl.store(to_value + D // 2, _stored(x2, v_inverse, v_cache, MAX), mask=is_value)


@triton.jit
def _stored(x, inverse_scale, cache, MAX: tl.constexpr):
    """In the cache's type; MAX is the largest number that an FP8 type takes, 0 for others."""
    if MAX > 0:
        x = tl.minimum(tl.maximum(x.to(tl.float32) * inverse_scale, -MAX), MAX)
    return x.to(cache.dtype.element_ty)


def rotary_and_write_kv(
    qkv_TXd: torch.Tensor,
    cos_Td: torch.Tensor,
    sin_Td: torch.Tensor,
    k_cache_NbKd: torch.Tensor,
    v_cache_NbKd: torch.Tensor,
    slot_mapping_T: torch.Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    assert qkv_TXd.is_contiguous()
    assert k_cache_NbKd.is_contiguous()
    assert v_cache_NbKd.is_contiguous()
    T, X, d = qkv_TXd.shape
    K = k_cache_NbKd.shape[2]
    H = X - 2 * K
    dtype = k_cache_NbKd.dtype
    tuned = tuning()
    if T > 0:
        _rotary_and_write_kv[(triton.cdiv(X, tuned.rotary_heads), T)](
            qkv_TXd,
            cos_Td,
            sin_Td,
            k_cache_NbKd,
            v_cache_NbKd,
            slot_mapping_T,
            1.0 / k_scale,
            1.0 / v_scale,
            H,
            K,
            K * d,
            D=d,
            BLOCK_X=tuned.rotary_heads,
            BLOCK_h=triton.next_power_of_2(d // 2),
            MAX=fp8.largest(dtype) if dtype.itemsize == 1 else 0.0,
            **tuned.elementwise,
        )
    return qkv_TXd[:, :H]
