"""Loops over arrays, compiled by Numba when their module is first imported, and kept on disk for the next process.

What a message or a simulated step brings would take dozens of NumPy calls, each of which has to come back into
caches that an engine or another process had meanwhile; compiled it is one. A kept loop is renewed when its own file
changes, so what it calls and its constants belong in that file.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types

Function = TypeVar("Function", bound=Callable[..., Any])

# Contiguous, and one-dimensional but for the tables. `_in` are read only, as arrays out of a message are.
bools, u8s, i32s, i64s, u64s, f32s, f64s = (
    types.Array(kind, 1, "C")
    for kind in (types.boolean, types.uint8, types.int32, types.int64, types.uint64, types.float32, types.float64)
)
i8s_in, u8s_in, i32s_in, u64s_in, f32s_in = (
    types.Array(kind, 1, "C", readonly=True)
    for kind in (types.int8, types.uint8, types.int32, types.uint64, types.float32)
)
i64_table, f64_table = (types.Array(kind, 2, "C") for kind in (types.int64, types.float64))
i64_columns = types.Array(types.int64, 2, "A", readonly=True)  # some of a table, so perhaps not contiguous
i64, u64, f64 = types.int64, types.uint64, types.float64


def tuples(*items: Any) -> types.BaseTuple:
    """Of items of these types."""
    return types.Tuple(items)


def records(dtype: np.dtype[np.void]) -> types.Array:
    """Of structured items."""
    return types.Array(numba.from_dtype(dtype), 1, "C")


def compiled(*arguments: Any) -> Callable[[Function], Function]:
    """Compile for arguments of these types alone, and not for others later."""

    def decorate(function: Function) -> Function:
        try:
            return cast("Function", numba.njit(arguments, cache=True)(function))
        except RuntimeError:  # neither beside the module nor in the user's cache may be written
            return cast("Function", numba.njit(arguments)(function))

    return decorate
