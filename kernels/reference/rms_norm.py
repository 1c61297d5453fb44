"""Root mean square layer norm (Zhang and Sennrich 2019). Legend: T tokens, D hidden size."""

import torch
import torch.nn.functional as F


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x_TD, weight_D.shape, weight_D, eps)


def add_rms_norm(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    residual_TD = residual_TD.add_(x_TD)
    return F.rms_norm(residual_TD, weight_D.shape, weight_D, eps), residual_TD
