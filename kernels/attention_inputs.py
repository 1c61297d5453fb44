"""What attention needs to know of a step's batch, passed by argument to the model and to the kernels.

The T tokens of a step are laid out sequence after sequence, those that decode one token first:

    tokens     |d0|d1|d2|  p3 p3 p3 p3  | p4 p4 |        T = 9, S = 5, num_decodes = 3
    query_start 0  1  2  3              7       9
    context     ............ all tokens of the sequence up to and with its last one here (KV written first)

Legend: T tokens, S sequences, B blocks per table row.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """One step's layout. Tensors live on the model's device; the counts are host integers, so nothing syncs.

    Attributes:
        slot_mapping_T: int64, where each token's key and value go: block id * block_size + offset.
        query_start: int32 [S + 1], first token of each sequence.
        context_lens_S: int32, tokens that the sequence's last query sees, itself included.
        block_tables_SB: int32, block ids of each sequence; nobody reads what stands beyond its context.
        num_decodes: the first num_decodes sequences have exactly one query token each.
        query_lens: host copy, query tokens of each sequence.
        host_context_lens: host copy of context_lens_S.
        block_size: tokens per block.
    """

    slot_mapping_T: torch.Tensor
    query_start: torch.Tensor
    context_lens_S: torch.Tensor
    block_tables_SB: torch.Tensor
    num_decodes: int
    query_lens: tuple[int, ...]
    host_context_lens: tuple[int, ...]
    block_size: int


@dataclass(frozen=True, slots=True)
class LastTokens:
    """The tokens of a step whose hidden states are wanted: past its keys and values the last layer needs no others.

    Attributes:
        rows_R: int64, rows of T, ascending.
        attention: the layout of these alone, each a sequence with one query token.
    """

    rows_R: torch.Tensor
    attention: AttentionInputs
