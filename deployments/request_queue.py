"""A queue of requests in one array: first come, first served, and those who left are skipped."""

import numpy as np
from numpy.typing import NDArray

from ..models.engine.protocol import U64
from .index_pool import Indices
from .request_table import RequestTable

# The means of a long queue are those of so many of it.
SAMPLE = 4096


class RequestQueue:
    """Wire ids in order. One that is no longer its slot's wire id has left; `len` counts those who have not.

    Invariant:  _ids[_head:_tail]  holds the queue, with stale ids among the valid.
    """

    def __init__(self, table: RequestTable) -> None:
        self._table = table
        self._ids: U64 = np.empty(256, np.uint64)
        self._head = self._tail = 0
        self._num_valid = 0

    def __len__(self) -> int:
        return self._num_valid

    def push(self, slots: Indices) -> None:
        """At the end."""
        count = len(slots)
        if self._tail + count > len(self._ids):
            self._make_room(0, count)
        self._ids[self._tail : self._tail + count] = self._table.wire_ids[slots]
        self._tail += count
        self._num_valid += count

    def push_first(self, slots: Indices) -> None:
        """Before all others, in the order given."""
        count = len(slots)
        if count > self._head:
            self._make_room(count, 0)
        self._ids[self._head - count : self._head] = self._table.wire_ids[slots]
        self._head -= count
        self._num_valid += count

    def left(self, count: int) -> None:
        """So many that wait here get new wire ids now: they have left."""
        self._num_valid -= count

    def first(self, count: int) -> Indices:
        """The slots of the first `count` (all, when there are fewer)."""
        count = min(count, self._num_valid)
        size = count
        while True:
            window = self._ids[self._head : self._head + size]
            slots, valid = self._table.match(window)
            num_valid = int(np.count_nonzero(valid))
            if num_valid < size:  # let the stale ones go, so that none is looked at twice
                self._ids[self._head + size - num_valid : self._head + size] = window[valid]
                self._head += size - num_valid
            if num_valid == size == count:
                return slots
            if num_valid >= count:
                return slots[valid][:count]
            size = num_valid + max(count - num_valid, 64)
            size = min(size, self._tail - self._head)

    def pop(self, count: int) -> None:
        """Those that `first(count)` gave are gone from here."""
        self._head += count
        self._num_valid -= count

    def all(self) -> Indices:
        return self.first(self._num_valid)

    def _make_room(self, before: int, after: int) -> None:
        live: NDArray[np.uint64] = self._ids[self._head : self._tail]
        live = live[self._table.match(live)[1]]
        spare = len(live) + 128
        ids = np.empty(before + len(live) + after + 2 * spare, np.uint64)
        self._head = before + spare
        self._tail = self._head + len(live)
        ids[self._head : self._tail] = live
        self._ids = ids


def sample_of(waiting: Indices) -> Indices:
    """Some of what waits, from all its parts: those that were passed over at its head are no ordinary ones."""
    return waiting[:: max(1, -(-len(waiting) // SAMPLE))].copy()
