"""Compiled loops: for the types that they name, whether or not they can be kept."""

import numba.core.caching
import numpy as np
import pytest
from nfold.models.compiled import compiled, i64s, u64s_in


def total(array: np.ndarray) -> int:
    found = 0
    for item in array:
        found += item
    return found


def test_takes_the_types_it_names_and_no_others() -> None:
    assert compiled(i64s)(total)(np.arange(5)) == 10
    with pytest.raises(TypeError, match="No matching definition"):
        compiled(i64s)(total)(np.arange(5.0))


def test_arrays_out_of_a_message_are_read_only() -> None:
    assert compiled(u64s_in)(total)(np.frombuffer(bytes([3, *bytes(7)] * 2), np.uint64)) == 6
    assert compiled(u64s_in)(total)(np.ones(4, np.uint64)) == 4


def test_where_nothing_can_be_kept_each_process_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit((i64s,), cache=True)(total)
    assert compiled(i64s)(total)(np.arange(5)) == 10
