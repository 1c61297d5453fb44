"""Large pages for what is read or written as a whole: fewer addresses to translate, fewer pages to ask for."""

import ctypes
import mmap

import torch

HUGE_PAGE_BYTES = 2 << 20
_LIBC = ctypes.CDLL(None)


def advise(memory: torch.Tensor) -> None:
    """Have the system give `memory`, which has no pages yet, huge ones wherever whole ones lie within it."""
    lacking = -memory.data_ptr() % HUGE_PAGE_BYTES
    whole_bytes = (memory.nbytes - lacking) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    if memory.device.type == "cpu" and whole_bytes > 0 and hasattr(mmap, "MADV_HUGEPAGE"):
        first = ctypes.c_void_p(memory.data_ptr() + lacking)
        _LIBC.madvise(first, ctypes.c_size_t(whole_bytes), mmap.MADV_HUGEPAGE)  # advice: may fail
