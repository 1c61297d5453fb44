"""Root mean square norm. Legend: T tokens, D hidden size."""

from collections.abc import Iterator

import torch

from ...kernels import ops
from ..weights.slots import Slot
from .linear import Linear


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

    def add_before(
        self, linear: Linear, x_TD: torch.Tensor, residual_TD: torch.Tensor | None
    ) -> tuple[ops.Rows, torch.Tensor]:
        """(norm, sum) as `add` gives them, or of x alone; the norm in the form that this layer prefers."""
        fp8 = linear.input_fp8
        if residual_TD is None:
            if fp8 is None:
                return self(x_TD), x_TD
            return ops.rms_norm_to_fp8(x_TD, self.weight_D, self._eps, fp8), x_TD
        if fp8 is None:
            return self.add(x_TD, residual_TD)
        return ops.add_rms_norm_to_fp8(x_TD, residual_TD, self.weight_D, self._eps, fp8)

    def slots(self) -> Iterator[Slot]:
        yield Slot.copy(f"{self._name}.weight", tuple(self.weight_D.shape), self.weight_D)
