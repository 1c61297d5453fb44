"""Lays sequences out in a paged cache for tests that call the model or attention without an engine."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from nfold.kernels.attention_inputs import AttentionInputs


@dataclass(frozen=True)
class PagedSequences:
    """Blocks of several sequences, scattered over the cache. `num_blocks` is what the cache must have."""

    tables: list[list[int]]
    block_size: int
    num_blocks: int

    @classmethod
    def scatter(cls, max_lens: Sequence[int], block_size: int, seed: int = 0) -> "PagedSequences":
        counts = [-(-length // block_size) for length in max_lens]
        num_blocks = sum(counts) + 3
        free = list(range(1, num_blocks))
        random.Random(seed).shuffle(free)
        return cls([[free.pop() for _ in range(count)] for count in counts], block_size, num_blocks)

    def slots(self, sequence: int, start: int, stop: int) -> list[int]:
        table, b = self.tables[sequence], self.block_size
        return [table[position // b] * b + position % b for position in range(start, stop)]

    def step(self, spans: Sequence[tuple[int, int, int]]) -> tuple[AttentionInputs, torch.Tensor]:
        """(inputs, positions_T) of a step that computes tokens [start, stop) of each (sequence, start, stop).

        Sequences with one token come first, as the engine does it.
        """
        lens = [stop - start for _, start, stop in spans]
        num_decodes = next((index for index, length in enumerate(lens) if length > 1), len(lens))
        assert all(length > 1 for length in lens[num_decodes:])
        width = max(len(self.tables[sequence]) for sequence, _, _ in spans)
        tables = [self.tables[sequence] + [0] * (width - len(self.tables[sequence])) for sequence, _, _ in spans]
        inputs = AttentionInputs(
            slot_mapping_T=torch.tensor([slot for span in spans for slot in self.slots(*span)]),
            query_start=torch.tensor([0, *lens]).cumsum(0).int(),
            context_lens_S=torch.tensor([stop for _, _, stop in spans], dtype=torch.int32),
            block_tables_SB=torch.tensor(tables, dtype=torch.int32),
            num_decodes=num_decodes,
            query_lens=tuple(lens),
            host_context_lens=tuple(stop for _, _, stop in spans),
            block_size=self.block_size,
        )
        positions_T = torch.tensor([position for _, start, stop in spans for position in range(start, stop)])
        return inputs, positions_T
