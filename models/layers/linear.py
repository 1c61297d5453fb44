"""Linear layers, whole or split over the ranks; matrices that read the same input are merged into one.

Legend: T tokens, I inputs, O outputs of this rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F

from ...kernels import ops
from ..errors import CheckpointError
from ..parallel import TpGroup
from ..quantization.formats import UNQUANTIZED, Quantization, WeightFormat
from ..weights.slots import Slot
from .quantized import QuantizedWeight, Share, quantized_weight


class Linear:
    """x @ weight.T + bias on this rank.

    A weight that is quantised has no `weight_OI`, nor has one that is packed while it is loaded: `first_outputs`
    says where its parts begin, None that it comes otherwise.
    """

    _is_gated = False

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        format: WeightFormat | None = None,
        asked_by: str = "",
        first_outputs: Sequence[int] | None = None,
    ) -> None:
        self.weight_OI = torch.empty(0)
        self.bias_O = torch.zeros(num_outputs, dtype=dtype, device=device) if bias else None
        self._packed: ops.PackedWeight | None = None
        self._quantized: QuantizedWeight | None = None
        self._filling: ops.PanelLinear | ops.GatedPanels | None = None
        if format is None:
            if self._is_gated and not bias:
                self._filling = ops.empty_gated_panels(num_outputs, num_inputs, dtype, device)
            elif first_outputs is not None:
                self._filling = ops.empty_packed_weight(num_outputs, num_inputs, first_outputs, dtype, device)
            if self._filling is None:
                self.weight_OI = torch.zeros(num_outputs, num_inputs, dtype=dtype, device=device)
        else:
            self._quantized = quantized_weight(
                format,
                num_outputs,
                num_inputs,
                asked_by,
                first_outputs=first_outputs or (),
                dtype=dtype,
                device=device,
            )

    @property
    def input_fp8(self) -> torch.dtype | None:
        """The FP8 type in which the op before may bring the inputs; known once weights are packed."""
        return self._packed.input_fp8 if self._packed is not None else None

    @property
    def panels(self) -> ops.PanelLinear | None:
        """The packed weight, where it is packed so."""
        return self._packed if isinstance(self._packed, ops.PanelLinear) else None

    def __call__(self, x_TI: ops.Rows) -> torch.Tensor:
        if self._packed is not None:
            return self._packed(x_TI, self.bias_O)
        assert isinstance(x_TI, torch.Tensor)
        return F.linear(x_TI, self.weight_OI, self.bias_O)

    def pack(self) -> None:
        """Called once, when the weights are loaded: turns them into the form that computes fastest."""
        if self._quantized is not None:
            self._packed, self._quantized = self._quantized.pack(), None
            return
        if isinstance(self._filling, ops.PanelLinear):
            self._packed, self._filling = self._filling, None
            return
        self._packed = ops.pack_weight(self.weight_OI)
        if self._packed is not None:
            self.weight_OI = torch.empty(0)

    def _weight_slots(self, share: Share) -> Iterator[Slot]:
        if self._quantized is not None:
            yield from self._quantized.slots(share)
            return
        is_split = share.inputs != slice(0, share.shape[1])
        dim, start = (1, share.inputs.start) if is_split else (0, share.outputs.start)
        name = f"{share.name}.weight"
        if self._filling is None:
            yield Slot.copy(name, share.shape, self.weight_OI[share.rows], dim, start)
            return
        taken = share.inputs if is_split else share.outputs
        put, memory = partial(self._filling.put, share.rows.start), self._filling.packed
        yield Slot(name, share.shape, put, dim, start, taken.stop, memory=memory)


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
        self,
        num_inputs: int,
        parts: Sequence[Part],
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        quantization: Quantization = UNQUANTIZED,
    ) -> None:
        super().__init__(
            num_inputs,
            sum(p.stop - p.start for p in parts),
            bias=bias,
            dtype=dtype,
            device=device,
            format=_common_format(quantization, parts),
            asked_by=quantization.origin,
            first_outputs=list(accumulate((p.stop - p.start for p in parts[:-1]), initial=0)),
        )
        self._num_inputs = num_inputs
        self._parts = parts

    def slots(self) -> Iterator[Slot]:
        row = 0
        for part in self._parts:
            rows = slice(row, row + part.stop - part.start)
            row = rows.stop
            shape = (part.total, self._num_inputs)
            yield from self._weight_slots(
                Share(part.name, shape, slice(part.start, part.stop), slice(0, self._num_inputs), rows)
            )
            if self.bias_O is not None:
                yield Slot.copy(f"{part.name}.bias", shape[:1], self.bias_O[rows], start=part.start)


class GatedLinear(ColumnLinear):
    """Of a gate and what it gates, the two `parts`; to be called by `gated`."""

    _is_gated = True
    _gated: ops.GatedPanels | None = None

    @property
    def gated_panels(self) -> ops.GatedPanels | None:
        """Both weights, where they share panels."""
        return self._gated

    def gated(self, x_TI: ops.Rows, fp8: torch.dtype | None) -> ops.Rows:
        """silu(gate(x)) * gated(x); `fp8` is the type in which the product behind this takes its inputs."""
        if self._gated is None:
            x_T2O = self(x_TI)
            return ops.silu_and_mul(x_T2O) if fp8 is None else ops.silu_and_mul_to_fp8(x_T2O, fp8)
        assert isinstance(x_TI, torch.Tensor)
        y_TO = self._gated(x_TI)
        return y_TO if fp8 is None else ops.quantize_rows(y_TO, fp8)

    def pack(self) -> None:
        if isinstance(self._filling, ops.GatedPanels):
            self._gated, self._filling = self._filling, None
        else:
            super().pack()


def _common_format(quantization: Quantization, parts: Sequence[Part]) -> WeightFormat | None:
    """Of matrices that are merged into one."""
    first, *others = parts
    format = quantization.format_of(first.name)
    for other in others:
        if quantization.format_of(other.name) != format:
            raise CheckpointError(
                f"{quantization.origin}: {first.name} and {other.name} are one product, so either both are left out"
                f" or both have the same format"
            )
    return format


class RowLinear(Linear):
    """Inputs split over the ranks; the outputs are summed over them.

    With FP8 each rank rounds its own part of a token's inputs, with a scale of its own: TP n rounds no coarser than
    TP 1, but not to the same numbers.
    """

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
        quantization: Quantization = UNQUANTIZED,
    ) -> None:
        # The sum over ranks must hold the bias once.
        super().__init__(
            num_inputs // tp.size,
            num_outputs,
            bias=bias and tp.rank == 0,
            dtype=dtype,
            device=device,
            format=quantization.format_of(name),
            asked_by=quantization.origin,
            first_outputs=[0],
        )
        self._name = name
        self._shape = (num_outputs, num_inputs)
        self._tp = tp

    def __call__(self, x_TI: ops.Rows) -> torch.Tensor:
        return self._tp.all_reduce(super().__call__(x_TI))

    def slots(self) -> Iterator[Slot]:
        num_outputs, num_inputs = self._shape
        size = num_inputs // self._tp.size
        start = self._tp.rank * size
        outputs = slice(0, num_outputs)
        yield from self._weight_slots(Share(self._name, self._shape, outputs, slice(start, start + size), outputs))
        if self.bias_O is not None:
            yield Slot.copy(f"{self._name}.bias", (num_outputs,), self.bias_O)
