"""FP8 numbers with a scale per row, one program per row. Legend: R rows, I inputs."""

# pyright: reportMissingParameterType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# A kernel is Python in form only: the launch decides what its parameters are.

import torch
import triton
import triton.language as tl

from ..reference import fp8
from .tuning import tuning

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


@triton.jit
def _quantize_rows(x, numbers, scales, num_inputs, MAX: tl.constexpr, TINY: tl.constexpr, BLOCK_I: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = row * num_inputs
    highest_I = tl.zeros([BLOCK_I], tl.float32)
    for first in range(0, num_inputs, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        x_I = tl.load(x + start + i, mask=i < num_inputs, other=0.0).to(tl.float32)
        highest_I = tl.maximum(highest_I, tl.abs(x_I))
    scale = tl.maximum(tl.math.div_rn(tl.max(highest_I, 0), tl.full([], MAX, tl.float32)), TINY)
    tl.store(scales + row, scale)
    scale_I = tl.full([BLOCK_I], scale, tl.float32)
    # The row lies in the cache by now.
    for first in range(0, num_inputs, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        x_I = tl.load(x + start + i, mask=i < num_inputs, other=0.0).to(tl.float32)
        y_I = tl.minimum(tl.maximum(tl.math.div_rn(x_I, scale_I), -MAX), MAX)
        tl.store(numbers + start + i, y_I.to(numbers.dtype.element_ty), mask=i < num_inputs)


def quantize_rows(x_RI: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x_RI = x_RI.contiguous()
    R, num_inputs = x_RI.shape
    numbers_RI = torch.empty_like(x_RI, dtype=dtype)
    scale_R1 = torch.empty(R, 1, dtype=torch.float32, device=x_RI.device)
    if R > 0:
        tuned = tuning()
        _quantize_rows[(R,)](
            x_RI,
            numbers_RI,
            scale_R1,
            num_inputs,
            MAX=fp8.largest(dtype),
            TINY=_SMALLEST_SCALE,
            BLOCK_I=min(tuned.row_block, triton.next_power_of_2(num_inputs)),
            **tuned.norm,
        )
    return numbers_RI, scale_R1
