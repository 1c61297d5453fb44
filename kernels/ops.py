"""Every op of floor 0: tensors in, tensors out. Callers import this file only.

Each op has one file per implementation, of the op's name; here is the choice among them: Triton for tensors on a
GPU (CUDA and HIP), C++ or torch on CPU.

Legend: T tokens, D hidden size, H query heads, K key heads, d head size, I intermediate size,
X = H + 2 K,
N blocks of the cache, b tokens per block, S sequences, R rows to sample, V vocabulary, O outputs.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Protocol

import torch

from .attention_inputs import AttentionInputs
from .avx512 import ops as _avx512
from .avx512.decoder_layers import DecoderLayers as DecoderLayers
from .avx512.decoder_layers import DecoderShape as DecoderShape
from .avx512.decoder_layers import DecoderWeights as DecoderWeights
from .avx512.exchange import Exchange as Exchange
from .avx512.linear import PANEL, GatedPanels, PanelLinear
from .avx512.linear import Panels as Panels
from .avx512.linear import touch as touch
from .fp8_rows import Fp8Rows as Fp8Rows
from .fp8_rows import Rows as Rows
from .reference import decode_inputs as _decode_inputs
from .reference import fp8 as _fp8
from .reference import linear as _linear
from .reference import paged_attention as _paged_attention
from .reference import rms_norm as _rms_norm
from .reference import rotary_and_write_kv as _rotary_and_write_kv
from .reference import sample_tokens as _sample_tokens
from .reference import silu_and_mul as _silu_and_mul
from .reference.linear import OneDnnLinear
from .running_slots import DecodeInputs as DecodeInputs
from .running_slots import RunningSlots as RunningSlots

AttentionPlan = object
"""What `prepare_attention` makes of a step's layout, for the implementation that reads it and nobody else."""


class PackedWeight(Protocol):
    """A weight [O, I] in the layout that computes fastest on this machine.

    Attributes:
        reads_rows: whether `rows` works, so that an embedding needs no copy of its own.
    """

    reads_rows: bool

    @property
    def input_fp8(self) -> torch.dtype | None:
        """The type in which x may come as `Fp8Rows`, rounded by the op before; None: as a tensor only."""
        ...

    def __call__(
        self, x_TI: Rows, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """x @ weight.T + bias, in the weight's type; `out_dtype` may be float32."""
        ...

    def rows(self, ids_N: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, [N, I]."""
        ...


def pack_weight(weight_OI: torch.Tensor) -> PackedWeight | None:
    """None where F.linear is the best there is. `weight_OI` is not used afterwards."""
    for packed in (PanelLinear, OneDnnLinear):
        if packed.takes(weight_OI):
            return packed(weight_OI)
    return None


def empty_packed_weight(
    num_outputs: int, num_inputs: int, firsts: Sequence[int], dtype: torch.dtype, device: torch.device
) -> PanelLinear | None:
    """A packed weight to be filled part by part, from outputs `firsts` on; None where `pack_weight` must do."""
    if any(first % PANEL for first in firsts) or not PanelLinear.takes_inputs(num_inputs, dtype, device):
        return None
    return PanelLinear.empty(num_outputs, num_inputs, dtype)


def empty_gated_panels(
    num_outputs: int, num_inputs: int, dtype: torch.dtype, device: torch.device
) -> GatedPanels | None:
    """Packed weights of a gate and of what it gates, to be filled in two parts; None where they are two ops."""
    if not PanelLinear.takes_inputs(num_inputs, dtype, device):
        return None
    return GatedPanels(num_outputs, num_inputs, dtype)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are at least as fast there as those of float32."""
    return device.type != "cpu" or _avx512.functions(torch.bfloat16) is not None or _linear.computes_bfloat16()


def _compiled(x: torch.Tensor) -> _avx512.Functions | None:
    return _avx512.functions(x.dtype) if x.is_cpu else None


def _triton(x: torch.Tensor) -> ModuleType | None:
    """`kernels/triton/ops.py` where x is on a GPU."""
    if x.is_cpu:
        return None
    from .triton import ops  # CPU builds of torch come without Triton

    return ops


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) * weight, computed in float32, in the type of x."""
    if do := _compiled(x_TD):
        return _avx512.rms_norm(do, x_TD, None, weight_D, eps)
    if gpu := _triton(x_TD):
        return gpu.rms_norm(x_TD, weight_D, eps)
    return _rms_norm.rms_norm(x_TD, weight_D, eps)


def add_rms_norm(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual). `residual_TD` is overwritten."""
    if do := _compiled(x_TD):
        return _avx512.rms_norm(do, x_TD, residual_TD, weight_D, eps), residual_TD
    if gpu := _triton(x_TD):
        return gpu.add_rms_norm(x_TD, residual_TD, weight_D, eps)
    return _rms_norm.add_rms_norm(x_TD, residual_TD, weight_D, eps)


def quantize_rows(x_RI: torch.Tensor, fp8: torch.dtype) -> Fp8Rows:
    """x in FP8 numbers with a scale per row: each row's largest becomes the type's largest."""
    if (do := _compiled(x_RI)) and fp8 == torch.float8_e4m3fn:
        numbers_RI, scale_R1 = _avx512.quantize_rows(do, x_RI)
    else:
        numbers_RI, scale_R1 = (_triton(x_RI) or _fp8).quantize_rows(x_RI, fp8)
    return Fp8Rows(numbers_RI, scale_R1, x_RI.dtype)


def rms_norm_to_fp8(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float, fp8: torch.dtype) -> Fp8Rows:
    """`quantize_rows(rms_norm(x))`, bit for bit; one kernel on a GPU."""
    if gpu := _triton(x_TD):
        numbers_TD, scale_T1 = gpu.rms_norm_to_fp8(x_TD, weight_D, eps, fp8)
        return Fp8Rows(numbers_TD, scale_T1, x_TD.dtype)
    return quantize_rows(rms_norm(x_TD, weight_D, eps), fp8)


def add_rms_norm_to_fp8(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float, fp8: torch.dtype
) -> tuple[Fp8Rows, torch.Tensor]:
    """(`quantize_rows(rms_norm(x + residual))`, x + residual). `residual_TD` is overwritten."""
    if gpu := _triton(x_TD):
        numbers_TD, scale_T1 = gpu.add_rms_norm_to_fp8(x_TD, residual_TD, weight_D, eps, fp8)
        return Fp8Rows(numbers_TD, scale_T1, x_TD.dtype), residual_TD
    y_TD, residual_TD = add_rms_norm(x_TD, residual_TD, weight_D, eps)
    return quantize_rows(y_TD, fp8), residual_TD


def silu_and_mul_to_fp8(x_T2I: torch.Tensor, fp8: torch.dtype) -> Fp8Rows:
    """`quantize_rows(silu_and_mul(x))`, bit for bit; one kernel on a GPU."""
    if gpu := _triton(x_T2I):
        numbers_TI, scale_T1 = gpu.silu_and_mul_to_fp8(x_T2I, fp8)
        return Fp8Rows(numbers_TI, scale_T1, x_T2I.dtype)
    return quantize_rows(silu_and_mul(x_T2I), fp8)


def rotary_and_write_kv(
    qkv_TXd: torch.Tensor,
    cos_Td: torch.Tensor,
    sin_Td: torch.Tensor,
    k_cache_NbKd: torch.Tensor,
    v_cache_NbKd: torch.Tensor,
    slot_mapping_T: torch.Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """Queries and keys turned by their tokens' positions; keys and values into one layer's cache.

    `qkv_TXd` holds H query, K key and K value heads side by side; what stands there afterwards is undefined, as the
    queries that come back, q_THd, may be a part of it. Token t's key and value go to slot `slot_mapping_T[t]`
    (block id * b + offset). Element i of a head pairs with element i + d/2, as Hugging Face stores heads. Both
    tables hold each angle for either half, with the sign that it has in the result:

        out[i]       = x[i]       cos[i]       + x[i + d/2] sin[i]          cos = ( cos a, cos a)
        out[i + d/2] = x[i + d/2] cos[i + d/2] + x[i]       sin[i + d/2]    sin = (-sin a, sin a)

    An FP8 cache gets keys and values divided by their scale; another cache is of the heads' type, without scales.
    """
    cache = (k_cache_NbKd, v_cache_NbKd, slot_mapping_T)
    if gpu := _triton(qkv_TXd):
        return gpu.rotary_and_write_kv(qkv_TXd, cos_Td, sin_Td, *cache, k_scale, v_scale)
    if (do := _compiled(qkv_TXd)) and k_cache_NbKd.dtype == qkv_TXd.dtype:
        return _avx512.rotary_and_write_kv(do, qkv_TXd, cos_Td, sin_Td, *cache)
    return _rotary_and_write_kv.rotary_and_write_kv(qkv_TXd, cos_Td, sin_Td, *cache, k_scale, v_scale)


def prepare_attention(inputs: AttentionInputs, k_cache_NbKd: torch.Tensor) -> AttentionPlan:
    """What `paged_attention` needs on every layer of one step. Any layer's cache will do: they are all alike."""
    if gpu := _triton(k_cache_NbKd):
        return gpu.prepare_attention(inputs)
    if _compiled(k_cache_NbKd):
        return inputs
    return _paged_attention.prepare_attention(inputs, k_cache_NbKd)


def paged_attention(
    q_THd: torch.Tensor,
    k_cache_NbKd: torch.Tensor,
    v_cache_NbKd: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """Causal attention of a step's queries over their sequences' cached keys and values; returns o_THd.

    Query head h reads key head h // (H / K). The step's own keys and values are in the cache already. `k_scale` and
    `v_scale` are what an FP8 cache was written with.
    """
    if isinstance(plan, AttentionInputs):
        do = _compiled(q_THd)
        assert do is not None, "the plan is of another device"
        return _avx512.paged_attention(do, q_THd, k_cache_NbKd, v_cache_NbKd, plan, scale)
    if isinstance(plan, _paged_attention.AttentionPlan):
        return _paged_attention.paged_attention(q_THd, k_cache_NbKd, v_cache_NbKd, plan, scale, k_scale, v_scale)
    gpu = _triton(q_THd)
    assert gpu is not None, "the plan is of another device"
    return gpu.paged_attention(q_THd, k_cache_NbKd, v_cache_NbKd, plan, scale, k_scale, v_scale)


def silu_and_mul(x_T2I: torch.Tensor) -> torch.Tensor:
    """silu(left half) * right half, [T, I]."""
    if do := _compiled(x_T2I):
        return _avx512.silu_and_mul(do, x_T2I)
    if gpu := _triton(x_T2I):
        return gpu.silu_and_mul(x_T2I)
    return _silu_and_mul.silu_and_mul(x_T2I)


def decode_inputs(running: RunningSlots, slots_R: torch.Tensor, block_size: int) -> DecodeInputs:
    """The next token of each of these slots (int64), as a step reads it; the last slot may come more than once."""
    gpu = _triton(slots_R)
    return (gpu or _decode_inputs).decode_inputs(running, slots_R, block_size)


def argmax(logits_RV: torch.Tensor) -> torch.Tensor:
    """int64 [R]: the lowest id of the highest logit (float32, no NaN) of each row."""
    if gpu := _triton(logits_RV):
        return gpu.argmax(logits_RV)
    ids_R = _avx512.argmax(logits_RV) if logits_RV.device.type == "cpu" else None
    return logits_RV.argmax(-1) if ids_R is None else ids_R


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
    if gpu := _triton(logits_RV):
        return gpu.sample_tokens(logits_RV, temperature_R, top_k_R, top_p_R, seed_R, position_R)
    return _sample_tokens.sample_tokens(logits_RV, temperature_R, top_k_R, top_p_R, seed_R, position_R)
