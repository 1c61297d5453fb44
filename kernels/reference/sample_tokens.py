"""Greedy and random choice of the next token; the noise depends on (seed, position, token id) and nothing else.

argmax(logits / temperature + Gumbel noise) draws from the softmax (Gumbel-max trick). The noise comes from a
counter-based integer hash, so a token is the same in every batch, on every rank and after a continuation elsewhere.

Legend: R rows, V vocabulary, M likeliest tokens.
"""

from functools import lru_cache

import torch

_MASK32 = 0xFFFFFFFF
# Below this, dividing by the temperature could overflow, and the draw would be the highest logit anyway.
_LOWEST_TEMPERATURE = 1e-5
_NUM_LIKELIEST = 256
# What a core's cache holds while the noise is worked out.
_CPU_CHUNK_ELEMENTS = 1 << 16


def sample_tokens(
    logits_RV: torch.Tensor,
    temperature_R: torch.Tensor,
    top_k_R: torch.Tensor,
    top_p_R: torch.Tensor,
    seed_R: torch.Tensor,
    position_R: torch.Tensor,
) -> torch.Tensor:
    sampled = (temperature_R >= _LOWEST_TEMPERATURE).nonzero().squeeze(1)
    if len(sampled) == 0:
        return logits_RV.argmax(-1)
    scores_RV = logits_RV.index_select(0, sampled).float() / temperature_R[sampled, None]
    _keep_top_k(scores_RV, top_k_R[sampled])
    _keep_top_p(scores_RV, top_p_R[sampled])
    ids_R = _draw(scores_RV, seed_R[sampled], position_R[sampled])
    if len(sampled) == len(logits_RV):
        return ids_R
    return logits_RV.argmax(-1).index_copy_(0, sampled, ids_R)


def _keep_top_k(scores_RV: torch.Tensor, top_k_R: torch.Tensor) -> None:
    """-inf below the k-th highest score of a row, in place. k = 0 keeps all; equals of the k-th are kept."""
    V = scores_RV.shape[1]
    rows = ((top_k_R > 0) & (top_k_R < V)).nonzero().squeeze(1)
    if len(rows) == 0:
        return
    k_R1 = top_k_R[rows, None].long()
    highest_RM = scores_RV[rows].topk(int(k_R1.max()), dim=-1).values
    _drop_below(scores_RV, rows, highest_RM.gather(1, k_R1 - 1))


def _keep_top_p(scores_RV: torch.Tensor, top_p_R: torch.Tensor) -> None:
    """Keeps the likeliest tokens up to the one that brings their sum to p; -inf for the rest, in place.

    Few tokens mostly hold the mass, and finding these is 10 times cheaper than sorting the vocabulary.
    """
    V = scores_RV.shape[1]
    rows = (top_p_R < 1).nonzero().squeeze(1)
    for num_likeliest in (min(_NUM_LIKELIEST, V), V):
        if len(rows) == 0:
            return
        some_RV, top_p_R1 = scores_RV[rows], top_p_R[rows, None]
        highest_RM = some_RV.topk(num_likeliest, dim=-1).values
        probability_RM = (highest_RM - some_RV.logsumexp(-1, keepdim=True)).exp()
        before_RM = probability_RM.cumsum(-1) - probability_RM
        # The first is kept even for p = 0.
        num_kept_R1 = (before_RM < top_p_R1).sum(-1, keepdim=True).clamp(min=1)
        enough_R = (num_kept_R1 < num_likeliest).squeeze(1) | (num_likeliest == V)
        threshold_R1 = highest_RM.gather(1, num_kept_R1 - 1)
        _drop_below(scores_RV, rows[enough_R], threshold_R1[enough_R])
        rows = rows[~enough_R]


def _drop_below(scores_RV: torch.Tensor, rows: torch.Tensor, threshold_R1: torch.Tensor) -> None:
    some_RV = scores_RV[rows]
    scores_RV[rows] = some_RV.masked_fill_(some_RV < threshold_R1, float("-inf"))


def _draw(scores_RV: torch.Tensor, seed_R: torch.Tensor, position_R: torch.Tensor) -> torch.Tensor:
    V = scores_RV.shape[1]
    low_R, high_R = seed_R & _MASK32, (seed_R >> 32) & _MASK32
    key_R1 = _hash(_hash(_hash(low_R) ^ high_R) ^ (position_R & _MASK32))[:, None]
    tokens_V = _hashed_tokens(V, scores_RV.device)
    num_rows = max(1, _CPU_CHUNK_ELEMENTS // V) if scores_RV.device.type == "cpu" else len(scores_RV)
    return torch.cat(
        [
            (_gumbel(tokens_V ^ chunk_R1).add_(chunk_RV)).argmax(-1)
            for chunk_RV, chunk_R1 in zip(scores_RV.split(num_rows), key_R1.split(num_rows), strict=True)
        ]
    )


@lru_cache(maxsize=4)
def _hashed_tokens(V: int, device: torch.device) -> torch.Tensor:
    return _hash(torch.arange(V, device=device))


def _gumbel(counters: torch.Tensor) -> torch.Tensor:
    """One draw per counter, float32. The uniform number has 23 bits and is neither 0 nor 1."""
    uniform = (_hash(counters) >> 9).float().add_(0.5).mul_(2.0**-23)
    return uniform.log_().neg_().log_().neg_()


def _hash(x: torch.Tensor) -> torch.Tensor:
    """Wellons' lowbias32, a permutation of 32-bit integers, in int64 (torch has no unsigned shifts)."""
    x = x ^ (x >> 16)
    x.mul_(0x7FEB352D).bitwise_and_(_MASK32)
    x ^= x >> 15
    x.mul_(0x846CA68B).bitwise_and_(_MASK32)
    x ^= x >> 16
    return x
