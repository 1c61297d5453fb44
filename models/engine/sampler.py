"""From logits to token ids, and to log-probabilities where they are wanted.

Legend: R rows (one per new token), V vocabulary, K top alternatives, W rows that want log-probabilities.
"""

from typing import NamedTuple

import numpy as np
import torch

from ...kernels.ops import argmax, sample_tokens
from .batch_builder import to_device
from .protocol import F32, I32
from .sampling_state import SamplingState
from .slots import I64


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


def sample(logits_RV: torch.Tensor, state: SamplingState, slots_R: I64, positions_R: I64) -> I32:
    """The new token ids. `positions_R` is the index in its sequence that each will have: with the seed it decides
    the noise, so neither batch nor rank nor a continuation elsewhere changes the token."""
    device = logits_RV.device
    if state.temperature[slots_R].any():
        ids_R = sample_tokens(
            logits_RV,
            to_device(state.temperature[slots_R], device),
            to_device(state.top_k[slots_R], device),
            to_device(state.top_p[slots_R], device),
            to_device(state.seed[slots_R], device),
            to_device(positions_R, device),
        )
    else:
        ids_R = argmax(logits_RV)
    return ids_R.cpu().numpy().astype(np.int32)


def compute_logprobs(logits_RV: torch.Tensor, token_ids_R: I32, num_logprobs_R: I64) -> Logprobs:
    """Log-softmax of the logits before temperature, top-k and top-p, as OpenAI's API reports them."""
    wanting_W = np.flatnonzero(num_logprobs_R >= 0)
    result = Logprobs.none(len(token_ids_R))
    if len(wanting_W) == 0:
        return result
    rows_W = to_device(wanting_W, logits_RV.device)
    chosen_W1 = to_device(token_ids_R[wanting_W, None].astype(np.int64), logits_RV.device)
    logprobs_WV = logits_RV[rows_W].log_softmax(-1)
    result.chosen_R[wanting_W] = logprobs_WV.gather(1, chosen_W1).squeeze(1).cpu().numpy()
    K = min(int(num_logprobs_R.max()), logits_RV.shape[1])
    if K == 0:
        return result
    top_WK, top_ids_WK = (part.cpu().numpy() for part in logprobs_WV.topk(K, dim=-1))
    beyond_WK = np.arange(K) >= num_logprobs_R[wanting_W, None]
    top_ids_RK = np.full((len(token_ids_R), K), -1, np.int32)
    top_RK = np.full((len(token_ids_R), K), np.nan, np.float32)
    top_ids_RK[wanting_W] = np.where(beyond_WK, -1, top_ids_WK)
    top_RK[wanting_W] = np.where(beyond_WK, np.nan, top_WK)
    return Logprobs(result.chosen_R, top_ids_RK, top_RK)
