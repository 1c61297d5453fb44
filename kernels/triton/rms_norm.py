"""Root mean square layer norm (Zhang and Sennrich 2019), one program per row. Legend: T tokens, D hidden size."""

# pyright: reportMissingParameterType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# A kernel is Python in form only: the launch decides what its parameters are.

import torch
import triton
import triton.language as tl

from .tuning import tuning


@triton.jit
def _rms_norm(x, residual, weight, y, D, eps, HAS_RESIDUAL: tl.constexpr, BLOCK_D: tl.constexpr):
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
    tl.store(y + row + d, (x_D * inverse * weight_D).to(y.dtype.element_ty), mask=inside)


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    return _launch(x_TD, None, weight_D, eps)


def add_rms_norm(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return _launch(x_TD, residual_TD, weight_D, eps), residual_TD


def _launch(
    x_TD: torch.Tensor, residual_TD: torch.Tensor | None, weight_D: torch.Tensor, eps: float
) -> torch.Tensor:
    x_TD = x_TD.contiguous()
    T, D = x_TD.shape
    y_TD = torch.empty_like(x_TD)
    if T == 0:
        return y_TD
    if residual_TD is not None:
        assert residual_TD.is_contiguous()
    _rms_norm[(T,)](
        x_TD,
        residual_TD,
        weight_D,
        y_TD,
        D,
        eps,
        HAS_RESIDUAL=residual_TD is not None,
        BLOCK_D=triton.next_power_of_2(D),
        **tuning().norm,
    )
    return y_TD
