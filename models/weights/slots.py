"""Where a checkpoint tensor goes in a rank's parameters."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

FLOATS = ("F32", "BF16", "F16")


@dataclass(frozen=True, slots=True)
class Slot:
    """One checkpoint tensor, or a slice of it, and what is done with it.

        checkpoint   [ . . . |start: rows of this rank :stop| . . . ]   along `dim`, `shape` as a whole
                                  │
                                 put

    Attributes:
        name: the tensor's name in the checkpoint.
        shape: its whole shape there; dimensions of 1 at its end may be left out or added.
        put: takes the slice; it may be called once.
        dim: the dimension that is sliced.
        start: first index of the slice.
        stop: its end.
        dtypes: in which it may be stored, by safetensors' names.
        other_names: under which the tensor may stand instead.
        may_be_scalar: it may be one number, of shape [], instead; then it comes whole.
        asked_by: what makes it necessary, for errors.
        memory: what `put` fills, where that has no pages yet and is empty; slots may share it.
    """

    name: str
    shape: tuple[int, ...]
    put: Callable[[torch.Tensor], object]
    dim: int
    start: int
    stop: int
    dtypes: tuple[str, ...] = FLOATS
    other_names: tuple[str, ...] = ()
    may_be_scalar: bool = False
    asked_by: str = "config.json"
    memory: torch.Tensor | None = None

    @classmethod
    def copy(
        cls,
        name: str,
        shape: tuple[int, ...],
        destination: torch.Tensor,
        dim: int = 0,
        start: int = 0,
        dtypes: tuple[str, ...] = FLOATS,
        asked_by: str = "config.json",
    ) -> "Slot":
        """Fills `destination`, a view into a parameter: like `shape`, but shorter along `dim`."""
        stop = start + destination.shape[dim]
        return cls(name, shape, destination.copy_, dim, start, stop, dtypes, asked_by=asked_by)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.other_names)
