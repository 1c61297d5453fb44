"""What the device keeps of running requests for as long as they run; the host sends only what it changes.

    host      rows of new requests, blocks that were appended        (`update`, before a step)
    device    tokens and positions, which follow from its own steps  (`advance`, after a step's sampling)

A step that leaves a prompt unfinished brings it no token: the host tells the next one.

Legend: S slots, B blocks per slot, R sequences that get a new token, N rows or blocks that are sent.
"""

import numpy as np
import torch

from ...kernels.running_slots import RunningSlots
from .sampling_state import SamplingState
from .scheduler import Schedule
from .slots import I64, SlotTable
from .transfer import to_device


class DeviceState:
    """The rows of the host's table, and one more, which pads steps.

    Args:
        padding_block: what that row's block table is full of.

    Attributes:
        running: the rows; they stay where they are in memory.
    """

    def __init__(self, table: SlotTable, sampling: SamplingState, padding_block: int, device: torch.device) -> None:
        self._table, self._sampling, self._device = table, sampling, device
        num_slots, self._num_blocks_per_slot = table.block_tables_SB.shape
        # Together, as rows are sent.
        self._longs_3S = torch.zeros(3, num_slots + 1, dtype=torch.int64, device=device)
        self._floats_2S = torch.zeros(2, num_slots + 1, dtype=torch.float32, device=device)
        token_ids_S, positions_S, seeds_S = self._longs_3S
        temperature_S, top_p_S = self._floats_2S
        top_p_S.fill_(1.0)
        top_k_S = torch.zeros(num_slots + 1, dtype=torch.int32, device=device)
        tables_SB = torch.zeros(num_slots + 1, self._num_blocks_per_slot, dtype=torch.int32, device=device)
        tables_SB[-1] = padding_block
        self.running = RunningSlots(token_ids_S, positions_S, seeds_S, top_k_S, temperature_S, top_p_S, tables_SB)
        self._is_stale_S = np.zeros(num_slots, np.bool_)
        self._num_sent_blocks_S: I64 = np.zeros(num_slots, np.int64)

    def update(self, schedule: Schedule) -> None:
        """Before each step: send what the host knows of its slots and the device does not."""
        admitted = np.array([request.slot for request in schedule.admitted], np.int64)
        self._is_stale_S[admitted] = True
        self._num_sent_blocks_S[admitted] = 0
        self._send_blocks()
        if self._is_stale_S.any():
            self._send_rows()
        self._is_stale_S[schedule.slots[~schedule.samples]] = True

    def advance(self, slots_R: torch.Tensor, token_ids_R: torch.Tensor, positions_R: torch.Tensor) -> None:
        """These tokens come next in these slots, of which only the one that pads may come twice."""
        self.running.token_ids_S.index_copy_(0, slots_R, token_ids_R)
        self.running.positions_S.index_copy_(0, slots_R, positions_R)

    def block_tables(self, slots: I64, num_blocks: int) -> torch.Tensor:
        """int32 [len(slots), num_blocks], the slots' first blocks; beyond a sequence's own any."""
        return self.running.block_tables_SB[:, :num_blocks].index_select(0, to_device(slots, self._device))

    def _send_blocks(self) -> None:
        num_blocks_S, num_sent_S = self._table.num_blocks, self._num_sent_blocks_S
        (slots,) = np.nonzero(num_blocks_S > num_sent_S)
        if len(slots) == 0:
            return
        counts = num_blocks_S[slots] - num_sent_S[slots]
        rows_N = np.repeat(slots, counts)
        columns_N = np.arange(len(rows_N)) + np.repeat(num_sent_S[slots] + counts - np.cumsum(counts), counts)
        places_N = rows_N * self._num_blocks_per_slot + columns_N
        ids_N = self._table.block_tables_SB[rows_N, columns_N]
        num_sent_S[slots] = num_blocks_S[slots]
        sent_2N = to_device(np.stack((places_N, ids_N)), self._device)
        self.running.block_tables_SB.view(-1).index_copy_(0, sent_2N[0], sent_2N[1].int())

    def _send_rows(self) -> None:
        table, sampling = self._table, self._sampling
        (slots_N,) = np.nonzero(self._is_stale_S)
        self._is_stale_S[slots_N] = False
        positions_N = table.num_computed_tokens[slots_N]
        token_ids_N = table.token_ids_SL[slots_N, positions_N]
        longs = np.stack((slots_N, token_ids_N, positions_N, sampling.seed[slots_N], sampling.top_k[slots_N]))
        longs_5N = to_device(longs, self._device)
        floats_2N = to_device(np.stack((sampling.temperature[slots_N], sampling.top_p[slots_N])), self._device)
        on_device_N = longs_5N[0]
        self._longs_3S.index_copy_(1, on_device_N, longs_5N[1:4])
        self.running.top_k_S.index_copy_(0, on_device_N, longs_5N[4].int())
        self._floats_2S.index_copy_(1, on_device_N, floats_2N)
