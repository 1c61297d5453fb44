"""Steps in which every sequence decodes one token, padded to a few batch sizes. Each size may be a graph of a GPU,
captured at the start with its sampling, so that a step is one launch.

    rows      | d0 d1 d2 d3 d4 | padding ... |      of 5 sequences in the step of size 8
    cache     | blocks of the pool ......... | spare |
                                               padding reads and writes here, where nobody else looks

Legend: R rows, B rows with padding, V vocabulary.
"""

import logging
import time
from collections.abc import Callable

import numpy as np
import torch

from ...kernels.attention_inputs import AttentionInputs
from ...kernels.ops import decode_inputs, sample_tokens
from ..causal_lm import CausalLM
from ..kv_cache import KvCache
from .device_state import DeviceState
from .settings import ResolvedSettings
from .slots import I64
from .transfer import to_device

_log = logging.getLogger(__name__)

Outputs = tuple[torch.Tensor, torch.Tensor]
"""logits float32 [B, V] and token ids int64 [B]."""

Compute = Callable[[], Outputs]
Capture = Callable[[Compute], Compute]
"""From a step to what replays it, into the same places. Raises RuntimeError where it cannot be captured."""


def cuda_graphs() -> Capture:
    """Graphs of a GPU, for HIP, too, that share their memory."""
    pool = torch.cuda.graph_pool_handle()

    def capture(compute: Compute) -> Compute:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            outputs = compute()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    return capture


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
        state: all that a step reads; it leaves its tokens there, for the next one.
        capture: makes graphs of the steps; None computes them as they are.
        agrees: with several ranks, which all capture at once: whether all say yes (see `TpGroup.agrees`). Then all
            have graphs, or none has. Without it, what a capture raises is raised.
    """

    def __init__(
        self,
        model: CausalLM,
        kv: KvCache,
        settings: ResolvedSettings,
        state: DeviceState,
        *,
        capture: Capture | None,
        agrees: Callable[[bool], bool] | None = None,
    ) -> None:
        assert kv.num_blocks == settings.num_kv_blocks + 1
        self._device = model.device
        self._padding_slot = most = settings.max_num_seqs
        self._slots_B = torch.full((most,), self._padding_slot, device=model.device)
        self._sent_slots_B: I64 = np.full(most, self._padding_slot)
        self._sizes = padded_sizes(most)
        self._steps = [_PaddedStep(model, kv, settings, state, self._slots_B[:size]) for size in self._sizes]
        if capture is not None:
            self._capture(capture, agrees)

    def _capture(self, capture: Capture, agrees: Callable[[bool], bool] | None) -> None:
        """Largest first, so that the others find room in the memory that it took.

        All are computed before any is captured: a capture must neither compile kernels nor connect ranks, and one
        that fails must not leave other ranks waiting in a sum.
        """
        start_s, fault = time.perf_counter(), None
        *others, largest = self._steps
        logits_BV = torch.empty_like(largest.compute()[0])
        for step in reversed(others):
            step.compute()
        try:
            for step in reversed(self._steps):
                step.capture(capture, logits_BV[: step.size])
        except RuntimeError as error:
            if agrees is None:
                raise
            fault = str(error)
        if agrees is None or agrees(fault is None):
            _log.info("captured %d graphs in %.1f s", len(self._steps), time.perf_counter() - start_s)
            return
        self.drop_graphs()
        _log.warning("no graphs, so kernels of a step are launched one by one: %s", fault or "another rank failed")

    def drop_graphs(self) -> None:
        """Steps are computed as they are from now on."""
        for step in self._steps:
            step.drop_graph()

    def run(self, slots_R: I64, context_lens_R: I64) -> Outputs:
        """Logits [R, V] and the next token ids [R] of these slots, each of which lacks one token; `context_lens_R`
        count it."""
        num_rows = len(slots_R)
        step = self._steps[int(np.searchsorted(self._sizes, num_rows))]
        self._send(slots_R, step.size)
        logits_BV, ids_B = step.run(context_lens_R)
        return logits_BV[:num_rows], ids_B[:num_rows]

    def _send(self, slots_R: I64, size: int) -> None:
        """Mostly a step has the rows of the one before it."""
        slots_B: I64 = np.full(size, self._padding_slot)
        slots_B[: len(slots_R)] = slots_R
        if not np.array_equal(slots_B, self._sent_slots_B[:size]):
            self._sent_slots_B[:size] = slots_B
            self._slots_B[:size].copy_(to_device(slots_B, self._device))


class _PaddedStep:
    """One batch size: what it reads stays where it is in memory, as a graph wants it."""

    def __init__(
        self,
        model: CausalLM,
        kv: KvCache,
        settings: ResolvedSettings,
        state: DeviceState,
        slots_B: torch.Tensor,
    ) -> None:
        self.size = len(slots_B)
        self._model, self._kv, self._state, self._slots_B = model, kv, state, slots_B
        self._query_start = torch.arange(self.size + 1, dtype=torch.int32, device=model.device)
        # What the launches are made for; kernels on a GPU read the lengths of each step there.
        self._longest_B = (settings.max_model_len,) * self.size
        self._replay: Callable[[], Outputs] | None = None

    @torch.inference_mode()
    def compute(self) -> Outputs:
        """All rows with padding, for contexts of any length."""
        return self._compute(self._longest_B)

    @torch.inference_mode()
    def capture(self, capture: Capture, logits_BV: torch.Tensor) -> None:
        """`run` replays from now on. Logits are left at `logits_BV`, one place for all graphs: places of their own
        would take gigabytes."""

        def compute() -> Outputs:
            logits, ids_B = self._compute(self._longest_B)
            logits_BV.copy_(logits)
            return logits_BV, ids_B

        self._replay = capture(compute)

    def drop_graph(self) -> None:
        self._replay = None

    @torch.inference_mode()
    def run(self, context_lens_R: I64) -> Outputs:
        """All rows with padding; the next replay of any graph overwrites them."""
        if self._replay is not None:
            return self._replay()
        if self._model.device.type != "cpu":
            return self.compute()
        # On CPU kernels read the lengths on the host.
        padding = [1] * (self.size - len(context_lens_R))
        return self._compute((*context_lens_R.tolist(), *padding))

    def _compute(self, host_context_lens: tuple[int, ...]) -> Outputs:
        inputs = decode_inputs(self._state.running, self._slots_B, self._kv.block_size)
        attention = AttentionInputs(
            slot_mapping_T=inputs.slot_mapping_R,
            query_start=self._query_start,
            context_lens_S=inputs.context_lens_R,
            block_tables_SB=inputs.block_tables_RB,
            num_decodes=self.size,
            query_lens=(1,) * self.size,
            host_context_lens=host_context_lens,
            block_size=self._kv.block_size,
        )
        hidden_BD = self._model.forward(inputs.token_ids_R, inputs.positions_R, self._kv, attention)
        logits_BV = self._model.logits(hidden_BD)
        ids_B = sample_tokens(
            logits_BV,
            inputs.temperature_R,
            inputs.top_k_R,
            inputs.top_p_R,
            inputs.seeds_R,
            inputs.new_positions_R,
        )
        self._state.advance(self._slots_B, ids_B, inputs.new_positions_R)
        return logits_BV, ids_B
