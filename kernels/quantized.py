"""Products with quantised weights: here is the choice among implementations, as `kernels/ops.py` has it for others.

|                        | FP8                                          | MXFP4                                   |
|------------------------|----------------------------------------------|-----------------------------------------|
| gfx950                 | `torch._scaled_mm`, a scale per row          | unpacked for each product; as it is     |
|                        |                                              | where inputs are to be MXFP4 too        |
| gfx942, Hopper         | the same                                     | unpacked for each product               |
| CPU with AVX-512       | a byte each, which the product widens to     | unpacked once                           |
|  (BF16 and VBMI)       | bfloat16, exactly                            |                                         |
| others                 | the reference                                | CPU: unpacked once; GPU: as above       |

A CPU therefore saves no memory and no time by MXFP4: it is there to compute what accelerators compute.

Legend: T tokens, I inputs, O outputs, G groups of 32 inputs.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch.nn.functional import ScalingType, SwizzleType

from .avx512.fp8_linear import Fp8Panels as Fp8Panels
from .avx512.linear import PANEL
from .ops import Fp8Rows, PackedWeight, Rows, pack_weight, quantize_rows
from .reference import fp8, mxfp4

Mxfp4Product = Callable[..., torch.Tensor]
"""`torch.nn.functional.scaled_mm`."""

_log = logging.getLogger(__name__)
_TILE = 16


def fp8_dtype(device: torch.device) -> torch.dtype:
    """The e4m3 type that this device computes with."""
    return torch.float8_e4m3fnuz if _architecture(device).startswith("gfx942") else torch.float8_e4m3fn


def pack_fp8(weight_OI: torch.Tensor, scale_O: torch.Tensor) -> PackedWeight:
    """`weight_OI` e4m3 of OCP, `scale_O` float32. Neither is used afterwards."""
    if ScaledProduct.takes(weight_OI):
        return ScaledProduct(weight_OI, scale_O)
    if Fp8Panels.takes(weight_OI.device):
        return PanelFp8.of(weight_OI, scale_O)
    return ReferenceFp8(weight_OI, scale_O)


def empty_fp8(num_outputs: int, num_inputs: int, firsts: Sequence[int], device: torch.device) -> Fp8Panels | None:
    """What `PanelFp8` takes, to be filled part by part, from outputs `firsts` on; None where `pack_fp8` must do."""
    if any(first % PANEL for first in firsts) or not Fp8Panels.takes(device):
        return None
    return Fp8Panels(num_outputs, num_inputs)


def pack_mxfp4(
    codes: torch.Tensor, scale_OG: torch.Tensor, dtype: torch.dtype, *, may_round_inputs: bool
) -> PackedWeight:
    """`codes` uint8 [O, I / 2]; inputs and outputs are in `dtype`. Inputs are rounded only where it pays."""
    if may_round_inputs and ScaledMxfp4.takes(codes):
        return ScaledMxfp4(codes, scale_OG)
    if codes.device.type == "cpu":
        weight_OI = mxfp4.dequantize(codes, scale_OG, dtype)
        return pack_weight(weight_OI) or PlainWeight(weight_OI)
    return UnpackedMxfp4(codes, scale_OG)


class _Product:
    """What all products here have in common (see `ops.PackedWeight`)."""

    reads_rows = False
    input_fp8: torch.dtype | None = None

    def __call__(
        self, x_TI: Rows, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        raise NotImplementedError

    def rows(self, ids_N: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("embeddings are not quantised")


class ScaledProduct(_Product):
    """FP8 on GPUs: inputs get a scale per token, and the product is one call of hipBLASLt or CUTLASS."""

    def __init__(self, weight_OI: torch.Tensor, scale_O: torch.Tensor) -> None:
        if fp8_dtype(weight_OI.device) == torch.float8_e4m3fnuz:
            weight_OI, scale_O = fp8.to_fnuz(weight_OI, scale_O)
        self._weight_IO = weight_OI.t()
        self._scale_1O = scale_O[None, :]
        self.input_fp8 = weight_OI.dtype

    @staticmethod
    def takes(weight_OI: torch.Tensor) -> bool:
        return not any(size % _TILE for size in weight_OI.shape) and _multiplies_fp8(weight_OI.device)

    def __call__(
        self, x_TI: Rows, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        x = as_fp8(x_TI, self._weight_IO.dtype)
        y_TO = torch._scaled_mm(
            x.numbers_RI,
            self._weight_IO,
            scale_a=x.scale_R1,
            scale_b=self._scale_1O,
            out_dtype=torch.bfloat16,  # the only one that scales per row give
            use_fast_accum=torch.version.hip is None,
        ).to(out_dtype or x.dtype)
        return y_TO if bias_O is None else y_TO.add_(bias_O)


class PanelFp8(_Product):
    """FP8 on CPU: the reference's numbers, held as they are and added in float32 by the compiled product, in an
    order of its own."""

    input_fp8 = torch.float8_e4m3fn

    def __init__(self, panels: Fp8Panels) -> None:
        self._panels = panels

    @classmethod
    def of(cls, weight_OI: torch.Tensor, scale_O: torch.Tensor) -> "PanelFp8":
        panels = Fp8Panels(*weight_OI.shape)
        panels.put(0, weight_OI)
        panels.scale_O.copy_(scale_O)
        return cls(panels)

    def __call__(
        self, x_TI: Rows, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        x = as_fp8(x_TI, self._panels.dtype)
        return self._panels.multiply(x, bias_O, out_dtype or x.dtype)


class ReferenceFp8(_Product):
    """FP8 everywhere, slowly."""

    def __init__(self, weight_OI: torch.Tensor, scale_O: torch.Tensor) -> None:
        self._weight_OI, self._scale_O = weight_OI, scale_O
        self.input_fp8 = weight_OI.dtype

    def __call__(
        self, x_TI: Rows, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        x = as_fp8(x_TI, self._weight_OI.dtype)
        return fp8.fp8_linear(x, self._weight_OI, self._scale_O, bias_O).to(out_dtype or x.dtype)


class ScaledMxfp4(_Product):
    """MXFP4 inputs and weights on gfx950, in one product of hipBLASLt."""

    def __init__(self, codes: torch.Tensor, scale_OG: torch.Tensor, multiply: Mxfp4Product = F.scaled_mm) -> None:
        self._weight = codes.view(torch.float4_e2m1fn_x2).t()
        self._scale = scale_OG.view(torch.float8_e8m0fnu)
        self._multiply = multiply

    @staticmethod
    def takes(codes: torch.Tensor) -> bool:
        return len(codes) % mxfp4.GROUP == 0 and _multiplies_mxfp4(codes.device)

    def __call__(
        self, x_TI: Rows, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        assert isinstance(x_TI, torch.Tensor)
        num_tokens = len(x_TI)
        # The product wants whole groups of rows as well.
        codes, scale = mxfp4.quantize(F.pad(x_TI, (0, 0, 0, -num_tokens % mxfp4.GROUP)))
        y_TO = self._multiply(
            codes.view(torch.float4_e2m1fn_x2),
            self._weight,
            scale.view(torch.float8_e8m0fnu),
            ScalingType.BlockWise1x32,
            self._scale,
            ScalingType.BlockWise1x32,
            SwizzleType.NO_SWIZZLE,
            SwizzleType.NO_SWIZZLE,
            output_dtype=torch.bfloat16,
        )[:num_tokens].to(out_dtype or x_TI.dtype)
        return y_TO if bias_O is None else y_TO.add_(bias_O)


class UnpackedMxfp4(_Product):
    """MXFP4 weights at rest; each product unpacks its own to the type of x. Inputs are not quantised."""

    def __init__(self, codes: torch.Tensor, scale_OG: torch.Tensor) -> None:
        self._codes, self._scale_OG = codes, scale_OG

    def __call__(
        self, x_TI: Rows, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        assert isinstance(x_TI, torch.Tensor)
        weight_OI = mxfp4.dequantize(self._codes, self._scale_OG, x_TI.dtype)
        return PlainWeight(weight_OI)(x_TI, bias_O, out_dtype)


class PlainWeight(_Product):
    """A weight as it is."""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        self._weight_OI = weight_OI

    def __call__(
        self, x_TI: Rows, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        assert isinstance(x_TI, torch.Tensor)
        y_TO = F.linear(x_TI, self._weight_OI, bias_O)
        return y_TO if out_dtype is None else y_TO.to(out_dtype)


def as_fp8(x_TI: Rows, dtype: torch.dtype) -> Fp8Rows:
    return x_TI if isinstance(x_TI, Fp8Rows) else quantize_rows(x_TI, dtype)


@cache
def _multiplies_fp8(device: torch.device) -> bool:
    """With scales per row: Hopper and newer, CDNA 3 and newer."""
    if device.type != "cuda":
        return False
    if torch.version.hip is None:
        return torch.cuda.get_device_capability(device) >= (9, 0)
    return _architecture(device).startswith(("gfx942", "gfx950"))


@cache
def _multiplies_mxfp4(device: torch.device) -> bool:
    """Whether torch's product is there and right, which depends on ROCm's version too: tried once."""
    if not _architecture(device).startswith("gfx950"):
        return False
    generator = torch.Generator(device).manual_seed(0)
    x, weight = (torch.randn(32, 64, device=device, generator=generator, dtype=torch.bfloat16) for _ in range(2))
    numbers = [mxfp4.quantize(operand) for operand in (x, weight)]
    exact_x, exact_weight = (mxfp4.dequantize(*operand, torch.float64) for operand in numbers)
    try:
        got = ScaledMxfp4(*numbers[1])(x, None)
    except (RuntimeError, ValueError) as error:
        _log.warning("torch has no MXFP4 product here (%s): weights are unpacked for each product", error)
        return False
    return torch.allclose(got.double(), exact_x @ exact_weight.T, rtol=1e-2, atol=1e-2)


@cache
def _architecture(device: torch.device) -> str:
    """AMD's name; empty for others."""
    if device.type != "cuda" or torch.version.hip is None:
        return ""
    return str(torch.cuda.get_device_properties(device).gcnArchName)
