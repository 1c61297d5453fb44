"""The inputs of a step in which every row decodes one token. Legend: S slots, R rows, B blocks per table row."""

import torch

from ..running_slots import DecodeInputs, RunningSlots


def decode_inputs(running: RunningSlots, slots_R: torch.Tensor, block_size: int) -> DecodeInputs:
    is_padding_R = slots_R == len(running.positions_S) - 1
    positions_R = running.positions_S[slots_R].masked_fill(is_padding_R, 0)
    tables_RB = running.block_tables_SB[slots_R]
    blocks_R = tables_RB.gather(1, (positions_R // block_size)[:, None]).squeeze(1).long()
    return DecodeInputs(
        token_ids_R=running.token_ids_S[slots_R].masked_fill(is_padding_R, 0),
        positions_R=positions_R,
        seeds_R=running.seeds_S[slots_R],
        new_positions_R=positions_R + 1,
        slot_mapping_R=blocks_R * block_size + positions_R % block_size,
        context_lens_R=(positions_R + 1).int(),
        top_k_R=running.top_k_S[slots_R],
        temperature_R=running.temperature_S[slots_R],
        top_p_R=running.top_p_S[slots_R],
        block_tables_RB=tables_RB,
    )
