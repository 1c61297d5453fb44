"""Requests into a table's columns and out of them, a compiled loop each.

Columns are by slot, `_R` arrays by row.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.compiled import (
    compiled,
    f32s_in,
    i8s_in,
    i32s,
    i32s_in,
    i64s,
    records,
    u8s,
    u8s_in,
    u64s_in,
)
from ..models.engine.protocol import F32, I32, U8, U64
from .index_pool import Indices

# What is needed together, once, lies together.
SAMPLING = np.dtype(
    [
        *(("seed", np.uint64), ("temperature", np.float32), ("top_k", np.int32), ("top_p", np.float32)),
        *(("stop_lens", np.int32), ("num_logprobs", np.int8)),
    ],
    align=True,
)

I8 = NDArray[np.int8]
Samplings = NDArray[np.void]

_asked = (i32s_in, i32s_in, f32s_in, i32s_in, f32s_in, u64s_in, u8s_in, i8s_in, i32s_in)
_columns = (i32s, i32s, u8s, records(SAMPLING))


@compiled(i64s, *_asked, *_columns)
def put(
    slots_R: Indices,
    prompt_lens_R: I32,
    max_tokens_R: I32,
    temperature_R: F32,
    top_k_R: I32,
    top_p_R: F32,
    seed_R: U64,
    ignore_eos_R: U8,
    num_logprobs_R: I8,
    stop_lens_R: I32,
    prompt_lens: I32,
    max_tokens: I32,
    ignore_eos: U8,
    sampling: Samplings,
) -> None:
    """Keep what was asked for."""
    for row in range(len(slots_R)):
        slot = slots_R[row]
        prompt_lens[slot], max_tokens[slot] = prompt_lens_R[row], max_tokens_R[row]
        ignore_eos[slot] = ignore_eos_R[row]
        kept: Any = sampling[slot]
        kept.seed, kept.temperature = seed_R[row], temperature_R[row]
        kept.top_k, kept.top_p = top_k_R[row], top_p_R[row]
        kept.stop_lens, kept.num_logprobs = stop_lens_R[row], num_logprobs_R[row]


@compiled(i64s, i64s, *_columns)
def take(
    slots_R: Indices, num_emitted: Indices, prompt_lens: I32, max_tokens: I32, ignore_eos: U8, sampling: Samplings
) -> tuple[I32, tuple[I32, F32, I32, F32, U64, U8, I8, I32], int]:
    """What `put` kept, for requests that have emitted so much: that is prompt by now.

    Returns: lengths of prompts, the other arguments of `put`, and 0 if none has emitted anything or has stop ids.
    """
    n = len(slots_R)
    lens_R, longest_R, temperature_R = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.float32)
    top_k_R, top_p_R, seed_R = np.empty(n, np.int32), np.empty(n, np.float32), np.empty(n, np.uint64)
    ignore_R, num_logprobs_R = np.empty(n, np.uint8), np.empty(n, np.int8)
    stop_lens_R = np.empty(n, np.int32)
    num_more = 0
    for row in range(n):
        slot = slots_R[row]
        lens_R[row] = prompt_lens[slot] + num_emitted[slot]
        longest_R[row] = max_tokens[slot] - num_emitted[slot]
        ignore_R[row] = ignore_eos[slot]
        kept: Any = sampling[slot]
        seed_R[row], temperature_R[row] = kept.seed, kept.temperature
        top_k_R[row], top_p_R[row] = kept.top_k, kept.top_p
        stop_lens_R[row], num_logprobs_R[row] = kept.stop_lens, kept.num_logprobs
        num_more += num_emitted[slot] + kept.stop_lens
    asked = longest_R, temperature_R, top_k_R, top_p_R, seed_R, ignore_R, num_logprobs_R, stop_lens_R
    return lens_R, asked, num_more
