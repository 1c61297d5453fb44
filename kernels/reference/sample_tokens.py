"""Greedy and random choice of the next token; the noise depends on (seed, position, token id) and nothing else.

argmax(logits / temperature + Gumbel noise) draws from the softmax (Gumbel-max trick). The noise comes from a
counter-based integer hash, so a token is the same in every batch, on every rank and after a continuation elsewhere.

Legend: R rows, V vocabulary.
"""

import torch

_MASK32 = 0xFFFFFFFF


def sample_tokens(
    logits_RV: torch.Tensor,
    temperature_R: torch.Tensor,
    top_k_R: torch.Tensor,
    top_p_R: torch.Tensor,
    seed_R: torch.Tensor,
    position_R: torch.Tensor,
) -> torch.Tensor:
    ids_R = logits_RV.argmax(-1)
    rows = (temperature_R > 0).nonzero().squeeze(1)
    if len(rows) == 0:
        return ids_R
    scores_RV = logits_RV[rows].float() / temperature_R[rows, None]
    _keep_top_k(scores_RV, top_k_R[rows])
    _keep_top_p(scores_RV, top_p_R[rows])
    scores_RV += _gumbel(seed_R[rows], position_R[rows], scores_RV.shape[1])
    ids_R[rows] = scores_RV.argmax(-1)
    return ids_R


def _keep_top_k(scores_RV: torch.Tensor, top_k_R: torch.Tensor) -> None:
    """-inf below the k-th highest score of a row, in place. k = 0 keeps all; equals of the k-th are kept."""
    V = scores_RV.shape[1]
    rows = ((top_k_R > 0) & (top_k_R < V)).nonzero().squeeze(1)
    if len(rows) == 0:
        return
    k_R1 = top_k_R[rows, None].long()
    some_RV = scores_RV[rows]
    highest_RK = some_RV.topk(int(k_R1.max()), dim=-1).values
    scores_RV[rows] = some_RV.masked_fill_(some_RV < highest_RK.gather(1, k_R1 - 1), float("-inf"))


def _keep_top_p(scores_RV: torch.Tensor, top_p_R: torch.Tensor) -> None:
    """-inf for the least likely tokens that sum to at most 1 - p, in place. The likeliest is kept."""
    rows = (top_p_R < 1).nonzero().squeeze(1)
    if len(rows) == 0:
        return
    sorted_RV, ids_RV = scores_RV[rows].sort(dim=-1)
    tail_RV = sorted_RV.softmax(-1).cumsum(-1)
    drop_RV = tail_RV <= 1 - top_p_R[rows, None]
    drop_RV[:, -1] = False
    sorted_RV.masked_fill_(drop_RV, float("-inf"))
    scores_RV[rows] = torch.empty_like(sorted_RV).scatter_(1, ids_RV, sorted_RV)


def _gumbel(seed_R: torch.Tensor, position_R: torch.Tensor, V: int) -> torch.Tensor:
    low_R, high_R = seed_R & _MASK32, (seed_R >> 32) & _MASK32
    key_R = _hash(_hash(_hash(low_R) ^ high_R) ^ (position_R & _MASK32))
    token_V = torch.arange(V, device=seed_R.device)
    bits_RV = _hash(_hash(token_V) ^ key_R[:, None])
    uniform_RV = ((bits_RV >> 8).float() + 0.5) * 2.0**-24
    return uniform_RV.log_().neg_().log_().neg_()


def _hash(x: torch.Tensor) -> torch.Tensor:
    """Wellons' lowbias32, a permutation of 32-bit integers, in int64 (torch has no unsigned shifts)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK32
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK32
    return x ^ (x >> 16)
