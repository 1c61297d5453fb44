"""Which of the CPU implementations the ops take."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import pytest
from nfold.kernels.avx512 import fp8_linear, library, linear, ops

Implementation = Literal["compiled", "torch"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("compiled", "torch")


@contextmanager
def kernels(implementation: Implementation) -> Generator[None]:
    """The compiled ops, or those that machines without AVX-512 or without a compiler have."""
    caches = (linear.products, fp8_linear.fp8_products, ops.functions, ops._argmax)
    with pytest.MonkeyPatch.context() as patch:
        if implementation == "torch":
            patch.setattr(library, "load", lambda: None)
        elif library.load() is None:
            pytest.skip("needs AVX-512 and a C++ compiler")
        for cached in caches:
            cached.cache_clear()
        yield
    for cached in caches:
        cached.cache_clear()
