"""How each running request samples and when it ends, as arrays per slot.

Legend: S slots, R rows (sequences that get a token in this step), V vocabulary, E stop ids per slot.
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from .protocol import I32, NO_LOGPROBS, U8, FinishReason
from .request import Request
from .slots import I64, LateTokens, SlotTable


class SamplingState:
    """One row per slot, written when a request is admitted.

    Attributes:
        temperature, top_p: float32 [S].
        top_k: int32 [S].
        seed: int64 [S], the bits of the unsigned seed.
        num_logprobs: int64 [S], `NO_LOGPROBS` where none are wanted.
    """

    def __init__(self, num_slots: int, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self.temperature = np.zeros(num_slots, np.float32)
        self.top_k = np.zeros(num_slots, np.int32)
        self.top_p = np.ones(num_slots, np.float32)
        self.seed: I64 = np.zeros(num_slots, np.int64)
        self.num_logprobs: I64 = np.full(num_slots, NO_LOGPROBS, np.int64)
        self._is_eos_V = np.zeros(vocab_size, np.bool_)
        self._is_eos_V[[token_id for token_id in eos_token_ids if token_id < vocab_size]] = True
        self._heeds_eos = np.zeros(num_slots, np.bool_)
        self._num_stop_ids: I64 = np.zeros(num_slots, np.int64)
        self._stop_ids_SE = np.zeros((num_slots, 0), np.int32)

    def set(self, request: Request) -> None:
        """Write the request's row."""
        slot, sampling = request.slot, request.sampling
        self.temperature[slot] = sampling.temperature
        self.top_k[slot] = sampling.top_k
        self.top_p[slot] = sampling.top_p
        self.seed[slot] = np.uint64(sampling.seed).astype(np.int64)
        self.num_logprobs[slot] = sampling.num_logprobs
        self._heeds_eos[slot] = not sampling.ignore_eos
        self._set_stop_ids(slot, sampling.stop_token_ids)

    def _set_stop_ids(self, slot: int, stop_ids: tuple[int, ...]) -> None:
        missing = len(stop_ids) - self._stop_ids_SE.shape[1]
        if missing > 0:
            self._stop_ids_SE = np.pad(self._stop_ids_SE, ((0, 0), (0, missing)), constant_values=-1)
        self._stop_ids_SE[slot] = -1
        self._stop_ids_SE[slot, : len(stop_ids)] = stop_ids
        self._num_stop_ids[slot] = len(stop_ids)

    def finish_reasons(self, late: LateTokens, token_ids_R: I32, table: SlotTable) -> U8:
        """FinishReason of each sequence with its late token, which now has come."""
        slots_R = late.slots
        stops: NDArray[np.bool_] = self._is_eos_V[token_ids_R] & self._heeds_eos[slots_R]
        if self._num_stop_ids[slots_R].any():
            stops |= (self._stop_ids_SE[slots_R] == token_ids_R[:, None]).any(1)
        finish = np.where(late.positions + 1 >= table.max_num_tokens[slots_R], FinishReason.LENGTH, 0)
        finish[stops] = FinishReason.STOP
        return finish.astype(np.uint8)
