"""Keys and values of a step's tokens go to their slots of the paged cache.

Legend: T tokens, N blocks, b tokens per block, K key heads, d head size.
"""

import torch


def write_kv(
    k_TKd: torch.Tensor,
    v_TKd: torch.Tensor,
    k_cache_NbKd: torch.Tensor,
    v_cache_NbKd: torch.Tensor,
    slot_mapping_T: torch.Tensor,
) -> None:
    k_cache_NbKd.view(-1, *k_cache_NbKd.shape[2:]).index_copy_(0, slot_mapping_T, k_TKd)
    v_cache_NbKd.view(-1, *v_cache_NbKd.shape[2:]).index_copy_(0, slot_mapping_T, v_TKd)
