"""What is looked at in each row of a message, a compiled loop each."""

import numpy as np
from numpy.typing import NDArray

from ..models.compiled import compiled, f32s_in, i32s_in, i64, u8s_in, u64s_in
from ..models.engine.protocol import F32, I32, U8, U64

# Request ids on the wire are below; what an engine's ids have above is the session's slot.
REQUEST_ID_BITS = 40
SLOT_SHIFT = np.uint64(REQUEST_ID_BITS)
ID_MASK = np.uint64((1 << REQUEST_ID_BITS) - 1)

FITS, BAD_PROMPTS, BAD_STOPS, BAD_MAX_TOKENS, BAD_SAMPLING, BAD_IDS = range(6)


@compiled(f32s_in)
def has_numbers(array: NDArray[np.float32]) -> bool:
    """Whether not all of it is NaN."""
    num_nan = 0
    for item in array:
        num_nan += np.isnan(item)
    return num_nan < len(array)


@compiled(u64s_in, u8s_in)
def survey(engine_ids: U64, finish: U8) -> tuple[U64, U64, int, int]:
    """Of at least one row: the routers' ids, the engine ids of those that ended, lowest and highest slot."""
    router_ids, ended = np.empty(len(engine_ids), np.uint64), np.empty(len(engine_ids), np.uint64)
    num_ended = 0
    first = last = engine_ids[0] >> SLOT_SHIFT
    for row in range(len(engine_ids)):
        engine_id = engine_ids[row]
        router_ids[row] = engine_id & ID_MASK
        slot = engine_id >> SLOT_SHIFT
        first, last = min(first, slot), max(last, slot)
        if finish[row] != 0:
            ended[num_ended] = engine_id
            num_ended += 1
    return router_ids, ended[:num_ended], first, last


@compiled(u64s_in, i32s_in, i64, i32s_in, i64, i32s_in, f32s_in, f32s_in)
def check_submit(
    request_ids: U64,
    prompt_lens: I32,
    num_prompt_ids: int,
    stop_lens: I32,
    num_stop_ids: int,
    max_tokens: I32,
    temperature: F32,
    top_p: F32,
) -> int:
    """FITS, or what is wrong with some request."""
    for row in range(len(request_ids)):
        num_prompt_ids -= prompt_lens[row]
        num_stop_ids -= stop_lens[row]
        if prompt_lens[row] < 1:
            return BAD_PROMPTS
        if stop_lens[row] < 0:
            return BAD_STOPS
        if max_tokens[row] < 1:
            return BAD_MAX_TOKENS
        if not (np.isfinite(temperature[row]) and np.isfinite(top_p[row])):
            return BAD_SAMPLING
        if request_ids[row] > ID_MASK:
            return BAD_IDS
    if num_prompt_ids != 0:
        return BAD_PROMPTS
    return BAD_STOPS if num_stop_ids != 0 else FITS
