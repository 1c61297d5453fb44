"""The running requests as arrays: a step is a handful of vector operations, whatever the batch.

Legend: S slots, L max_model_len, B blocks per slot.
"""

import numpy as np
from numpy.typing import NDArray

from .protocol import I32, U64

I64 = NDArray[np.int64]


class SlotTable:
    """One row per slot; a running request owns one.

    |<------------- num_tokens ------------->|      tokens known: prompt and answer so far
    |<-- num_computed_tokens -->|                   tokens whose keys and values are in the KV cache
    |<-------- num_blocks * block_size --------->|  room that the slot's blocks give

    Attributes:
        request_ids: uint64 [S].
        token_ids_SL: int32 [S, L].
        block_tables_SB: int32 [S, B], 0 beyond num_blocks.
        num_prompt_tokens, num_tokens, num_computed_tokens, num_blocks: int64 [S].
        num_seen_tokens: int64 [S], see `Request`.
        num_shared_blocks: int64 [S], blocks that came from the prefix cache.
        num_hashed_blocks: int64 [S], blocks that the prefix cache already knows.
        max_num_tokens: int64 [S], the length at which the request ends.
    """

    def __init__(self, num_slots: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        self.request_ids: U64 = np.zeros(num_slots, np.uint64)
        self.token_ids_SL: I32 = np.zeros((num_slots, max_model_len), np.int32)
        self.block_tables_SB: I32 = np.zeros((num_slots, -(-max_model_len // block_size)), np.int32)
        self.num_prompt_tokens: I64 = np.zeros(num_slots, np.int64)
        self.num_tokens: I64 = np.zeros(num_slots, np.int64)
        self.num_computed_tokens: I64 = np.zeros(num_slots, np.int64)
        self.num_seen_tokens: I64 = np.zeros(num_slots, np.int64)
        self.num_blocks: I64 = np.zeros(num_slots, np.int64)
        self.num_shared_blocks: I64 = np.zeros(num_slots, np.int64)
        self.num_hashed_blocks: I64 = np.zeros(num_slots, np.int64)
        self.max_num_tokens: I64 = np.zeros(num_slots, np.int64)

    def blocks_for(self, num_tokens: I64) -> I64:
        """Blocks that hold so many tokens, elementwise."""
        return -(-num_tokens // self.block_size)

    def add_blocks(self, slot: int, block_ids: list[int]) -> None:
        """Append to the slot's block table."""
        first = int(self.num_blocks[slot])
        self.block_tables_SB[slot, first : first + len(block_ids)] = block_ids
        self.num_blocks[slot] = first + len(block_ids)

    def take_blocks(self, slot: int) -> list[int]:
        """Empty the slot's block table; returns what stood there, from the beginning of the sequence."""
        row = self.block_tables_SB[slot, : self.num_blocks[slot]]
        block_ids: list[int] = row.tolist()
        row[:] = 0
        self.num_blocks[slot] = 0
        return block_ids

    def append_tokens(self, slots: I64, token_ids: I32) -> None:
        """One new token for each of these slots."""
        self.token_ids_SL[slots, self.num_tokens[slots]] = token_ids
        self.num_tokens[slots] += 1
