"""Where a checkpoint tensor goes in a rank's parameters."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Slot:
    """One checkpoint tensor, or a slice of it, and the place it fills.

        checkpoint   [ . . . |start: rows of this rank| . . . ]   along `dim`, `shape` as a whole
                                  │
        destination          [ a view into a parameter ]

    Attributes:
        name: the tensor's name in the checkpoint.
        shape: its whole shape there.
        destination: the view to fill; like `shape`, but shorter along `dim`.
        dim: the dimension that is sliced.
        start: first index of the slice.
    """

    name: str
    shape: tuple[int, ...]
    destination: torch.Tensor
    dim: int = 0
    start: int = 0
