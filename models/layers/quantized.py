"""Weights of linear layers in a quantised format, from the checkpoint to the product.

A rank's part of a quantised weight is always a part of the whole weight's numbers, so ranks together hold what one
rank alone would: scales go by output, or by 32 inputs that no split may cut.

Legend: O outputs and I inputs of this rank, G groups of 32 inputs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from ...kernels import ops, quantized
from ...kernels.reference import fp8, mxfp4
from ..errors import ConfigError
from ..quantization.formats import WeightFormat
from ..weights.slots import Slot

# Rows are rounded in chunks, as float32, so that a large tensor needs no large copy of itself.
_CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True)
class Share:
    """What a rank takes of one checkpoint matrix, and where it lies among the rank's outputs.

    Attributes:
        shape: outputs and inputs of the whole.
        outputs, inputs: what is taken.
        rows: of the rank's weight, as many as `outputs`.
    """

    name: str
    shape: tuple[int, int]
    outputs: slice
    inputs: slice
    rows: slice


class QuantizedWeight(Protocol):
    """A weight [O, I] that is being loaded."""

    def slots(self, share: Share) -> Iterator[Slot]: ...

    def pack(self) -> ops.PackedWeight:
        """Called once, when it is loaded, instead of using it further."""
        ...


def quantized_weight(
    format: WeightFormat,
    num_outputs: int,
    num_inputs: int,
    asked_by: str,
    *,
    first_outputs: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> QuantizedWeight:
    """`dtype` is that of the inputs; `first_outputs` are those of the parts that come one by one; `asked_by` says
    in errors why the checkpoint must hold what is missing."""
    if format.scheme == "fp8":
        return Fp8Weight(format.is_stored, num_outputs, num_inputs, asked_by, first_outputs, device)
    return Mxfp4Weight(format, num_outputs, num_inputs, asked_by, dtype, device)


class Fp8Weight:
    """e4m3 with a scale per output; one scale for a whole tensor becomes that of each of its outputs. Packed while
    it is loaded, where that can be."""

    def __init__(
        self,
        is_stored: bool,
        num_outputs: int,
        num_inputs: int,
        asked_by: str,
        first_outputs: Sequence[int],
        device: torch.device,
    ) -> None:
        self._is_stored = is_stored
        self._asked_by = asked_by
        self._panels = quantized.empty_fp8(num_outputs, num_inputs, first_outputs, device)
        rows = num_outputs if self._panels is None else 0
        self._weight_OI = torch.zeros(rows, num_inputs, dtype=torch.float8_e4m3fn, device=device)
        self._scale_O = torch.ones(rows, device=device) if self._panels is None else self._panels.scale_O

    def slots(self, share: Share) -> Iterator[Slot]:
        start, stop = share.outputs.start, share.outputs.stop
        name, asked_by = f"{share.name}.weight", self._asked_by
        memory = None if self._panels is None else self._panels.packed
        if not self._is_stored:
            # An output's scale comes from all of its inputs, so all of them are read.
            yield Slot(name, share.shape, partial(self._round, share), 0, start, stop, memory=memory)
            return
        is_split = share.inputs != slice(0, share.shape[1])
        dim, taken = (1, share.inputs) if is_split else (0, share.outputs)
        yield Slot(
            name,
            share.shape,
            partial(self._put, share.rows.start),
            dim,
            taken.start,
            taken.stop,
            ("F8_E4M3",),
            asked_by=asked_by,
            memory=memory,
        )
        yield Slot(
            f"{share.name}.weight_scale",
            share.shape[:1],
            self._scale_O[share.rows].copy_,
            0,
            start,
            stop,
            may_be_scalar=True,
            asked_by=asked_by,
        )

    def pack(self) -> ops.PackedWeight:
        if self._panels is not None:
            return quantized.PanelFp8(self._panels)
        return quantized.pack_fp8(self._weight_OI, self._scale_O)

    def _put(self, first: int, numbers_OI: torch.Tensor) -> None:
        if self._panels is not None:
            self._panels.put(first, numbers_OI)
        else:
            self._weight_OI[first : first + len(numbers_OI)] = numbers_OI

    def _round(self, share: Share, x_OI: torch.Tensor) -> None:
        rows = max(1, _CHUNK_ELEMENTS // x_OI.shape[1] // ops.PANEL) * ops.PANEL
        for start in range(0, len(x_OI), rows):
            some = x_OI[start : start + rows].to(self._scale_O.device)
            # GPU kernels are for the type that the GPU computes with, which may be another one.
            quantize = ops.quantize_rows if some.device.type == "cpu" else fp8.quantize_rows
            numbers, scale = quantize(some, torch.float8_e4m3fn)[:2]
            first = share.rows.start + start
            self._put(first, numbers[:, share.inputs])
            self._scale_O[first : first + len(some)] = scale[:, 0]


class Mxfp4Weight:
    """e2m1 with a power of two per 32 inputs."""

    def __init__(
        self,
        format: WeightFormat,
        num_outputs: int,
        num_inputs: int,
        asked_by: str,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._format = format
        self._asked_by = asked_by
        self._dtype = dtype
        self._codes = torch.zeros(num_outputs, num_inputs // 2, dtype=torch.uint8, device=device)
        self._scale_OG = torch.zeros(num_outputs, num_inputs // mxfp4.GROUP, dtype=torch.uint8, device=device)

    def slots(self, share: Share) -> Iterator[Slot]:
        num_outputs, num_inputs = share.shape
        _check_groups(share)
        is_split = share.inputs != slice(0, num_inputs)
        dim, taken = (1, share.inputs) if is_split else (0, share.outputs)
        name = f"{share.name}.weight"
        if not self._format.is_stored:
            yield Slot(name, share.shape, lambda x_OI: self._round(x_OI, share), dim, taken.start, taken.stop)
            return
        for suffix, parameter, inputs_each, dtypes in (
            ("", self._codes, 2, ("U8",)),
            ("_scale", self._scale_OG, mxfp4.GROUP, ("U8", "F8_E8M0")),
        ):
            shape = (num_outputs, num_inputs // inputs_each)
            first = taken.start // inputs_each if is_split else taken.start
            destination = parameter[share.rows]
            stop = first + destination.shape[dim]
            yield Slot(
                name + suffix, shape, _copy_bytes_to(destination), dim, first, stop, dtypes, asked_by=self._asked_by
            )

    def pack(self) -> ops.PackedWeight:
        may_round_inputs = self._format.may_round_inputs
        return quantized.pack_mxfp4(self._codes, self._scale_OG, self._dtype, may_round_inputs=may_round_inputs)

    def _round(self, x_OI: torch.Tensor, share: Share) -> None:
        codes, scale_OG = self._codes[share.rows], self._scale_OG[share.rows]
        rows = max(1, _CHUNK_ELEMENTS // x_OI.shape[1])
        for start in range(0, len(x_OI), rows):
            some = slice(start, start + rows)
            codes[some], scale_OG[some] = mxfp4.quantize(x_OI[some].to(codes.device))


def _check_groups(share: Share) -> None:
    num_inputs, taken = share.shape[1], share.inputs.stop - share.inputs.start
    if num_inputs % mxfp4.GROUP:
        raise ConfigError(
            "quantization",
            "mxfp4",
            f"{share.name} has {num_inputs} inputs, MXFP4 needs whole groups of {mxfp4.GROUP}",
        )
    if taken % mxfp4.GROUP:
        groups = num_inputs // mxfp4.GROUP
        right = [tp for tp in range(1, groups + 1) if groups % tp == 0]
        raise ConfigError(
            "tp",
            num_inputs // taken,
            f"{share.name} has {groups} groups of {mxfp4.GROUP} inputs with a scale each, for {right} ranks",
        )


def _copy_bytes_to(destination: torch.Tensor) -> Callable[[torch.Tensor], object]:
    return lambda source: destination.copy_(source.view(torch.uint8))
