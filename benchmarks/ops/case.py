"""One op at one shape: what is called, what must come out, and what it costs at best."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch


@dataclass(frozen=True)
class Sizes:
    """Of the model that the shapes come from, and of a step. Defaults: Llama 2 70B on one rank, Offline."""

    hidden: int = 8192
    intermediate: int = 28672
    num_heads: int = 64
    num_kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 32000
    block_size: int = 64
    num_prefill_tokens: int = 4096
    num_decodes: int = 1024
    context: int = 500

    @classmethod
    def tiny(cls) -> "Sizes":
        return cls(64, 96, 8, 2, 16, 300, 16, 6, 3, 20)


@dataclass(frozen=True)
class Case:
    """Legend of the figures: `bytes` are those that must be read or written once, `flops` those of products.

    Attributes:
        run: the op on Triton; calls may change their inputs.
        wanted, got: what the reference and one call on equal inputs bring, to be compared.
        tolerance: largest absolute difference; 0 asks for equality.
    """

    name: str
    run: Callable[[], object]
    wanted: Callable[[], tuple[torch.Tensor, ...]]
    got: Callable[[], tuple[torch.Tensor, ...]]
    bytes: int
    flops: int = 0
    tolerance: float = 0.0


@dataclass(frozen=True)
class Setting:
    """Where the cases of all ops are made. `ops` is `nfold.kernels.triton.ops`, `dtype` that of hidden states."""

    ops: ModuleType
    sizes: Sizes
    device: torch.device
    fp8: torch.dtype
    dtype: torch.dtype

    def random(self, *shape: int, dtype: torch.dtype | None = None, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*shape, generator=generator, device=self.device).to(dtype or self.dtype)


def floats(rows: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """FP8 numbers and their scales, to be compared."""
    return rows[0].float(), rows[1]
