"""Inputs that FP8 holds exactly, because Triton's interpreter rounds to FP8 wrongly (a carry into the exponent is
lost). That GPUs round as the reference does, `benchmarks/gpu_engine.py` checks."""

import torch


def random_fp8(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Numbers of the type, as float32: of either sign, normal also when divided by 4."""
    codes = torch.randint(24, 112, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    signs = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.uint8)
    return (codes + 128 * signs).to(torch.uint8).view(dtype).float()
