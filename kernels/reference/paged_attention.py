"""Attention over the paged cache with torch's scaled_dot_product_attention.

Sequences of like lengths form a group: their keys and values are gathered from the blocks side by side, padded to
the longest, and attended to in one call. Groups are small enough that on CPU what is gathered stays in the core's
cache (3 to 4 times faster than 64 sequences at once), and alike enough that little of it is padding.

    tokens of the step    |s0|s1|s2| s3 s3 s3 | s4 s4 |
    rows, group by group  |s1|s0|  |s2|  | s3 s3 s3 | s4 s4 s4 |       a permutation, with queries padded too

Legend: T tokens, P padded rows, S sequences of a group, Q query tokens and C gathered tokens of each of them,
N blocks of the cache, b tokens per block, H query heads, K key heads, d head size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..attention_inputs import AttentionInputs
from . import fp8

_GROUP_BYTES_CPU = 2 << 20
_GROUP_BYTES_GPU = 512 << 20


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences attended to in one call; their queries are rows [start, stop), `num_queries` for each sequence."""

    start: int
    stop: int
    num_sequences: int
    num_queries: int
    num_context: int
    blocks: torch.Tensor  # [S * blocks per sequence]
    # 0 where a query may look, -inf elsewhere, or true and false with an FP8 cache; None: all, or plain causal
    mask_S1QC: torch.Tensor | None
    is_causal: bool


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One step's groups, the same on every layer. None: the rows are the tokens as they are."""

    groups: tuple[_Group, ...]
    token_of_row_P: torch.Tensor | None
    row_of_token_T: torch.Tensor | None


def prepare_attention(inputs: AttentionInputs, k_cache_NbKd: torch.Tensor) -> AttentionPlan:
    device = k_cache_NbKd.device
    group_bytes = _GROUP_BYTES_CPU if device.type == "cpu" else _GROUP_BYTES_GPU
    group_tokens = group_bytes // (2 * k_cache_NbKd[0, 0].nbytes)
    query_lens, context_lens = np.array(inputs.query_lens), np.array(inputs.host_context_lens)
    first_token = np.cumsum(query_lens) - query_lens

    groups: list[_Group] = []
    tokens: list[np.ndarray] = []
    start = 0
    for members in _like_lengths(query_lens, context_lens, inputs.num_decodes, group_tokens):
        queries, contexts = query_lens[members], context_lens[members]
        # Padding repeats a sequence's last query.
        query_SQ = np.minimum(np.arange(queries.max()), queries[:, None] - 1)
        tokens.append((first_token[members, None] + query_SQ).ravel())
        last_seen_SQ = (contexts - queries)[:, None] + query_SQ
        groups.append(_group(inputs, k_cache_NbKd, start, members, last_seen_SQ))
        start = groups[-1].stop

    token_of_row_P = np.concatenate(tokens)
    if len(token_of_row_P) == len(inputs.slot_mapping_T) and (np.diff(token_of_row_P) == 1).all():
        return AttentionPlan(tuple(groups), None, None)
    # Of the rows that repeat a token any will do: they are all computed alike.
    row_of_token_T = np.empty(len(inputs.slot_mapping_T), np.int64)
    row_of_token_T[token_of_row_P] = np.arange(len(token_of_row_P))
    return AttentionPlan(
        tuple(groups), torch.from_numpy(token_of_row_P).to(device), torch.from_numpy(row_of_token_T).to(device)
    )


def _like_lengths(
    query_lens: np.ndarray, context_lens: np.ndarray, num_decodes: int, group_tokens: int
) -> Iterator[np.ndarray]:
    """Sequence numbers of each group: longest first, until the group is full or too much of it would be padding."""
    for part in (slice(0, num_decodes), slice(num_decodes, len(query_lens))):
        order = np.lexsort((-context_lens[part], -query_lens[part])) + part.start
        queries, contexts = query_lens[order].tolist(), context_lens[order].tolist()
        first = longest = used = 0
        for index, context in enumerate(contexts):
            longest = max(longest, context)
            padded = (index - first + 1) * longest
            full = padded > group_tokens or padded - used - context > group_tokens // 4
            if index > first and (full or 4 * queries[index] < 3 * queries[first]):
                yield np.sort(order[first:index])
                first, longest, used = index, context, 0
            used += context
        if first < len(order):
            yield np.sort(order[first:])


def _group(
    inputs: AttentionInputs,
    k_cache_NbKd: torch.Tensor,
    start: int,
    members: np.ndarray,
    last_seen_SQ: np.ndarray,
) -> _Group:
    S, Q = last_seen_SQ.shape
    b, device, dtype = inputs.block_size, k_cache_NbKd.device, k_cache_NbKd.dtype
    longest = int(last_seen_SQ.max()) + 1
    num_blocks = -(-longest // b)
    # One sequence alone needs no padding, and then mostly no mask.
    C = longest if S == 1 else num_blocks * b
    rows = slice(int(members[0]), int(members[-1]) + 1)
    table = inputs.block_tables_SB[rows, :num_blocks]
    if len(table) != S:
        table = table[torch.from_numpy(members - members[0]).to(device)]
    mask_S1QC = None
    if S > 1 or Q not in (1, C):
        hidden_SQC = torch.arange(C, device=device) > torch.from_numpy(last_seen_SQ).to(device)[..., None]
        if dtype.itemsize == 1:
            mask_S1QC = ~hidden_SQC[:, None]
        else:
            mask_S1QC = torch.zeros(S, 1, Q, C, dtype=dtype, device=device)
            mask_S1QC.masked_fill_(hidden_SQC[:, None], float("-inf"))
    is_causal = mask_S1QC is None and Q > 1
    return _Group(start, start + S * Q, S, Q, C, table.reshape(-1), mask_S1QC, is_causal)


def paged_attention(
    q_THd: torch.Tensor,
    k_cache_NbKd: torch.Tensor,
    v_cache_NbKd: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    if k_cache_NbKd.dtype.itemsize == 1:
        scale *= k_scale
    q_PHd = q_THd if plan.token_of_row_P is None else q_THd.index_select(0, plan.token_of_row_P)
    parts = [_attend(q_PHd[g.start : g.stop], k_cache_NbKd, v_cache_NbKd, g, scale) for g in plan.groups]
    o_PHd = parts[0] if len(parts) == 1 else torch.cat(parts)
    if v_cache_NbKd.dtype.itemsize == 1 and v_scale != 1.0:
        o_PHd = o_PHd * v_scale
    return o_PHd if plan.row_of_token_T is None else o_PHd.index_select(0, plan.row_of_token_T)


def _attend(
    q_RHd: torch.Tensor, k_cache_NbKd: torch.Tensor, v_cache_NbKd: torch.Tensor, group: _Group, scale: float
) -> torch.Tensor:
    """The group's queries (R = S * Q rows) over its sequences."""
    S, Q, C = group.num_sequences, group.num_queries, group.num_context
    H, d = q_RHd.shape[1:]
    K = k_cache_NbKd.shape[2]
    k_SKCd = _gather(k_cache_NbKd, group, q_RHd.dtype).view(S, -1, K, d)[:, :C].transpose(1, 2)
    v_SKCd = _gather(v_cache_NbKd, group, q_RHd.dtype).view(S, -1, K, d)[:, :C].transpose(1, 2)
    if Q == 1:
        # The query heads of a key head stand in for query tokens: one small product instead of H / K.
        q_SKGd = q_RHd.view(S, K, H // K, d)
        o_SKGd = F.scaled_dot_product_attention(q_SKGd, k_SKCd, v_SKCd, attn_mask=group.mask_S1QC, scale=scale)
        return o_SKGd.reshape(S, H, d)
    o_SHQd = F.scaled_dot_product_attention(
        q_RHd.view(S, Q, H, d).transpose(1, 2),
        k_SKCd,
        v_SKCd,
        attn_mask=group.mask_S1QC,
        is_causal=group.is_causal,
        scale=scale,
        enable_gqa=True,
    )
    return o_SHQd.transpose(1, 2).reshape(S * Q, H, d)


def _gather(cache_NbKd: torch.Tensor, group: _Group, dtype: torch.dtype) -> torch.Tensor:
    blocks = cache_NbKd.index_select(0, group.blocks)
    return blocks if blocks.dtype == dtype else fp8.decode(blocks, dtype)
