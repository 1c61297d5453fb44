"""Free places in arrays, given out and taken back many at a time."""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class IndexPool:
    """The indices below `size` that nobody has."""

    def __init__(self, size: int) -> None:
        self._free = np.arange(size - 1, -1, -1, dtype=np.int64)
        self._num_free = size
        self._size = size

    @property
    def num_taken(self) -> int:
        return self._size - self._num_free

    @property
    def num_free(self) -> int:
        return self._num_free

    @property
    def free(self) -> Indices:
        """[size] whose first `num_free` are free; taken from their end."""
        return self._free

    def take(self, count: int) -> Indices:
        """So many that differ; there must be as many. Those given back last come first: their memory is warm."""
        assert count <= self._num_free
        self._num_free -= count
        return self._free[self._num_free : self._num_free + count][::-1].copy()

    def take_one(self) -> int:
        """As `take`."""
        assert self._num_free > 0
        self._num_free -= 1
        return int(self._free[self._num_free])

    def leave(self, num_free: int) -> None:
        """Others took from the end of `free`: so many are left."""
        self._num_free = num_free

    def give(self, indices: Indices) -> None:
        """They are free again."""
        self._free[self._num_free : self._num_free + len(indices)] = indices
        self._num_free += len(indices)

    def grow(self, size: int) -> None:
        """Up to `size` indices from now on."""
        free = np.empty(size, np.int64)
        free[: size - self._size] = np.arange(size - 1, self._size - 1, -1)
        free[size - self._size : size - self._size + self._num_free] = self._free[: self._num_free]
        self._free = free
        self._num_free += size - self._size
        self._size = size
