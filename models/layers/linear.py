"""Linear layers, whole or split over the ranks; matrices that read the same input are merged into one.

Legend: T tokens, I inputs, O outputs of this rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...kernels import ops
from ..parallel import TpGroup
from ..weights.slots import Slot


class Linear:
    """x @ weight.T + bias on this rank."""

    def __init__(
        self, num_inputs: int, num_outputs: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.weight_OI = torch.zeros(num_outputs, num_inputs, dtype=dtype, device=device)
        self.bias_O = torch.zeros(num_outputs, dtype=dtype, device=device) if bias else None
        self._packed: ops.PackedWeight | None = None

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        if self._packed is not None:
            return self._packed(x_TI, self.bias_O)
        return F.linear(x_TI, self.weight_OI, self.bias_O)

    def pack(self) -> None:
        """Called once, when the weights are loaded: turns them into the form that computes fastest."""
        self._packed = ops.pack_weight(self.weight_OI)
        if self._packed is not None:
            self.weight_OI = torch.empty(0)


@dataclass(frozen=True, slots=True)
class Part:
    """One checkpoint matrix of a merged layer: of its `total` outputs this rank takes [start, stop)."""

    name: str
    total: int
    start: int
    stop: int


class ColumnLinear(Linear):
    """Outputs split over the ranks; `parts` lie one after the other in the output."""

    def __init__(
        self, num_inputs: int, parts: Sequence[Part], *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(num_inputs, sum(p.stop - p.start for p in parts), bias=bias, dtype=dtype, device=device)
        self._parts = parts

    def slots(self) -> Iterator[Slot]:
        row = 0
        num_inputs = self.weight_OI.shape[1]
        for part in self._parts:
            rows = slice(row, row + part.stop - part.start)
            row = rows.stop
            shape = (part.total, num_inputs)
            yield Slot(f"{part.name}.weight", shape, self.weight_OI[rows], start=part.start)
            if self.bias_O is not None:
                yield Slot(f"{part.name}.bias", shape[:1], self.bias_O[rows], start=part.start)


class RowLinear(Linear):
    """Inputs split over the ranks; the outputs are summed over them."""

    def __init__(
        self,
        name: str,
        num_inputs: int,
        num_outputs: int,
        tp: TpGroup,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # The sum over ranks must hold the bias once.
        super().__init__(num_inputs // tp.size, num_outputs, bias=bias and tp.rank == 0, dtype=dtype, device=device)
        self._name = name
        self._total_inputs = num_inputs
        self._tp = tp

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        return self._tp.all_reduce(super().__call__(x_TI))

    def slots(self) -> Iterator[Slot]:
        num_outputs, num_inputs = self.weight_OI.shape
        start = self._tp.rank * num_inputs
        yield Slot(f"{self._name}.weight", (num_outputs, self._total_inputs), self.weight_OI, dim=1, start=start)
        if self.bias_O is not None:
            yield Slot(f"{self._name}.bias", (num_outputs,), self.bias_O)
