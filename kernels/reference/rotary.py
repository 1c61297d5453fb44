"""Rotary position embedding (Su et al. 2021). Legend: T tokens, H heads, d head size."""

import torch


def rotary(x_THd: torch.Tensor, cos_Td: torch.Tensor, sin_Td: torch.Tensor) -> torch.Tensor:
    swapped_THd = x_THd.roll(x_THd.shape[-1] // 2, -1)
    return (x_THd * cos_Td[:, None]).addcmul_(swapped_THd, sin_Td[:, None])
