"""Greedy and random choice of the next token, one program per row, without a sync: fit for graphs.

The draw is argmax(logits / temperature + Gumbel noise), the noise the same integer hash of (seed, position, token
id) as in the reference. What top-k and top-p keep is all from a threshold up, found by bisection over the ordered
bits of floats, 32 passes over a row that lies in the cache by then, instead of a sort:

    top-k   the highest t with count(score >= t) >= k            exactly the k-th highest score
    top-p   the lowest t with mass(score > t) < p                exactly the last score that brings the sum to p

Legend: R rows, V vocabulary.
"""

# pyright: reportMissingParameterType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# A kernel is Python in form only: the launch decides what its parameters are.

import torch
import triton
import triton.language as tl

from .tuning import tuning

_LOWEST_TEMPERATURE: tl.constexpr = tl.constexpr(1e-5)
_LOWEST_KEY: tl.constexpr = tl.constexpr(-2139095041)  # of -inf
_HIGHEST_KEY: tl.constexpr = tl.constexpr(2139095040)  # of inf


@triton.jit
def _hash(x):
    """Wellons' lowbias32, a permutation of 32-bit integers."""
    x = x ^ (x >> 16)
    x = x * tl.full(x.shape, 0x7FEB352D, tl.uint32)
    x = x ^ (x >> 15)
    x = x * tl.full(x.shape, 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def _log(x):
    """Of normal positive numbers, to the last place (Cephes' logf). GPUs' own is coarse near 1, where the noise of
    the winners comes from: other tokens than the reference's would win now and then."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = ((bits >> 23) - 126).to(tl.float32)
    m = ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    is_low = m < 0.70710678
    exponent = tl.where(is_low, exponent - 1.0, exponent)
    m = tl.where(is_low, m + m - 1.0, m - 1.0)
    y = m * 7.0376836292e-2 - 1.1514610310e-1
    y = y * m + 1.1676998740e-1
    y = y * m - 1.2420140846e-1
    y = y * m + 1.4249322787e-1
    y = y * m - 1.6668057665e-1
    y = y * m + 2.0000714765e-1
    y = y * m - 2.4999993993e-1
    y = y * m + 3.3333331174e-1
    y = y * m * m * m - 2.12194440e-4 * exponent - 0.5 * m * m
    return m + y + 0.693359375 * exponent


@triton.jit
def _float_of(key):
    """The key-th float in the order of floats; `key` is an int64."""
    bits = key.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def _key_of(x):
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _score(logits, start, V, temperature, BLOCK_V: tl.constexpr):
    v = start + tl.arange(0, BLOCK_V)
    x_V = tl.load(logits + v, mask=v < V, other=float("-inf"))
    return tl.math.div_rn(x_V, tl.full([BLOCK_V], temperature, tl.float32))


@triton.jit
def _highest(logits, V, temperature, BLOCK_V: tl.constexpr):
    highest_V = tl.full([BLOCK_V], float("-inf"), tl.float32)
    for start in range(0, V, BLOCK_V):
        highest_V = tl.maximum(highest_V, _score(logits, start, V, temperature, BLOCK_V))
    return tl.max(highest_V, 0)


@triton.jit
def _top_k_threshold(logits, V, temperature, k, highest, BLOCK_V: tl.constexpr):
    low = tl.full([], _LOWEST_KEY, tl.int64)
    high = _key_of(highest) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        threshold = _float_of(middle)
        count_V = tl.zeros([BLOCK_V], tl.int32)
        for start in range(0, V, BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)
            count_V += ((_score(logits, start, V, temperature, BLOCK_V) >= threshold) & (v < V)).to(tl.int32)
        enough = tl.sum(count_V, 0) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return _float_of(low)


@triton.jit
def _mass_above(logits, V, temperature, threshold, floor, highest, BLOCK_V: tl.constexpr):
    """Sum of exp(score - highest) over scores above `threshold` that are not below `floor`."""
    mass_V = tl.zeros([BLOCK_V], tl.float32)
    for start in range(0, V, BLOCK_V):
        score_V = _score(logits, start, V, temperature, BLOCK_V)
        mass_V += tl.where((score_V > threshold) & (score_V >= floor), tl.exp(score_V - highest), 0.0)
    return tl.sum(mass_V, 0)


@triton.jit
def _top_p_threshold(logits, V, temperature, p, floor, highest, BLOCK_V: tl.constexpr):
    low = tl.full([], _LOWEST_KEY, tl.int64)
    high = _key_of(highest)
    wanted = p * _mass_above(logits, V, temperature, float("-inf"), floor, highest, BLOCK_V)
    while high - low > 1:
        middle = (low + high) >> 1
        above = _mass_above(logits, V, temperature, _float_of(middle), floor, highest, BLOCK_V) < wanted
        high = tl.where(above, middle, high)
        low = tl.where(above, low, middle)
    return _float_of(high)


@triton.jit
def _argmax(logits, V, temperature, threshold, key, IS_DRAW: tl.constexpr, BLOCK_V: tl.constexpr):
    """The lowest id of the highest logit, or of the highest score with noise among those from the threshold up."""
    best_V = tl.full([BLOCK_V], float("-inf"), tl.float32)
    best_id_V = tl.arange(0, BLOCK_V)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        if IS_DRAW:
            score_V = _score(logits, start, V, temperature, BLOCK_V)
            noise_V = _hash(_hash(v.to(tl.uint32)) ^ key)
            uniform_V = ((noise_V >> 9).to(tl.int32).to(tl.float32) + 0.5) * (2.0**-23)
            gumbel_V = -_log(-_log(uniform_V))
            x_V = tl.where(score_V >= threshold, score_V + gumbel_V, float("-inf"))
        else:
            x_V = tl.load(logits + v, mask=v < V, other=float("-inf"))
        better_V = x_V > best_V
        best_V = tl.where(better_V, x_V, best_V)
        best_id_V = tl.where(better_V, v, best_id_V)
    return tl.min(tl.where(best_V == tl.max(best_V, 0), best_id_V, V - 1), 0)


@triton.jit
def _greedy(logits, ids, V, stride, BLOCK_V: tl.constexpr):
    row = tl.program_id(0)
    tl.store(ids + row, _argmax(logits + row.to(tl.int64) * stride, V, 1.0, 0.0, 0, False, BLOCK_V).to(tl.int64))


@triton.jit
def _sample(
    logits, ids, temperatures, top_ks, top_ps, seeds, positions, V, stride, BLOCK_V: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    logits += row.to(tl.int64) * stride
    temperature = tl.load(temperatures + row)
    if temperature >= _LOWEST_TEMPERATURE:
        k, p = tl.load(top_ks + row), tl.load(top_ps + row)
        threshold = tl.full([], float("-inf"), tl.float32)
        highest = threshold
        limits_k = (k > 0) & (k < V)
        if limits_k | (p < 1.0):
            highest = _highest(logits, V, temperature, BLOCK_V)
        if limits_k:
            threshold = _top_k_threshold(logits, V, temperature, k, highest, BLOCK_V)
        if p < 1.0:
            threshold = tl.maximum(
                threshold, _top_p_threshold(logits, V, temperature, p, threshold, highest, BLOCK_V)
            )
        seed, position = tl.load(seeds + row), tl.load(positions + row)
        low, high = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
        key = _hash(_hash(_hash(low) ^ high) ^ (position & 0xFFFFFFFF).to(tl.uint32))
        tl.store(ids + row, _argmax(logits, V, temperature, threshold, key, True, BLOCK_V).to(tl.int64))
    else:
        tl.store(ids + row, _argmax(logits, V, 1.0, 0.0, 0, False, BLOCK_V).to(tl.int64))


def argmax(logits_RV: torch.Tensor) -> torch.Tensor:
    R, V = logits_RV.shape
    ids_R = torch.empty(R, dtype=torch.int64, device=logits_RV.device)
    if R > 0:
        tuned = tuning()
        _greedy[(R,)](
            _rows(logits_RV), ids_R, V, logits_RV.stride(0), BLOCK_V=tuned.vocabulary_block, **tuned.vocabulary
        )
    return ids_R


def sample_tokens(
    logits_RV: torch.Tensor,
    temperature_R: torch.Tensor,
    top_k_R: torch.Tensor,
    top_p_R: torch.Tensor,
    seed_R: torch.Tensor,
    position_R: torch.Tensor,
) -> torch.Tensor:
    R, V = logits_RV.shape
    ids_R = torch.empty(R, dtype=torch.int64, device=logits_RV.device)
    if R > 0:
        tuned = tuning()
        _sample[(R,)](
            _rows(logits_RV),
            ids_R,
            temperature_R,
            top_k_R,
            top_p_R,
            seed_R,
            position_R,
            V,
            logits_RV.stride(0),
            BLOCK_V=tuned.vocabulary_block,
            **tuned.vocabulary,
        )
    return ids_R


def _rows(logits_RV: torch.Tensor) -> torch.Tensor:
    assert logits_RV.dtype == torch.float32
    assert logits_RV.stride(1) == 1
    return logits_RV
