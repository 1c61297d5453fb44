"""Keys and values of a step's tokens go to their slots of the paged cache.

Legend: T tokens, N blocks, b tokens per block, K key heads, d head size.
"""

import torch

from . import fp8


def write_kv(
    k_TKd: torch.Tensor,
    v_TKd: torch.Tensor,
    k_cache_NbKd: torch.Tensor,
    v_cache_NbKd: torch.Tensor,
    slot_mapping_T: torch.Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    _write(k_TKd, k_cache_NbKd, slot_mapping_T, k_scale)
    _write(v_TKd, v_cache_NbKd, slot_mapping_T, v_scale)


def _write(x_TKd: torch.Tensor, cache_NbKd: torch.Tensor, slot_mapping_T: torch.Tensor, scale: float) -> None:
    slots = cache_NbKd.view(-1, *cache_NbKd.shape[2:])
    if cache_NbKd.dtype.itemsize > 1:
        slots.index_copy_(0, slot_mapping_T, x_TKd)
        return
    numbers_TKd = fp8.encode(x_TKd.float() * (1.0 / scale), cache_NbKd.dtype)
    slots.view(torch.uint8).index_copy_(0, slot_mapping_T, numbers_TKd.view(torch.uint8))
