"""The gated activation of Llama's MLP, silu(gate) * up; for FP8 numbers one program per row.

Legend: T tokens, I intermediate size.
"""

# pyright: reportMissingParameterType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# A kernel is Python in form only: the launch decides what its parameters are.

import torch
import triton
import triton.language as tl

from .quantize_rows import fp8_numbers, launch_to_fp8, row_scale
from .tuning import tuning


@triton.jit
def _gated(x, row, i, num_outputs):
    """Outputs `i` of a row, in the type of x."""
    inside = i < num_outputs
    gate_I = tl.load(x + row * 2 * num_outputs + i, mask=inside, other=0.0).to(tl.float32)
    up_I = tl.load(x + row * 2 * num_outputs + num_outputs + i, mask=inside, other=0.0).to(tl.float32)
    return (gate_I / (1.0 + tl.exp(-gate_I)) * up_I).to(x.dtype.element_ty)


@triton.jit
def _silu_and_mul(x, y, num_outputs, BLOCK_I: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    tl.store(y + row * num_outputs + i, _gated(x, row, i, num_outputs), mask=i < num_outputs)


@triton.jit
def _silu_and_mul_to_fp8(
    x, numbers, scales, num_outputs, MAX: tl.constexpr, TINY: tl.constexpr, BLOCK_I: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    highest_I = tl.zeros([BLOCK_I], tl.float32)
    for first in range(0, num_outputs, BLOCK_I):
        y_I = _gated(x, row, first + tl.arange(0, BLOCK_I), num_outputs).to(tl.float32)
        highest_I = tl.maximum(highest_I, tl.abs(y_I))
    scale = row_scale(highest_I, MAX, TINY)
    tl.store(scales + row, scale)
    # The row lies in the cache by now, and computing it again is cheaper than keeping it.
    for first in range(0, num_outputs, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        y_I = fp8_numbers(_gated(x, row, i, num_outputs).to(tl.float32), scale, MAX)
        tl.store(numbers + row * num_outputs + i, y_I.to(numbers.dtype.element_ty), mask=i < num_outputs)


def silu_and_mul(x_T2I: torch.Tensor) -> torch.Tensor:
    x_T2I = x_T2I.contiguous()
    T, num_outputs = x_T2I.shape[0], x_T2I.shape[1] // 2
    y_TI = x_T2I.new_empty(T, num_outputs)
    if T == 0:
        return y_TI
    tuned = tuning()
    grid = (triton.cdiv(num_outputs, tuned.activation_block), T)
    _silu_and_mul[grid](x_T2I, y_TI, num_outputs, BLOCK_I=tuned.activation_block, **tuned.elementwise)
    return y_TI


def silu_and_mul_to_fp8(x_T2I: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers [T, I] and scales [T, 1]."""
    T, num_outputs = x_T2I.shape[0], x_T2I.shape[1] // 2
    return launch_to_fp8(_silu_and_mul_to_fp8, x_T2I.contiguous(), T, num_outputs, dtype)
