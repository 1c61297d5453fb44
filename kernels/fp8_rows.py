"""Activations on their way to an FP8 product. Legend: R rows, I inputs."""

from typing import NamedTuple

import torch


class Fp8Rows(NamedTuple):
    """Numbers and a scale per row, whose product stands for what was there before.

    Attributes:
        numbers_RI: in one of the e4m3 types.
        scale_R1: float32.
        dtype: of what was there before, and so of what products with them give.
    """

    numbers_RI: torch.Tensor
    scale_R1: torch.Tensor
    dtype: torch.dtype


Rows = torch.Tensor | Fp8Rows
"""What a product takes in: `PackedWeight.input_fp8` says which it would rather have."""
