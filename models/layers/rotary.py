"""Angles of the rotary position embedding. Legend: P positions, T tokens, d head size, h = d / 2."""

import math

import torch

from ..config import RopeConfig


class RotaryTable:
    """cos and sin of every position, in the layout that `ops.rotary` takes."""

    def __init__(
        self, rope: RopeConfig, head_dim: int, max_position: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        angles_Ph = torch.outer(
            torch.arange(max_position, dtype=torch.float32), inverse_frequencies(rope, head_dim)
        )
        cos_Ph, sin_Ph = angles_Ph.cos(), angles_Ph.sin()
        self._cos_Pd = torch.cat((cos_Ph, cos_Ph), dim=-1).to(device, dtype)
        self._sin_Pd = torch.cat((-sin_Ph, sin_Ph), dim=-1).to(device, dtype)

    def at(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos_Td, sin_Td) of a step's tokens."""
        return self._cos_Pd.index_select(0, positions_T), self._sin_Pd.index_select(0, positions_T)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """float32 [d / 2]: radians per position, as transformers computes them (Llama 3.1's scaling included)."""
    frequencies = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        wavelengths = 2 * math.pi / frequencies
        low, high = rope.low_freq_factor, rope.high_freq_factor
        # 0 for long waves, which are stretched; 1 for short ones, which stay; a ramp between.
        keep = ((rope.original_max_position / wavelengths - low) / (high - low)).clamp(0, 1)
        return (1 - keep) * frequencies / rope.factor + keep * frequencies
    return frequencies
