"""FP8 numbers (e4m3, Micikevicius et al. 2022) with a float32 scale per row, and products of them.

    value = number * scale          number: at most 448 in `float8_e4m3fn`, the OCP type, 224 in `float8_e4m3fnuz`

Legend: R rows, T tokens, I inputs, O outputs.
"""

from functools import cache

import torch

from ..fp8_rows import Fp8Rows

# gfx942's type reaches 240; rounding up to there has cost accuracy where scales come from the largest input.
_LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 224.0}
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
_CHUNK_ELEMENTS = 1 << 22


def largest(dtype: torch.dtype) -> float:
    """What the largest number of a row becomes."""
    return _LARGEST[dtype]


def quantize_rows(x_RI: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(numbers [R, I] in `dtype`, scale float32 [R, 1]): each row's largest becomes the type's largest."""
    x_RI = x_RI.float()
    scale_R1 = (x_RI.abs().amax(-1, keepdim=True) / largest(dtype)).clamp_(min=_SMALLEST_SCALE)
    return encode(x_RI / scale_R1, dtype), scale_R1


def encode(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The nearest numbers of `dtype`; beyond its largest, the largest."""
    return x.clamp(-largest(dtype), largest(dtype)).to(dtype)


def decode(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same numbers in `dtype`, exactly. On CPU by a table, which takes an eighth of the cast's time."""
    if numbers.device.type != "cpu":
        return numbers.to(dtype)
    codes = numbers.contiguous().view(torch.uint8).reshape(-1).int()
    return _table(numbers.dtype, dtype).index_select(0, codes).view(numbers.shape)


@cache
def _table(dtype: torch.dtype, wide: torch.dtype) -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(dtype).to(wide)


def to_fnuz(numbers: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same values for gfx942, whose type reads the same bits as half the number and has no negative zero."""
    codes = numbers.view(torch.uint8)
    return codes.masked_fill(codes == 0x80, 0).view(torch.float8_e4m3fnuz), scale * 2


def fp8_linear(
    x_TI: Fp8Rows, weight_OI: torch.Tensor, scale_O: torch.Tensor, bias_O: torch.Tensor | None
) -> torch.Tensor:
    """x @ (weight * scale).T + bias, in the type that x had.

    Products of FP8 numbers are whole multiples of 2**-20 and their sums stay under 2**33, so float64 adds them
    exactly, in whatever order: a token's result depends neither on the batch nor on the number of threads.
    """
    numbers_TI = decode(x_TI.numbers_RI, torch.float64)
    rows = max(1, _CHUNK_ELEMENTS // weight_OI.shape[1])
    sums_TO = torch.cat([numbers_TI @ decode(some, torch.float64).T for some in weight_OI.split(rows)], dim=1)
    y_TO = sums_TO.float() * x_TI.scale_R1 * scale_O
    return (y_TO if bias_O is None else y_TO + bias_O).to(x_TI.dtype)
