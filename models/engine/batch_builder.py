"""From the slots that a step computes to the tensors that the model wants.

Legend: T tokens, S sequences, R sequences that get a new token, B blocks per table row.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ...kernels.attention_inputs import AttentionInputs, LastTokens
from .device_state import DeviceState
from .scheduler import Schedule
from .slots import I64, SlotTable
from .transfer import to_device


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input.

    Attributes:
        token_ids_T, positions_T: int64.
        attention: the layout.
        last: the tokens whose hidden states bring new tokens; None when each does, or none.
    """

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    attention: AttentionInputs
    last: LastTokens | None


def build_batch(
    table: SlotTable, schedule: Schedule, device: torch.device, state: DeviceState | None = None
) -> Batch:
    """Gather the scheduled tokens. On CPU the tensors share memory with numpy arrays made for this step.

    Args:
        state: brings the block tables if there is one, else they are sent.
    """
    slots, num_new, block_size = schedule.slots, schedule.num_new_tokens, table.block_size
    num_computed = table.num_computed_tokens[slots]
    context_lens = num_computed + num_new
    query_start = np.zeros(len(slots) + 1, np.int64)
    np.cumsum(num_new, out=query_start[1:])
    num_tokens = int(query_start[-1])
    if num_tokens == len(slots):
        token_slots, positions = slots, num_computed
    else:
        token_slots = np.repeat(slots, num_new)
        positions = np.arange(num_tokens) + np.repeat(num_computed - query_start[:-1], num_new)
    block_ids = table.block_tables_SB[token_slots, positions // block_size]
    slot_mapping = block_ids.astype(np.int64) * block_size + positions % block_size
    max_num_blocks = -(-int(context_lens.max()) // block_size)
    if state is None:
        block_tables_SB = to_device(table.block_tables_SB[slots, :max_num_blocks], device)
    else:
        block_tables_SB = state.block_tables(slots, max_num_blocks)
    attention = AttentionInputs(
        slot_mapping_T=to_device(slot_mapping, device),
        query_start=to_device(query_start.astype(np.int32), device),
        context_lens_S=to_device(context_lens.astype(np.int32), device),
        block_tables_SB=block_tables_SB,
        num_decodes=schedule.num_decodes,
        query_lens=tuple(num_new.tolist()),
        host_context_lens=tuple(context_lens.tolist()),
        block_size=block_size,
    )
    last = None
    every_row_samples = num_tokens == len(slots) and bool(schedule.samples.all())
    if schedule.samples.any() and not every_row_samples:
        last = _last_tokens(attention, slot_mapping, query_start[1:] - 1, context_lens, schedule, device)
    return Batch(
        token_ids_T=to_device(table.token_ids_SL[token_slots, positions].astype(np.int64), device),
        positions_T=to_device(positions, device),
        attention=attention,
        last=last,
    )


def _last_tokens(
    attention: AttentionInputs,
    slot_mapping: I64,
    last_rows: I64,
    context_lens: I64,
    schedule: Schedule,
    device: torch.device,
) -> LastTokens:
    """Of the sequences that get a new token."""
    (sequences,) = np.nonzero(schedule.samples)
    num_rows = len(sequences)
    rows, context_lens = last_rows[sequences], context_lens[sequences]
    alone = AttentionInputs(
        slot_mapping_T=to_device(slot_mapping[rows], device),
        query_start=to_device(np.arange(num_rows + 1, dtype=np.int32), device),
        context_lens_S=to_device(context_lens.astype(np.int32), device),
        block_tables_SB=attention.block_tables_SB[to_device(sequences, device)],
        num_decodes=num_rows,
        query_lens=(1,) * num_rows,
        host_context_lens=tuple(context_lens.tolist()),
        block_size=attention.block_size,
    )
    return LastTokens(to_device(rows, device), alone)
