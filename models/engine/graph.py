"""Steps in which every sequence decodes one token, padded to a few batch sizes. Each size may be a graph of a GPU,
captured at the start with its sampling, so that a step is one launch.

    rows      | d0 d1 d2 d3 d4 | padding ... |      of 5 sequences in the step of size 8
    cache     | blocks of the pool ......... | spare |
                                               padding reads and writes here, where nobody else looks

Legend: R rows, B rows with padding, W blocks per table row, V vocabulary.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...kernels.attention_inputs import AttentionInputs
from ...kernels.ops import sample_tokens
from ..causal_lm import CausalLM
from ..kv_cache import KvCache
from .launched_step import LateInputs
from .protocol import F32, I32
from .sampling_state import SamplingState
from .settings import ResolvedSettings
from .slots import I64, SlotTable

_log = logging.getLogger(__name__)

Outputs = tuple[torch.Tensor, torch.Tensor]
"""logits float32 [B, V] and token ids int64 [B]."""


def padded_sizes(most: int) -> list[int]:
    """Batch sizes up to `most`: from 16 on, padding is at most an eighth of the next power of 2."""
    sizes = {1, 2, 4, 8, most}
    size = 16
    while size < most:
        sizes.add(size)
        size += max(8, 2 ** (size.bit_length() - 1) // 8)
    return sorted(size for size in sizes if size <= most)


class PaddedDecodes:
    """Computes decode-only steps of up to max_num_seqs sequences.

    Args:
        kv: with one block more than `settings.num_kv_blocks`, for the padding.
        captures: as graphs; a GPU then must be there.
    """

    def __init__(self, model: CausalLM, kv: KvCache, settings: ResolvedSettings, *, captures: bool) -> None:
        assert kv.num_blocks == settings.num_kv_blocks + 1
        width = -(-settings.max_model_len // settings.block_size)
        tables_BW = torch.full(
            (settings.max_num_seqs, width), settings.num_kv_blocks, dtype=torch.int32, device=model.device
        )
        self._sizes = padded_sizes(settings.max_num_seqs)
        self._steps = [_PaddedStep(model, kv, settings, tables_BW[:size]) for size in self._sizes]
        if captures:
            self._capture()

    def _capture(self) -> None:
        """Largest first, so that the others find room in the memory that it took."""
        start_s = time.perf_counter()
        pool, logits_BV = torch.cuda.graph_pool_handle(), None
        for step in reversed(self._steps):
            logits_BV = step.capture(pool, logits_BV)
        _log.info("captured %d graphs in %.1f s", len(self._steps), time.perf_counter() - start_s)

    def run(
        self, table: SlotTable, sampling: SamplingState, slots_R: I64, late: LateInputs | None = None
    ) -> Outputs:
        """Logits [R, V] and the next token ids [R] of these slots, each of which lacks one token; `late` brings the
        inputs that are not in the table yet."""
        step = self._steps[int(np.searchsorted(self._sizes, len(slots_R)))]
        logits_BV, ids_B = step.run(table, sampling, slots_R, late)
        return logits_BV[: len(slots_R)], ids_B[: len(slots_R)]


class _PaddedStep:
    """One batch size: its inputs stay where they are in memory, as a graph wants them."""

    def __init__(self, model: CausalLM, kv: KvCache, settings: ResolvedSettings, tables_BW: torch.Tensor) -> None:
        size, device = len(tables_BW), model.device
        self._model, self._kv = model, kv
        self._block_size = settings.block_size
        self._spare_block = settings.num_kv_blocks
        self._tables_BW = tables_BW
        # Together, so that a step has four copies to the device.
        self._longs_5B = torch.zeros(5, size, dtype=torch.int64, device=device)
        self._ints_2B = torch.zeros(2, size, dtype=torch.int32, device=device)
        self._floats_2B = torch.zeros(2, size, dtype=torch.float32, device=device)
        self._token_ids_B, self._positions_B, slot_mapping_B, self._seeds_B, self._new_positions_B = self._longs_5B
        context_lens_B, self._top_k_B = self._ints_2B
        self._temperature_B, self._top_p_B = self._floats_2B
        self._attention = AttentionInputs(
            slot_mapping_T=slot_mapping_B,
            query_start=torch.arange(size + 1, dtype=torch.int32, device=device),
            context_lens_S=context_lens_B,
            block_tables_SB=tables_BW,
            num_decodes=size,
            query_lens=(1,) * size,
            # What the launches are made for; kernels on a GPU read the lengths of each step there.
            host_context_lens=(settings.max_model_len,) * size,
            block_size=settings.block_size,
        )
        self._replay: Callable[[], Outputs] | None = None
        for array, target in zip(self._padding(), (self._longs_5B, self._ints_2B, self._floats_2B), strict=True):
            _upload(array, target)

    def _padding(self) -> tuple[I64, I32, F32]:
        """Rows that read and write the spare block: a first token of 0, taken greedily."""
        longs = np.zeros(self._longs_5B.shape, np.int64)
        longs[2] = self._spare_block * self._block_size
        ints = np.zeros(self._ints_2B.shape, np.int32)
        ints[0] = 1
        floats = np.zeros(self._floats_2B.shape, np.float32)
        floats[1] = 1
        return longs, ints, floats

    @torch.inference_mode()
    def capture(self, pool: "torch.cuda._POOL_HANDLE", logits_BV: torch.Tensor | None) -> torch.Tensor:
        """The logits of all graphs lie in one place, `logits_BV`, which the largest graph makes and returns: places
        of their own would take gigabytes."""
        logits, _ = self._compute(self._attention)  # compiles kernels, which a capture must not
        all_logits = torch.empty_like(logits) if logits_BV is None else logits_BV
        mine = all_logits[: len(logits)]
        del logits
        torch.cuda.synchronize(self._model.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            logits, ids_B = self._compute(self._attention)
            mine.copy_(logits)
        del logits

        def replay() -> Outputs:
            graph.replay()
            return mine, ids_B

        self._replay = replay
        return all_logits

    @torch.inference_mode()
    def run(self, table: SlotTable, sampling: SamplingState, slots_R: I64, late: LateInputs | None) -> Outputs:
        """All rows with padding; the next replay of any graph overwrites them."""
        positions = table.num_computed_tokens[slots_R]
        block_ids = table.block_tables_SB[slots_R, positions // self._block_size].astype(np.int64)
        longs, ints, floats = self._padding()
        num_rows = len(slots_R)
        longs[:, :num_rows] = (
            table.token_ids_SL[slots_R, positions],
            positions,
            block_ids * self._block_size + positions % self._block_size,
            sampling.seed[slots_R],
            positions + 1,
        )
        ints[:, :num_rows] = positions + 1, sampling.top_k[slots_R]
        floats[:, :num_rows] = sampling.temperature[slots_R], sampling.top_p[slots_R]
        # What stands beyond the longest context is of earlier steps, and nobody reads it.
        num_blocks = int(positions.max()) // self._block_size + 1
        tables = np.full((len(self._tables_BW), num_blocks), self._spare_block, np.int32)
        tables[:num_rows] = table.block_tables_SB[slots_R, :num_blocks]
        _upload(longs, self._longs_5B)
        if late is not None:
            late.fill(self._token_ids_B)
        _upload(ints, self._ints_2B)
        _upload(floats, self._floats_2B)
        _upload(tables, self._tables_BW[:, :num_blocks])
        if self._replay is not None:
            return self._replay()
        # On CPU kernels read the lengths on the host.
        is_cpu = self._model.device.type == "cpu"
        lens = tuple(ints[0].tolist()) if is_cpu else self._attention.host_context_lens
        return self._compute(replace(self._attention, host_context_lens=lens))

    def _compute(self, attention: AttentionInputs) -> Outputs:
        hidden_BD = self._model.forward(self._token_ids_B, self._positions_B, self._kv, attention)
        logits_BV = self._model.logits(hidden_BD)
        ids_B = sample_tokens(
            logits_BV,
            self._temperature_B,
            self._top_k_B,
            self._top_p_B,
            self._seeds_B,
            self._new_positions_B,
        )
        return logits_BV, ids_B


def _upload(array: NDArray[np.generic], target: torch.Tensor) -> None:
    source = torch.from_numpy(array)
    target.copy_(source if target.device.type == "cpu" else source.pin_memory(), non_blocking=True)
