"""The Triton ops, with the contracts of `kernels/ops.py`. Read when the first tensor on a GPU comes: CPU builds of
torch have no Triton."""

from .decode_inputs import decode_inputs
from .paged_attention import AttentionPlan, paged_attention, prepare_attention
from .quantize_rows import quantize_rows
from .rms_norm import add_rms_norm, add_rms_norm_to_fp8, rms_norm, rms_norm_to_fp8
from .rotary_and_write_kv import rotary_and_write_kv
from .sample_tokens import argmax, sample_tokens
from .silu_and_mul import silu_and_mul, silu_and_mul_to_fp8

__all__ = [
    "AttentionPlan",
    "add_rms_norm",
    "add_rms_norm_to_fp8",
    "argmax",
    "decode_inputs",
    "paged_attention",
    "prepare_attention",
    "quantize_rows",
    "rms_norm",
    "rms_norm_to_fp8",
    "rotary_and_write_kv",
    "sample_tokens",
    "silu_and_mul",
    "silu_and_mul_to_fp8",
]
