"""From logits to token ids, and to log-probabilities where they are wanted.

Legend: R rows (one per new token), V vocabulary, K top alternatives, W rows that want log-probabilities.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...kernels.ops import argmax, sample_tokens
from .protocol import F32, I32
from .sampling_state import SamplingState
from .slots import I64
from .transfer import HostCopy, to_device


class Logprobs(NamedTuple):
    """As `StepOutputs` has them: of the chosen tokens, and the top alternatives."""

    chosen_R: F32
    top_ids_RK: I32
    top_RK: F32

    @classmethod
    def none(cls, num_rows: int) -> "Logprobs":
        """Rows that did not ask."""
        chosen_R = np.full(num_rows, np.nan, np.float32)
        return cls(chosen_R, np.zeros((num_rows, 0), np.int32), np.zeros((num_rows, 0), np.float32))

    def only(self, rows: NDArray[np.bool_]) -> "Logprobs":
        return self._make(part[rows] for part in self)


class LogprobsOnDevice:
    """Log-softmax of the logits before temperature, top-k and top-p, as OpenAI's API reports them, for the rows
    that want it. Its results are on their way to the host; `read` waits for them.

    Args:
        num_logprobs_R: top alternatives that each row wants, `NO_LOGPROBS` for nothing at all.
    """

    def __init__(self, logits_RV: torch.Tensor, token_ids_R: torch.Tensor, num_logprobs_R: I64) -> None:
        self._num_logprobs_R = num_logprobs_R
        self._wanting_W = np.flatnonzero(num_logprobs_R >= 0)
        rows_W = to_device(self._wanting_W, logits_RV.device)
        logprobs_WV = logits_RV[rows_W].log_softmax(-1)
        self._chosen_W = HostCopy(logprobs_WV.gather(1, token_ids_R[rows_W, None]).squeeze(1))
        self._num_top = min(int(num_logprobs_R.max()), logits_RV.shape[1])
        top_WK, top_ids_WK = logprobs_WV.topk(self._num_top, dim=-1)
        self._top_WK, self._top_ids_WK = HostCopy(top_WK), HostCopy(top_ids_WK)

    @classmethod
    def where_wanted(
        cls, logits_RV: torch.Tensor, token_ids_R: torch.Tensor, num_logprobs_R: I64
    ) -> "LogprobsOnDevice | None":
        """None when no row wants any."""
        return cls(logits_RV, token_ids_R, num_logprobs_R) if (num_logprobs_R >= 0).any() else None

    def read(self) -> Logprobs:
        num_rows, wanting_W, K = len(self._num_logprobs_R), self._wanting_W, self._num_top
        result = Logprobs.none(num_rows)
        result.chosen_R[wanting_W] = self._chosen_W.read().numpy()
        if K == 0:
            return result
        beyond_WK = np.arange(K) >= self._num_logprobs_R[wanting_W, None]
        top_ids_RK = np.full((num_rows, K), -1, np.int32)
        top_RK = np.full((num_rows, K), np.nan, np.float32)
        top_ids_RK[wanting_W] = np.where(beyond_WK, -1, self._top_ids_WK.read().numpy())
        top_RK[wanting_W] = np.where(beyond_WK, np.nan, self._top_WK.read().numpy())
        return Logprobs(result.chosen_R, top_ids_RK, top_RK)


def sample(logits_RV: torch.Tensor, state: SamplingState, slots_R: I64, positions_R: I64) -> torch.Tensor:
    """The new token ids, int64 [R]. `positions_R` is the index in its sequence that each will have: with the seed
    it decides the noise, so neither batch nor rank nor a continuation elsewhere changes the token."""
    device = logits_RV.device
    if state.temperature[slots_R].any():
        return sample_tokens(
            logits_RV,
            to_device(state.temperature[slots_R], device),
            to_device(state.top_k[slots_R], device),
            to_device(state.top_p[slots_R], device),
            to_device(state.seed[slots_R], device),
            to_device(positions_R, device),
        )
    return argmax(logits_RV)
