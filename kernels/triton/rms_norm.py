"""Root mean square layer norm (Zhang and Sennrich 2019), one program per row, which may give FP8 numbers.

Legend: T tokens, D hidden size.
"""

# pyright: reportMissingParameterType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# A kernel is Python in form only: the launch decides what its parameters are.

import torch
import triton
import triton.language as tl

from ..reference import fp8
from .quantize_rows import SMALLEST_SCALE, empty_fp8_rows, fp8_numbers, row_scale
from .tuning import tuning


@triton.jit
def _rms_norm(
    x,
    residual,
    weight,
    y,
    scales,
    D,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    TO_FP8: tl.constexpr,
    MAX: tl.constexpr,
    TINY: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * D
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    x_D = tl.load(x + row + d, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x_D += tl.load(residual + row + d, mask=inside, other=0.0).to(tl.float32)
        stored_D = x_D.to(residual.dtype.element_ty)
        tl.store(residual + row + d, stored_D, mask=inside)
        x_D = stored_D.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x_D * x_D, 0) / D + eps)
    weight_D = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    y_D = (x_D * inverse * weight_D).to(x.dtype.element_ty)
    if TO_FP8:
        y_D = y_D.to(tl.float32)
        scale = row_scale(tl.abs(y_D), MAX, TINY)
        tl.store(scales + tl.program_id(0), scale)
        y_D = fp8_numbers(y_D, scale, MAX)
    tl.store(y + row + d, y_D.to(y.dtype.element_ty), mask=inside)


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    y_TD = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
    _launch(x_TD, None, weight_D, eps, y_TD)
    return y_TD


def add_rms_norm(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    y_TD = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
    _launch(x_TD, residual_TD, weight_D, eps, y_TD)
    return y_TD, residual_TD


def rms_norm_to_fp8(
    x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers [T, D] and scales [T, 1]."""
    numbers_TD, scale_T1 = empty_fp8_rows(*x_TD.shape, dtype, x_TD.device)
    _launch(x_TD, None, weight_D, eps, numbers_TD, scale_T1)
    return numbers_TD, scale_T1


def add_rms_norm_to_fp8(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, of x + residual, which then stands in the residual."""
    numbers_TD, scale_T1 = empty_fp8_rows(*x_TD.shape, dtype, x_TD.device)
    _launch(x_TD, residual_TD, weight_D, eps, numbers_TD, scale_T1)
    return numbers_TD, scale_T1


def _launch(
    x_TD: torch.Tensor,
    residual_TD: torch.Tensor | None,
    weight_D: torch.Tensor,
    eps: float,
    y_TD: torch.Tensor,
    scale_T1: torch.Tensor | None = None,
) -> None:
    """Writes to `y_TD`; with scales, which it writes too, these are FP8 numbers."""
    x_TD = x_TD.contiguous()
    T, D = x_TD.shape
    if T == 0:
        return
    if residual_TD is not None:
        assert residual_TD.is_contiguous()
    _rms_norm[(T,)](
        x_TD,
        residual_TD,
        weight_D,
        y_TD,
        scale_T1,
        D,
        eps,
        HAS_RESIDUAL=residual_TD is not None,
        TO_FP8=scale_T1 is not None,
        MAX=fp8.largest(y_TD.dtype) if scale_T1 is not None else 0.0,
        TINY=SMALLEST_SCALE,
        BLOCK_D=triton.next_power_of_2(D),
        **tuning().norm,
    )
