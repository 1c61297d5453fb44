"""Emitted tokens of many requests, in pages, so that memory follows the tokens that there are.

cursor[slot] ──> where its next token goes; at a page's border it needs a page first
previous[page] ──> the page before it of the same request, -1 for the first
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..models.engine.protocol import I32
from .index_pool import IndexPool, Indices
from .request_loops import PAGE_BITS


class PageArrays(NamedTuple):
    """What a compiled loop appends tokens to. It takes pages from the end of `free[:num_free]`."""

    counts: NDArray[np.int64]
    cursor: NDArray[np.int64]
    previous: NDArray[np.int64]
    tokens: I32
    free: Indices
    num_free: int


class TokenPages:
    """`counts[slot]` tokens of each slot. `request_loops.book` appends them, and `free` clears a slot."""

    def __init__(self, num_slots: int, num_pages: int = 256) -> None:
        self.counts: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        self._cursor: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        self._previous: NDArray[np.int64] = np.full(num_pages, -1, np.int64)
        self._tokens: I32 = np.empty(num_pages << PAGE_BITS, np.int32)
        self._pages = IndexPool(num_pages)

    @property
    def num_pages_used(self) -> int:
        return self._pages.num_taken

    def arrays(self, num_tokens: int) -> PageArrays:
        """For up to so many tokens more; `pages_left` is to follow."""
        while self._pages.num_free < num_tokens:
            num_pages = 2 * len(self._previous)
            self._previous = np.concatenate([self._previous, np.full(num_pages // 2, -1, np.int64)])
            self._tokens = np.concatenate([self._tokens, np.empty(len(self._tokens), np.int32)])
            self._pages.grow(num_pages)
        free = self._pages.free
        return PageArrays(self.counts, self._cursor, self._previous, self._tokens, free, self._pages.num_free)

    def pages_left(self, num_free: int) -> None:
        """So many are free yet."""
        self._pages.leave(num_free)

    def of(self, slot: int, start: int = 0) -> I32:
        """Its tokens from the given one on."""
        count = int(self.counts[slot])
        if start >= count:
            return self._tokens[:0]
        parts: list[I32] = []
        end = int(self._cursor[slot])
        while count > start:
            page = (end - 1) >> PAGE_BITS
            in_page = end - (page << PAGE_BITS)
            parts.append(self._tokens[end - min(in_page, count - start) : end])
            count -= in_page
            end = (int(self._previous[page]) + 1) << PAGE_BITS
        return parts[0].copy() if len(parts) == 1 else np.concatenate(parts[::-1])

    def grow(self, num_slots: int) -> None:
        more = num_slots - len(self.counts)
        self.counts = np.concatenate([self.counts, np.zeros(more, np.int64)])
        self._cursor = np.concatenate([self._cursor, np.zeros(more, np.int64)])
