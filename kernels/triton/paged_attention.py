"""Paged attention by online softmax over tiles of the cache (Dao 2022), split over keys where programs are few
(Flash-Decoding, Dao et al. 2023).

One program takes the query tokens of a tile with all query heads of one key head as the rows of its products, and a
split of the keys that they see. With several splits each leaves its part and its log-sum-exp, and a second kernel
merges them.

    rows        | t0g0 t0g1 .. t0gG-1 | t1g0 .. |     G = H / K heads of a group side by side
    keys        |<-- split 0 -->|<-- split 1 -->|     of the tile's last query; a split is whole turns of the loop
                                          \\\\\\\\  only here a query may see fewer keys than the tile's last

Where the splits are follows from the number of programs and the tile's own keys, so that a graph, whose grid is
fixed, and the same padded step without it compute the same bits.

Legend: T tokens, N blocks of the cache, b tokens per block, S sequences, H query heads, K key heads, d head size,
M rows, C keys of a turn.
"""

# pyright: reportMissingParameterType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# A kernel is Python in form only: the launch decides what its parameters are.

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from ..attention_inputs import AttentionInputs
from .tuning import AttentionTile, tuning

_LOG2_E = 1.4426950408889634
_MIN_SPLIT_KEYS = 256
# One decode with a long context would hold up a step of many short ones.
_MAX_DECODE_KEYS = 8192
_MAX_SPLITS = 64


@dataclass(frozen=True, slots=True)
class Tiles:
    """What one launch computes: tiles of query tokens.

    Attributes:
        starts: int32 [tiles, 2], each tile's sequence and the first of its query tokens there; None where tile i
            is the one query token of sequence i.
    """

    starts: torch.Tensor | None
    num_tiles: int
    num_splits: int
    tile: AttentionTile
    rows: int


class AttentionPlan:
    """One step's launches, the same on every layer. The first layer works them out: it knows the heads."""

    def __init__(self, inputs: AttentionInputs) -> None:
        self.inputs = inputs
        self._launches: dict[tuple[int, int], list[Tiles]] = {}

    def launches(self, num_heads: int, num_kv_heads: int) -> list[Tiles]:
        """Of a model with so many heads on this rank: decodes, then all else."""
        found = self._launches.get((num_heads, num_kv_heads))
        if found is None:
            found = self._launches[num_heads, num_kv_heads] = _launches(self.inputs, num_heads, num_kv_heads)
        return found


def prepare_attention(inputs: AttentionInputs) -> AttentionPlan:
    return AttentionPlan(inputs)


def _launches(inputs: AttentionInputs, num_heads: int, num_kv_heads: int) -> list[Tiles]:
    tuned, group = tuning(), num_heads // num_kv_heads
    longest = max(inputs.host_context_lens, default=0)
    launches: list[Tiles] = []

    def add(starts: torch.Tensor | None, num_tiles: int, tile: AttentionTile, rows: int, most_keys: int) -> None:
        wanted = tuned.cores * tuned.programs_per_core
        num_splits = choose_num_splits(num_tiles * num_kv_heads, wanted, longest, most_keys)
        launches.append(Tiles(starts, num_tiles, num_splits, tile, rows))

    if inputs.num_decodes:
        rows = max(tuned.decode.rows, triton.next_power_of_2(group))
        add(None, inputs.num_decodes, tuned.decode, rows, _MAX_DECODE_KEYS)
    if inputs.num_decodes < len(inputs.query_lens):
        rows = max(tuned.prefill.rows, triton.next_power_of_2(group))
        starts = _tile_starts(inputs, rows // group)
        add(_upload(starts, inputs.query_start.device), len(starts), tuned.prefill, rows, longest)
    return launches


def choose_num_splits(num_programs: int, wanted_programs: int, longest: int, most_keys: int) -> int:
    """A power of 2: programs enough to fill the device, splits of _MIN_SPLIT_KEYS to `most_keys`."""
    filling = wanted_programs // max(1, num_programs)
    needed = -(-longest // max(1, most_keys))
    useful = -(-longest // _MIN_SPLIT_KEYS)
    splits = min(max(filling, needed, 1), max(useful, 1), _MAX_SPLITS)
    return triton.next_power_of_2(splits)


def _tile_starts(inputs: AttentionInputs, tile_tokens: int) -> np.ndarray:
    """int32 [tiles, 2]; tiles that see most keys first, as they take longest."""
    query_lens = np.array(inputs.query_lens[inputs.num_decodes :])
    contexts = np.array(inputs.host_context_lens[inputs.num_decodes :])
    num_tiles = -(-query_lens // tile_tokens)
    sequence = np.repeat(np.arange(len(query_lens)), num_tiles)
    first = (np.arange(len(sequence)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)) * tile_tokens
    order = np.argsort(-((contexts - query_lens)[sequence] + first), kind="stable")
    return np.stack((sequence + inputs.num_decodes, first), axis=1).astype(np.int32)[order]


def _upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@triton.jit
def _tile_of(starts, query_start, context_lens, num_splits, TOKENS: tl.constexpr, HAS_STARTS: tl.constexpr,
             MIN_SPLIT: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """(sequence, its first token in the step, the tile's first query there, queries, keys that the first of all
    queries sees less one, keys that the tile's last query sees, keys per split)."""
    tile = tl.program_id(1)
    if HAS_STARTS:
        sequence = tl.load(starts + 2 * tile)
        first = tl.load(starts + 2 * tile + 1)
        token = tl.load(query_start + sequence)
        num_queries = tl.load(query_start + sequence + 1) - token
    else:
        sequence = tile
        first = 0
        token = tile
        num_queries = 1
    seen_before = tl.load(context_lens + sequence) - num_queries
    num_keys = seen_before + tl.minimum(first + TOKENS, num_queries)
    split_keys = tl.maximum(tl.cdiv(tl.cdiv(num_keys, num_splits), C) * C, MIN_SPLIT)
    return sequence, token, first, num_queries, seen_before, num_keys, split_keys


@triton.jit
def _load(pointers, inside, IS_FULL: tl.constexpr):
    return tl.load(pointers) if IS_FULL else tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def _turn(q_Md, k_cache, v_cache, table, start, stop, seen_M, m_M, l_M, acc_Md, kv_head, scale_log2,
          stride_block, stride_token, stride_head,
          D: tl.constexpr, BLOCK_D: tl.constexpr, b: tl.constexpr, C: tl.constexpr,
          MASKED: tl.constexpr):  # fmt: skip
    """Online softmax over keys [start, start + C) before `stop`; only a masked turn looks at `seen_M`."""
    n_C = start + tl.arange(0, C)
    d = tl.arange(0, BLOCK_D)
    if b % C == 0:  # the turn lies in one block
        block_C = tl.load(table + start // b).to(tl.int64)
    else:
        block_C = tl.load(table + n_C // b, mask=n_C < stop, other=0).to(tl.int64)
    offset_Cd = (block_C * stride_block + (n_C % b) * stride_token)[:, None] + kv_head * stride_head + d[None, :]
    inside_Cd = (n_C[:, None] < stop) & (d[None, :] < D)
    k_Cd = _load(k_cache + offset_Cd, inside_Cd, not MASKED and D == BLOCK_D)
    scores_MC = tl.dot(q_Md, tl.trans(k_Cd.to(q_Md.dtype)), input_precision="ieee") * scale_log2
    if MASKED:
        scores_MC = tl.where((n_C[None, :] <= seen_M[:, None]) & (n_C[None, :] < stop), scores_MC, float("-inf"))
    # m begins finite, so that a row that sees nothing gets weights 0 and no NaN.
    new_m_M = tl.maximum(m_M, tl.max(scores_MC, 1))
    weights_MC = tl.exp2(scores_MC - new_m_M[:, None])
    old_M = tl.exp2(m_M - new_m_M)
    l_M = l_M * old_M + tl.sum(weights_MC, 1)
    acc_Md = acc_Md * old_M[:, None]
    v_Cd = _load(v_cache + offset_Cd, inside_Cd, not MASKED and D == BLOCK_D)
    acc_Md = tl.dot(weights_MC.to(q_Md.dtype), v_Cd.to(q_Md.dtype), acc_Md, input_precision="ieee")
    return new_m_M, l_M, acc_Md


# Compiled anew for none of these, which differ from step to step: that would hold up an engine that serves.
_VARYING = ["num_splits", "stride_table"]
_VARYING_POINTERS = ["query_start", "context_lens", "block_tables", "starts"]


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_VARYING_POINTERS)
def _attend(q, k_cache, v_cache, o, parts, lse, query_start, context_lens, block_tables, starts,
            scale_log2, v_scale, num_splits, H, stride_q, stride_block, stride_token, stride_head, stride_table,
            G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, b: tl.constexpr, M: tl.constexpr,
            C: tl.constexpr, MIN_SPLIT: tl.constexpr, HAS_STARTS: tl.constexpr,
            IS_SPLIT: tl.constexpr):  # fmt: skip
    TOKENS: tl.constexpr = M // G
    kv_head, split = tl.program_id(0), tl.program_id(2)
    sequence, token, first, num_queries, seen_before, num_keys, split_keys = _tile_of(
        starts, query_start, context_lens, num_splits, TOKENS, HAS_STARTS, MIN_SPLIT, C
    )
    start = split * split_keys
    if start >= num_keys:
        return
    stop = tl.minimum(start + split_keys, num_keys)

    row_M = tl.arange(0, M)
    query_M = first + row_M // G
    head_M = kv_head * G + row_M % G
    inside_M = (row_M < TOKENS * G) & (query_M < num_queries)
    d = tl.arange(0, BLOCK_D)
    inside_Md = inside_M[:, None] & (d[None, :] < D)
    q_row_M = (token + query_M).to(tl.int64) * stride_q + head_M * D
    q_Md = tl.load(q + q_row_M[:, None] + d[None, :], mask=inside_Md, other=0.0)
    seen_M = seen_before + query_M
    table = block_tables + sequence.to(tl.int64) * stride_table

    m_M = tl.full([M], -1.0e30, tl.float32)
    l_M = tl.zeros([M], tl.float32)
    acc_Md = tl.zeros([M, BLOCK_D], tl.float32)
    # Turns up to here are whole, and all their keys are seen by all of the tile's queries.
    whole = start + tl.maximum(tl.minimum(stop, seen_before + first + 1) - start, 0) // C * C
    for n in range(start, whole, C):
        m_M, l_M, acc_Md = _turn(
            q_Md, k_cache, v_cache, table, n, stop, seen_M, m_M, l_M, acc_Md, kv_head, scale_log2,
            stride_block, stride_token, stride_head, D, BLOCK_D, b, C, False
        )  # fmt: skip
    for n in range(whole, stop, C):
        m_M, l_M, acc_Md = _turn(
            q_Md, k_cache, v_cache, table, n, stop, seen_M, m_M, l_M, acc_Md, kv_head, scale_log2,
            stride_block, stride_token, stride_head, D, BLOCK_D, b, C, True
        )  # fmt: skip

    o_Md = acc_Md / tl.where(l_M > 0, l_M, 1.0)[:, None] * v_scale
    o_row_M = (token + query_M).to(tl.int64) * H + head_M
    if IS_SPLIT:
        part_M = o_row_M * num_splits + split
        tl.store(parts + part_M[:, None] * D + d[None, :], o_Md, mask=inside_Md)
        tl.store(lse + part_M, m_M + tl.log2(tl.where(l_M > 0, l_M, 1.0)), mask=inside_M)
    else:
        tl.store(o + o_row_M[:, None] * D + d[None, :], o_Md.to(o.dtype.element_ty), mask=inside_Md)


@triton.jit(do_not_specialize=_VARYING[:1], do_not_specialize_on_alignment=_VARYING_POINTERS)
def _merge(o, parts, lse, query_start, context_lens, starts, num_splits, H,
           G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
           MIN_SPLIT: tl.constexpr, HAS_STARTS: tl.constexpr):  # fmt: skip
    """The parts of a tile's rows, weighted by their shares of the softmax's sum. A split without keys left none."""
    TOKENS: tl.constexpr = M // G
    _, token, first, num_queries, _, num_keys, split_keys = _tile_of(
        starts, query_start, context_lens, num_splits, TOKENS, HAS_STARTS, MIN_SPLIT, C
    )
    row_M = tl.arange(0, M)
    query_M = first + row_M // G
    inside_M = (row_M < TOKENS * G) & (query_M < num_queries)
    o_row_M = (token + query_M).to(tl.int64) * H + tl.program_id(0) * G + row_M % G
    d = tl.arange(0, BLOCK_D)
    inside_Md = inside_M[:, None] & (d[None, :] < D)

    m_M = tl.full([M], -1.0e30, tl.float32)
    l_M = tl.zeros([M], tl.float32)
    acc_Md = tl.zeros([M, BLOCK_D], tl.float32)
    for split in range(0, tl.cdiv(num_keys, split_keys)):
        part_M = o_row_M * num_splits + split
        lse_M = tl.load(lse + part_M, mask=inside_M, other=-1.0e30)
        part_Md = tl.load(parts + part_M[:, None] * D + d[None, :], mask=inside_Md, other=0.0)
        new_m_M = tl.maximum(m_M, lse_M)
        old_M, weight_M = tl.exp2(m_M - new_m_M), tl.exp2(lse_M - new_m_M)
        acc_Md = acc_Md * old_M[:, None] + part_Md * weight_M[:, None]
        l_M = l_M * old_M + weight_M
        m_M = new_m_M
    tl.store(o + o_row_M[:, None] * D + d[None, :], (acc_Md / l_M[:, None]).to(o.dtype.element_ty), mask=inside_Md)


def paged_attention(
    q_THd: torch.Tensor,
    k_cache_NbKd: torch.Tensor,
    v_cache_NbKd: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    T, H, d = q_THd.shape
    b, K = k_cache_NbKd.shape[1:3]
    assert q_THd.stride(2) == 1
    assert q_THd.stride(1) == d
    assert k_cache_NbKd.stride() == v_cache_NbKd.stride()
    o_THd = torch.empty(T, H, d, dtype=q_THd.dtype, device=q_THd.device)
    inputs = plan.inputs
    for tiles in plan.launches(H, K):
        parts, lse = None, None
        if tiles.num_splits > 1:
            parts = torch.empty(T, H, tiles.num_splits, d, dtype=torch.float32, device=q_THd.device)
            lse = torch.empty(T, H, tiles.num_splits, dtype=torch.float32, device=q_THd.device)
        constants = {
            "G": H // K,
            "D": d,
            "BLOCK_D": max(16, triton.next_power_of_2(d)),
            "M": tiles.rows,
            "C": tiles.tile.keys,
            "MIN_SPLIT": _MIN_SPLIT_KEYS,
            "HAS_STARTS": tiles.starts is not None,
        }
        layout = (inputs.query_start, inputs.context_lens_S)
        _attend[(K, tiles.num_tiles, tiles.num_splits)](
            q_THd, k_cache_NbKd, v_cache_NbKd, o_THd, parts, lse, *layout, inputs.block_tables_SB, tiles.starts,
            scale * k_scale * _LOG2_E, v_scale, tiles.num_splits, H, q_THd.stride(0), *k_cache_NbKd.stride()[:3],
            inputs.block_tables_SB.stride(0), b=b, IS_SPLIT=parts is not None, **constants, **tiles.tile.options,
        )  # fmt: skip
        if parts is not None:
            _merge[(K, tiles.num_tiles)](
                o_THd, parts, lse, *layout, tiles.starts, tiles.num_splits, H, **constants, **tiles.tile.options
            )
    return o_THd
