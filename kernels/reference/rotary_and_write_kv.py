"""Rotary position embedding and the cache write in one step. Legend: as in `kernels/ops.py`, X = H + 2 K."""

import torch

from .rotary import rotary
from .write_kv import write_kv


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
    K = k_cache_NbKd.shape[2]
    H = qkv_TXd.shape[1] - 2 * K
    qk_TXd = rotary(qkv_TXd[:, : H + K], cos_Td, sin_Td)
    write_kv(qk_TXd[:, H:], qkv_TXd[:, H + K :], k_cache_NbKd, v_cache_NbKd, slot_mapping_T, k_scale, v_scale)
    return qk_TXd[:, :H]
