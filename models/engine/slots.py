"""The running requests as arrays: a step is a handful of vector operations, whatever the batch.

Legend: S slots, R rows (sequences that get a token), L max_model_len, B blocks per slot.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .protocol import I32, U64

I64 = NDArray[np.int64]


class SlotTable:
    """One row per slot; a running request owns one.

    |<------------- num_tokens ------------->|      prompt and answer so far
    |                         |<- num_late ->|      of those, tokens that steps under way will bring
    |<-- num_computed_tokens -->|                   tokens whose keys and values are in the KV cache, or will be
    |<-------- num_blocks * block_size --------->|  room that the slot's blocks give

    Attributes:
        request_ids: uint64 [S].
        tenures: int64 [S], changes when a request gets or gives back the slot.
        token_ids_SL: int32 [S, L]; what stands where late tokens will be has no meaning.
        block_tables_SB: int32 [S, B], 0 beyond num_blocks.
        num_prompt_tokens, num_tokens, num_late, num_computed_tokens, num_blocks: int64 [S].
        num_seen_tokens: int64 [S], see `Request`.
        num_shared_blocks: int64 [S], blocks that came from the prefix cache.
        num_hashed_blocks: int64 [S], blocks that the prefix cache already knows.
        max_num_tokens: int64 [S], the length at which the request ends.
    """

    def __init__(self, num_slots: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        self.request_ids: U64 = np.zeros(num_slots, np.uint64)
        self.tenures: I64 = np.zeros(num_slots, np.int64)
        self.token_ids_SL: I32 = np.zeros((num_slots, max_model_len), np.int32)
        self.block_tables_SB: I32 = np.zeros((num_slots, -(-max_model_len // block_size)), np.int32)
        self.num_prompt_tokens: I64 = np.zeros(num_slots, np.int64)
        self.num_tokens: I64 = np.zeros(num_slots, np.int64)
        self.num_late: I64 = np.zeros(num_slots, np.int64)
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

    def expect_tokens(self, slots: I64) -> "LateTokens":
        """One new token for each of these slots, which is not there yet."""
        late = LateTokens(slots, self.num_tokens[slots], self.request_ids[slots], self.tenures[slots])
        self.num_tokens[slots] += 1
        self.num_late[slots] += 1
        return late

    def still_wanted(self, late: "LateTokens") -> NDArray[np.bool_]:
        """[R] whether the request that was to get the token still has its slot."""
        return self.tenures[late.slots] == late.tenures

    def put_tokens(self, late: "LateTokens", token_ids: I32) -> None:
        """Expected tokens have come; all of them must be wanted still."""
        self.token_ids_SL[late.slots, late.positions] = token_ids
        self.num_late[late.slots] -= 1


@dataclass(frozen=True, slots=True)
class LateTokens:
    """What a step that is under way will bring: one token per row.

    Attributes:
        slots: int64 [R].
        positions: int64 [R], the tokens' places in their sequences.
        request_ids: uint64 [R].
        tenures: int64 [R], the slots' when the step began.
    """

    slots: I64
    positions: I64
    request_ids: U64
    tenures: I64

    def __len__(self) -> int:
        return len(self.slots)

    def only(self, rows: NDArray[np.bool_]) -> "LateTokens":
        return LateTokens(self.slots[rows], self.positions[rows], self.request_ids[rows], self.tenures[rows])
