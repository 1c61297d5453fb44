"""Every op of floor 0: tensors in, tensors out. Callers import this file only.

Each op has one file per implementation, of the op's name; here is the choice among them.

Legend: T tokens, D hidden size, H query heads, K key heads, d head size, I intermediate size,
N blocks of the cache, b tokens per block, S sequences, R rows to sample, V vocabulary.
"""

import torch

from .attention_inputs import AttentionInputs
from .reference import paged_attention as _paged_attention
from .reference import rms_norm as _rms_norm
from .reference import rotary as _rotary
from .reference import sample_tokens as _sample_tokens
from .reference import silu_and_mul as _silu_and_mul
from .reference import write_kv as _write_kv

AttentionPlan = _paged_attention.AttentionPlan


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) * weight, computed in float32, in the type of x."""
    return _rms_norm.rms_norm(x_TD, weight_D, eps)


def add_rms_norm(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual). `residual_TD` is overwritten."""
    return _rms_norm.add_rms_norm(x_TD, residual_TD, weight_D, eps)


def rotary(x_THd: torch.Tensor, cos_Td: torch.Tensor, sin_Td: torch.Tensor) -> torch.Tensor:
    """Heads turned by their tokens' positions; queries and keys side by side take one call.

    Element i of a head pairs with element i + d/2, as Hugging Face stores heads. Both tables hold each angle for
    either half, with the sign that it has in the result:

        out[i]       = x[i]       cos[i]       + x[i + d/2] sin[i]          cos = ( cos a, cos a)
        out[i + d/2] = x[i + d/2] cos[i + d/2] + x[i]       sin[i + d/2]    sin = (-sin a, sin a)
    """
    return _rotary.rotary(x_THd, cos_Td, sin_Td)


def write_kv(
    k_TKd: torch.Tensor,
    v_TKd: torch.Tensor,
    k_cache_NbKd: torch.Tensor,
    v_cache_NbKd: torch.Tensor,
    slot_mapping_T: torch.Tensor,
) -> None:
    """Each token's key and value into slot `slot_mapping_T` (block id * b + offset) of one layer's cache."""
    _write_kv.write_kv(k_TKd, v_TKd, k_cache_NbKd, v_cache_NbKd, slot_mapping_T)


def prepare_attention(inputs: AttentionInputs, k_cache_NbKd: torch.Tensor) -> AttentionPlan:
    """What `paged_attention` needs on every layer of one step. Any layer's cache will do: they are all alike."""
    return _paged_attention.prepare_attention(inputs, k_cache_NbKd)


def paged_attention(
    q_THd: torch.Tensor, k_cache_NbKd: torch.Tensor, v_cache_NbKd: torch.Tensor, plan: AttentionPlan, scale: float
) -> torch.Tensor:
    """Causal attention of a step's queries over their sequences' cached keys and values; returns o_THd.

    Query head h reads key head h // (H / K). The step's own keys and values are in the cache already.
    """
    return _paged_attention.paged_attention(q_THd, k_cache_NbKd, v_cache_NbKd, plan, scale)


def silu_and_mul(x_T2I: torch.Tensor) -> torch.Tensor:
    """silu(left half) * right half, [T, I]."""
    return _silu_and_mul.silu_and_mul(x_T2I)


def sample_tokens(
    logits_RV: torch.Tensor,
    temperature_R: torch.Tensor,
    top_k_R: torch.Tensor,
    top_p_R: torch.Tensor,
    seed_R: torch.Tensor,
    position_R: torch.Tensor,
) -> torch.Tensor:
    """The next token of each row, int64 [R].

    Temperature 0 (or under 1e-5) takes the highest logit. Otherwise the token is drawn after
    temperature, then top-k (0: off), then top-p (1: off), with noise that is a function of (seed, position,
    token id) alone: `seed_R` int64 (64 bits count), `position_R` int64, the absolute position of the new token.
    """
    return _sample_tokens.sample_tokens(logits_RV, temperature_R, top_k_R, top_p_R, seed_R, position_R)
