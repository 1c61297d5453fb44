"""Rotary position embedding (Su et al. 2021), with the halves of a head rotated as Hugging Face stores them.

Legend: T tokens, H query heads, K key heads, d head size.
"""

import torch


def rotary(
    q_THd: torch.Tensor, k_TKd: torch.Tensor, cos_Td: torch.Tensor, sin_Td: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    cos_T1d, sin_T1d = cos_Td[:, None], sin_Td[:, None]
    return _rotate(q_THd, cos_T1d, sin_T1d), _rotate(k_TKd, cos_T1d, sin_T1d)


def _rotate(x_THd: torch.Tensor, cos_T1d: torch.Tensor, sin_T1d: torch.Tensor) -> torch.Tensor:
    left, right = x_THd.chunk(2, dim=-1)
    return x_THd * cos_T1d + torch.cat((-right, left), dim=-1) * sin_T1d
