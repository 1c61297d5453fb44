"""Arrays as the bytes of one frame, one behind the other; what they are is known to `wire` alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.engine.protocol import F32, I32, U8, U64

Arrays = list[tuple[NDArray[Any], type[np.generic]]]

_KINDS: tuple[type[np.generic], ...] = (np.uint64, np.int32, np.float32, np.uint8, np.int8)
_LITTLE_ENDIAN: dict[type[np.generic], np.dtype[Any]] = {kind: np.dtype(kind).newbyteorder("<") for kind in _KINDS}


class WireError(ValueError):
    """Bytes that are no message of this version."""


def pack(arrays: Arrays) -> bytes:
    """The arrays as the given types, little-endian. Widest items first keeps each of them aligned."""
    return b"".join(
        [np.ascontiguousarray(array, _LITTLE_ENDIAN[kind]).data for array, kind in arrays if array.size]
    )


class ArrayFrame:
    """Cuts a message's second frame into arrays, in the order in which they were packed, without copying.

    Raises:
        WireError: an array does not fit, or bytes are left over at the `end`.
    """

    def __init__(self, frames: list[bytes]) -> None:
        if len(frames) != 2:
            raise WireError(f"got {len(frames)} frames; a message with arrays has 2")
        self._buffer = frames[1]
        self._offset = 0

    def u64(self, count: int) -> U64:
        return np.frombuffer(self._buffer, "<u8", count, self._skip(count, 8))

    def i32(self, count: int) -> I32:
        return np.frombuffer(self._buffer, "<i4", count, self._skip(count, 4))

    def f32(self, count: int) -> F32:
        return np.frombuffer(self._buffer, "<f4", count, self._skip(count, 4))

    def u8(self, count: int) -> U8:
        return np.frombuffer(self._buffer, np.uint8, count, self._skip(count, 1))

    def i8(self, count: int) -> NDArray[np.int8]:
        return np.frombuffer(self._buffer, np.int8, count, self._skip(count, 1))

    def end(self) -> None:
        """All was taken."""
        if self._offset != len(self._buffer):
            raise WireError(f"{len(self._buffer) - self._offset} bytes are left over")

    def _skip(self, count: int, item_bytes: int) -> int:
        """Where the next array starts."""
        start = self._offset
        if count < 0 or start + count * item_bytes > len(self._buffer):
            raise WireError(f"an array of {count} items does not fit its frame of {len(self._buffer)} bytes")
        self._offset += count * item_bytes
        return start
