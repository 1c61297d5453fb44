"""FP8 numbers with a scale per row, one program per row. Legend: R rows, I inputs."""

# pyright: reportMissingParameterType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# A kernel is Python in form only: the launch decides what its parameters are.

import torch
import triton
import triton.language as tl

from ..reference import fp8
from .tuning import tuning

SMALLEST_SCALE = torch.finfo(torch.float32).tiny


@triton.jit
def row_scale(highest_I, MAX: tl.constexpr, TINY: tl.constexpr):
    """Of a row whose absolute values are at most these."""
    return tl.maximum(tl.math.div_rn(tl.max(highest_I, 0), tl.full([], MAX, tl.float32)), TINY)


@triton.jit
def fp8_numbers(x_I, scale, MAX: tl.constexpr):
    """Still in float32, within the type's range."""
    scale_I = tl.full(x_I.shape, scale, tl.float32)
    return tl.minimum(tl.maximum(tl.math.div_rn(x_I, scale_I), -MAX), MAX)


@triton.jit
def _quantize_rows(x, numbers, scales, num_inputs, MAX: tl.constexpr, TINY: tl.constexpr, BLOCK_I: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = row * num_inputs
    highest_I = tl.zeros([BLOCK_I], tl.float32)
    for first in range(0, num_inputs, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        x_I = tl.load(x + start + i, mask=i < num_inputs, other=0.0).to(tl.float32)
        highest_I = tl.maximum(highest_I, tl.abs(x_I))
    scale = row_scale(highest_I, MAX, TINY)
    tl.store(scales + row, scale)
    # The row lies in the cache by now.
    for first in range(0, num_inputs, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        x_I = tl.load(x + start + i, mask=i < num_inputs, other=0.0).to(tl.float32)
        y_I = fp8_numbers(x_I, scale, MAX)
        tl.store(numbers + start + i, y_I.to(numbers.dtype.element_ty), mask=i < num_inputs)


def empty_fp8_rows(
    num_rows: int, num_inputs: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    numbers_RI = torch.empty(num_rows, num_inputs, dtype=dtype, device=device)
    return numbers_RI, torch.empty(num_rows, 1, dtype=torch.float32, device=device)


def launch_to_fp8(
    kernel, x: torch.Tensor, num_rows: int, num_inputs: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a kernel with the parameters of `_quantize_rows` on contiguous x: numbers [R, I] and scales [R, 1]."""
    numbers_RI, scale_R1 = empty_fp8_rows(num_rows, num_inputs, dtype, x.device)
    if num_rows > 0:
        tuned = tuning()
        kernel[(num_rows,)](
            x,
            numbers_RI,
            scale_R1,
            num_inputs,
            MAX=fp8.largest(dtype),
            TINY=SMALLEST_SCALE,
            BLOCK_I=min(tuned.row_block, triton.next_power_of_2(num_inputs)),
            **tuned.norm,
        )
    return numbers_RI, scale_R1


def quantize_rows(x_RI: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return launch_to_fp8(_quantize_rows, x_RI.contiguous(), *x_RI.shape, dtype)
