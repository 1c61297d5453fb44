"""MXFP4 (OCP Microscaling Formats 1.0): e2m1 numbers, each 32 inputs with a power of two as their scale.

    codes  [O, I / 2]  uint8: two numbers, the first in the low half; bit 3 is the sign, then 0 .5 1 1.5 2 3 4 6
    scale  [O, I / 32] uint8: s stands for 2 ** (s - 127)

Legend: O outputs, I inputs, G groups of 32 inputs.
"""

from functools import cache

import torch
import torch.nn.functional as F

GROUP = 32
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NUMBERS = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES)])
# Halfway to the next magnitude; where it is met exactly, the even code wins.
_BORDERS = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
_EXPONENT_BIAS = 127
_LARGEST_EXPONENT = 2  # of the largest number, 6 = 1.5 * 2**2


def quantize(x_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, scale) of finite numbers, I a multiple of 32.

    A group's largest magnitude sets its scale, rounded first as Quark's scale mode `even` does.
    """
    x_OGn = x_OI.float().unflatten(-1, (-1, GROUP))
    exponent_OG = _exponent(x_OGn.abs().amax(-1)) - _LARGEST_EXPONENT
    exponent_OG = exponent_OG.clamp(-_EXPONENT_BIAS, _EXPONENT_BIAS)
    scaled_OGn = x_OGn * _power_of_two(-exponent_OG[..., None])
    codes_OI = _nearest(scaled_OGn).flatten(-2)
    return codes_OI[..., 0::2] | codes_OI[..., 1::2] << 4, (exponent_OG + _EXPONENT_BIAS).to(torch.uint8)


def _exponent(largest: torch.Tensor) -> torch.Tensor:
    """floor(log2), int32, where a mantissa from 1.75 on counts as 2: 7 is nearer to 8 than to 6."""
    bits = largest.view(torch.int32) + (1 << 21)
    return (bits >> 23 & 0xFF) - _EXPONENT_BIAS


def _nearest(x: torch.Tensor) -> torch.Tensor:
    """Codes of the nearest numbers, ties to even codes."""
    borders = _BORDERS.to(x.device)
    magnitude = x.abs()
    # At a border the code below is right if it is even, which is at the first, third, ...
    low, high = torch.bucketize(magnitude, borders), torch.bucketize(magnitude, borders, right=True)
    code = torch.where(low % 2 == 0, low, high)
    return (code + 8 * torch.signbit(x)).to(torch.uint8)


def dequantize(codes_OI: torch.Tensor, scale_OG: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[O, I] in `dtype`; exact in float32 and bfloat16, whose exponents reach as far as the scale's."""
    x_OGn = F.embedding(codes_OI.int(), _pairs(dtype, codes_OI.device)).view(*scale_OG.shape, GROUP)
    return (x_OGn * _power_of_two(scale_OG.int() - _EXPONENT_BIAS)[..., None].to(dtype)).flatten(1)


@cache
def _pairs(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[256, 2]: what each byte stands for."""
    codes = torch.arange(256)
    return torch.stack((_NUMBERS[codes & 0xF], _NUMBERS[codes >> 4]), dim=-1).to(device, dtype)


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """float32, exact from 2**-127 on (torch.exp2 and torch.ldexp may round)."""
    return (exponent.long() + 1023 << 52).view(torch.float64).float()
