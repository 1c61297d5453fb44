"""The inputs of a step in which every row decodes one token, one program per row.

Legend: S slots, R rows, B blocks per table row.
"""

# pyright: reportMissingParameterType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# A kernel is Python in form only: the launch decides what its parameters are.

import torch
import triton
import triton.language as tl

from ..running_slots import DecodeInputs, RunningSlots
from .tuning import tuning


@triton.jit
def _decode_inputs(
    slots, token_ids_S, positions_S, seeds_S, top_k_S, temperature_S, top_p_S, tables_SB,
    token_ids_R, positions_R, seeds_R, new_positions_R, slot_mapping_R, context_lens_R, top_k_R, temperature_R,
    top_p_R, tables_RB, last_slot, block_size, B, BLOCK_B: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    is_running = slot < last_slot
    position = tl.load(positions_S + slot, mask=is_running, other=0)
    tl.store(token_ids_R + row, tl.load(token_ids_S + slot, mask=is_running, other=0))
    tl.store(positions_R + row, position)
    tl.store(seeds_R + row, tl.load(seeds_S + slot))
    tl.store(new_positions_R + row, position + 1)
    tl.store(context_lens_R + row, (position + 1).to(tl.int32))
    tl.store(top_k_R + row, tl.load(top_k_S + slot))
    tl.store(temperature_R + row, tl.load(temperature_S + slot))
    tl.store(top_p_R + row, tl.load(top_p_S + slot))
    last_block = position // block_size
    block = tl.load(tables_SB + slot * B + last_block).to(tl.int64)
    tl.store(slot_mapping_R + row, block * block_size + position % block_size)
    for first in range(0, last_block + 1, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        ids = tl.load(tables_SB + slot * B + b, mask=b <= last_block, other=0)
        tl.store(tables_RB + row * B + b, ids, mask=b <= last_block)


def decode_inputs(running: RunningSlots, slots_R: torch.Tensor, block_size: int) -> DecodeInputs:
    num_slots, B = running.block_tables_SB.shape
    R = len(slots_R)
    longs_5R = running.token_ids_S.new_empty(5, R)
    context_lens_R, top_k_R = running.top_k_S.new_empty(2, R)
    temperature_R, top_p_R = running.top_p_S.new_empty(2, R)
    tables_RB = running.block_tables_SB.new_empty(R, B)
    inputs = DecodeInputs(*longs_5R, context_lens_R, top_k_R, temperature_R, top_p_R, tables_RB)
    if R == 0:
        return inputs
    _decode_inputs[(R,)](
        slots_R,
        running.token_ids_S,
        running.positions_S,
        running.seeds_S,
        running.top_k_S,
        running.temperature_S,
        running.top_p_S,
        running.block_tables_SB,
        *longs_5R,
        context_lens_R,
        top_k_R,
        temperature_R,
        top_p_R,
        tables_RB,
        num_slots - 1,
        block_size,
        B,
        BLOCK_B=tuning().table_block,
        **tuning().elementwise,
    )
    return inputs
