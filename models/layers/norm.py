"""Root mean square norm. Legend: T tokens, D hidden size."""

from collections.abc import Iterator

import torch

from ...kernels import ops
from ..weights.slots import Slot


class RmsNorm:
    """Alone, or after adding to the residual."""

    def __init__(self, name: str, size: int, eps: float, *, dtype: torch.dtype, device: torch.device) -> None:
        self.weight_D = torch.zeros(size, dtype=dtype, device=device)
        self._name = name
        self._eps = eps

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(x_TD, self.weight_D, self._eps)

    def add(self, x_TD: torch.Tensor, residual_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of x + residual, x + residual); the residual is overwritten."""
        return ops.add_rms_norm(x_TD, residual_TD, self.weight_D, self._eps)

    def slots(self) -> Iterator[Slot]:
        yield Slot.copy(f"{self._name}.weight", tuple(self.weight_D.shape), self.weight_D)
