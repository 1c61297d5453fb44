"""Attention over the paged cache with torch's scaled_dot_product_attention.

Keys and values are gathered from their blocks. Query heads that share a key head are laid along the query
dimension (decode) or read the key head through a stride of 0 (prefill), so nothing is repeated in memory.

Legend: T tokens, S sequences of a group, B blocks per table row, N blocks of the cache, b tokens per block,
H query heads, K key heads, G = H / K query heads per key head, C gathered tokens (B * b), Q query tokens,
d head size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..attention_inputs import AttentionInputs


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Sequences with one query token each, at `rows_S` of the step's tokens."""

    rows_S: torch.Tensor
    blocks: torch.Tensor  # [S * B]
    mask_S11C: torch.Tensor  # 0 where the query may look, -inf elsewhere


@dataclass(frozen=True, slots=True)
class _Prefill:
    """One sequence with several query tokens, which are the last ones of its context."""

    start: int
    stop: int
    context: int
    blocks_B: torch.Tensor
    mask_QC: torch.Tensor | None  # None: the whole context is queried, plain causal


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What one step's attention needs on every layer, worked out once per step."""

    decodes: tuple[_DecodeGroup, ...]
    prefills: tuple[_Prefill, ...]


def prepare_attention(inputs: AttentionInputs, dtype: torch.dtype) -> AttentionPlan:
    return AttentionPlan(
        decodes=(_decode_group(inputs, dtype),) if inputs.num_decodes else (),
        prefills=tuple(_prefills(inputs, dtype)),
    )


def _decode_group(inputs: AttentionInputs, dtype: torch.dtype) -> _DecodeGroup:
    S, b = inputs.num_decodes, inputs.block_size
    device = inputs.block_tables_SB.device
    C = -(-max(inputs.host_context_lens[:S]) // b) * b
    positions_C = torch.arange(C, device=device, dtype=torch.int32)
    hidden_SC = positions_C >= inputs.context_lens_S[:S, None]
    mask_SC = torch.zeros(S, C, dtype=dtype, device=device).masked_fill_(hidden_SC, float("-inf"))
    return _DecodeGroup(
        rows_S=torch.arange(S, device=device),
        blocks=inputs.block_tables_SB[:S, : C // b].reshape(-1).long(),
        mask_S11C=mask_SC[:, None, None, :],
    )


def _prefills(inputs: AttentionInputs, dtype: torch.dtype) -> list[_Prefill]:
    b, device = inputs.block_size, inputs.block_tables_SB.device
    prefills: list[_Prefill] = []
    start = inputs.num_decodes
    for row in range(inputs.num_decodes, len(inputs.query_lens)):
        query, context = inputs.query_lens[row], inputs.host_context_lens[row]
        mask_QC = None
        if query != context:
            mask_QC = torch.full((query, context), float("-inf"), dtype=dtype, device=device).triu_(
                context - query + 1
            )
        blocks_B = inputs.block_tables_SB[row, : -(-context // b)].long()
        prefills.append(_Prefill(start, start + query, context, blocks_B, mask_QC))
        start += query
    return prefills


def paged_attention(
    q_THd: torch.Tensor, k_cache_NbKd: torch.Tensor, v_cache_NbKd: torch.Tensor, plan: AttentionPlan, scale: float
) -> torch.Tensor:
    o_THd = torch.empty_like(q_THd)
    for group in plan.decodes:
        _decode(q_THd, k_cache_NbKd, v_cache_NbKd, group, scale, o_THd)
    for prefill in plan.prefills:
        o_THd[prefill.start : prefill.stop] = _prefill(q_THd, k_cache_NbKd, v_cache_NbKd, prefill, scale)
    return o_THd


def _decode(
    q_THd: torch.Tensor,
    k_cache_NbKd: torch.Tensor,
    v_cache_NbKd: torch.Tensor,
    group: _DecodeGroup,
    scale: float,
    o_THd: torch.Tensor,
) -> None:
    S, C = group.mask_S11C.shape[0], group.mask_S11C.shape[-1]
    K, d = k_cache_NbKd.shape[2:]
    q_SKGd = q_THd[group.rows_S].view(S, K, -1, d)
    k_SKCd = k_cache_NbKd.index_select(0, group.blocks).view(S, C, K, d).transpose(1, 2)
    v_SKCd = v_cache_NbKd.index_select(0, group.blocks).view(S, C, K, d).transpose(1, 2)
    o_SKGd = F.scaled_dot_product_attention(q_SKGd, k_SKCd, v_SKCd, attn_mask=group.mask_S11C, scale=scale)
    o_THd[group.rows_S] = o_SKGd.reshape(S, -1, d)


def _prefill(
    q_THd: torch.Tensor,
    k_cache_NbKd: torch.Tensor,
    v_cache_NbKd: torch.Tensor,
    prefill: _Prefill,
    scale: float,
) -> torch.Tensor:
    K, d = k_cache_NbKd.shape[2:]
    q_QHd = q_THd[prefill.start : prefill.stop]
    q_KGQd = q_QHd.view(q_QHd.shape[0], K, -1, d).permute(1, 2, 0, 3)
    k_CKd = k_cache_NbKd.index_select(0, prefill.blocks_B).view(-1, K, d)[: prefill.context]
    v_CKd = v_cache_NbKd.index_select(0, prefill.blocks_B).view(-1, K, d)[: prefill.context]
    shape = (K, q_KGQd.shape[1], prefill.context, d)
    o_KGQd = F.scaled_dot_product_attention(
        q_KGQd,
        k_CKd.transpose(0, 1)[:, None].expand(shape),
        v_CKd.transpose(0, 1)[:, None].expand(shape),
        attn_mask=prefill.mask_QC,
        is_causal=prefill.mask_QC is None,
        scale=scale,
    )
    return o_KGQd.permute(2, 0, 1, 3).reshape(q_QHd.shape)
