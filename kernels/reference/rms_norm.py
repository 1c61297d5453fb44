"""Root mean square layer norm (Zhang and Sennrich 2019). Legend: T tokens, D hidden size."""

import torch


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    x32_TD = x_TD.float()
    scale_T1 = torch.rsqrt(x32_TD.square().mean(-1, keepdim=True) + eps)
    return (x32_TD * scale_T1).to(x_TD.dtype) * weight_D


def add_rms_norm(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    residual_TD = residual_TD + x_TD
    return rms_norm(residual_TD, weight_D, eps), residual_TD
