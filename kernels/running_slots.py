"""What a device keeps of running requests, and what a step in which all decode reads of it.

Legend: S slots, R rows of a step, B blocks per table row.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RunningSlots:
    """A row per slot, and a last one, which pads steps: its token and position count as 0, whatever stands there.

    Attributes:
        token_ids_S: int64, the next input token.
        positions_S: int64, that token's place in its sequence.
        seeds_S: int64.
        top_k_S: int32.
        temperature_S, top_p_S: float32.
        block_tables_SB: int32; beyond a sequence's blocks any.
    """

    token_ids_S: torch.Tensor
    positions_S: torch.Tensor
    seeds_S: torch.Tensor
    top_k_S: torch.Tensor
    temperature_S: torch.Tensor
    top_p_S: torch.Tensor
    block_tables_SB: torch.Tensor


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """One token for each row.

    Attributes:
        token_ids_R, positions_R, seeds_R: int64.
        new_positions_R: int64, of the tokens that come out.
        slot_mapping_R: int64, see `AttentionInputs`.
        context_lens_R: int32, see `AttentionInputs`.
        top_k_R: int32.
        temperature_R, top_p_R: float32.
        block_tables_RB: int32; undefined beyond a row's context.
    """

    token_ids_R: torch.Tensor
    positions_R: torch.Tensor
    seeds_R: torch.Tensor
    new_positions_R: torch.Tensor
    slot_mapping_R: torch.Tensor
    context_lens_R: torch.Tensor
    top_k_R: torch.Tensor
    temperature_R: torch.Tensor
    top_p_R: torch.Tensor
    block_tables_RB: torch.Tensor
