"""Collectives of the ranks of one host, through memory that they share (see exchange.cpp)."""

import ctypes
import mmap
import os
from collections.abc import Callable

import torch

from . import library

_P, _I, _N = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SUMS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Exchange:
    """One rank's part. Every collective is called by all ranks, in the same order.

    A collective raises ConnectionError when another rank has left or died, and TimeoutError when one stays silent.
    After that nothing more can be said: to the others this rank has left.
    """

    def __init__(self, file: int, rank: int, size: int, timeout_s: float) -> None:
        """`file` is of `new_file`, each rank's opened by itself, and closed by `close`. OSError: it cannot be."""
        room = (_P, _N, _N, _N, _I)
        function = _compiled().function
        self._sums = {
            dtype: function(f"nfold_exchange_sum_{name}", *room, _P, _I, _N, returns=_N)
            for dtype, name in _SUMS.items()
        }
        self._gather = function("nfold_exchange_gather", *room, _P, _I, _I, _P, _N, returns=_N)
        self._broadcast = function("nfold_exchange_broadcast", *room, _P, _I, returns=_N)
        self._lock = function("nfold_exchange_lock", _N, _N, _N, returns=_N)
        self._size, self._rank, self._file, self._timeout_s = size, rank, file, timeout_s
        self._memory = torch.frombuffer(mmap.mmap(file, os.fstat(file).st_size), dtype=torch.uint8)
        self._room = (self._memory.data_ptr(), file, rank, size, int(timeout_s * 1e9))
        if self._lock(file, rank, 1):
            raise OSError(f"rank {rank} cannot lock its byte of the shared memory")

    @staticmethod
    def new_file(size: int) -> int:
        """The descriptor of memory for `size` ranks. OSError: none is left, too many ranks, no compiled ops."""
        num_bytes = _compiled().function("nfold_exchange_file_bytes", _N, returns=_I)(size)
        if num_bytes == 0:
            raise OSError(f"{size} ranks are more than can share memory")
        file = os.memfd_create("nfold-exchange")
        try:
            os.posix_fallocate(file, 0, num_bytes)
        except OSError:
            os.close(file)
            raise
        return file

    def adds(self, x: torch.Tensor) -> bool:
        """Whether `all_reduce` takes tensors of this type."""
        return x.dtype in _SUMS

    def all_reduce(self, x: torch.Tensor) -> None:
        """x becomes the sum over ranks: added in the order of ranks in float32 and rounded once."""
        assert x.is_contiguous()
        self._call(self._sums[x.dtype], x.data_ptr(), x.numel(), torch.get_num_threads())

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        """The ranks' x side by side along the last dimension."""
        x = x.contiguous()
        *rows, width = x.shape
        out = x.new_empty(*rows, width * self._size)
        row_bytes = width * x.itemsize
        if x.numel():
            shape = (x.numel() // width, row_bytes)
            self._call(self._gather, x.data_ptr(), *shape, out.data_ptr(), torch.get_num_threads())
        return out

    def broadcast(self, x: torch.Tensor) -> None:
        """x becomes rank 0's, which may be one message ahead of the others."""
        assert x.is_contiguous()
        self._call(self._broadcast, x.data_ptr(), x.nbytes)

    def close(self) -> None:
        """Leave."""
        if self._file >= 0:
            self._lock(self._file, self._rank, 0)  # the mapping keeps a copy of the descriptor
            os.close(self._file)
            self._file = -1

    def _call(self, function: Callable[..., int], *arguments: int) -> None:
        if self._file < 0:
            raise ConnectionError("this rank has left the others")
        status = function(*self._room, *arguments)
        if status:
            self.close()
        if status > 0:
            raise ConnectionError(f"rank {status - 1} is gone")
        if status < 0:
            raise TimeoutError(f"rank {-status - 1} did not answer within {self._timeout_s:g} s")


def _compiled() -> library.Library:
    compiled = library.load()
    if compiled is None:
        raise OSError("this machine has no compiled ops")
    return compiled
