"""What became of each query of a run, as arrays that grow."""

import numpy as np
from numpy.typing import NDArray

from ...models.engine.protocol import I32, U8, FinishReason

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

_FAILED = (FinishReason.ERROR, FinishReason.ABORT)


class Queries:
    """Rows in the order in which LoadGen issued them; times are seconds on the run's clock, NaN before.

    Attributes (N rows, of which the first `len` are in use):
        ids: LoadGen's.
        indices: rows of the sample set.
        issued_s, first_s, end_s: when LoadGen issued it, its first token came, it ended.
        num_tokens: of the answer, once ended.
        failed: it ended without an answer.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._count = 0
        self.ids: I64 = np.zeros(capacity, np.int64)
        self.indices: I64 = np.zeros(capacity, np.int64)
        self.issued_s: F64 = np.full(capacity, np.nan)
        self.first_s: F64 = np.full(capacity, np.nan)
        self.end_s: F64 = np.full(capacity, np.nan)
        self.num_tokens: I32 = np.zeros(capacity, np.int32)
        self.failed: NDArray[np.bool_] = np.zeros(capacity, np.bool_)
        self.num_ended = self.num_failed = self.num_ended_tokens = 0
        self.first_error = ""

    def __len__(self) -> int:
        return self._count

    def add(self, ids: I64, indices: I64, now_s: float) -> slice:
        """New rows."""
        begin, end = self._count, self._count + len(ids)
        if end > len(self.ids):
            self._grow(max(end, 2 * len(self.ids)))
        self.ids[begin:end], self.indices[begin:end], self.issued_s[begin:end] = ids, indices, now_s
        self._count = end
        return slice(begin, end)

    def note_first(self, rows: I64, now_s: float) -> None:
        self.first_s[rows] = now_s

    def note_end(self, rows: I64, num_tokens: I32, finish: U8, now_s: float) -> None:
        self.end_s[rows] = now_s
        self.num_tokens[rows] = num_tokens
        self.failed[rows] = np.isin(finish, _FAILED)
        self.num_ended += len(rows)
        self.num_ended_tokens += int(num_tokens.sum())
        self.num_failed += int(self.failed[rows].sum())

    def num_short(self, answer_lens: I32 | None) -> int:
        """Answered, but with fewer tokens than the sample must have; without a known length, with less than two."""
        done = slice(0, self._count)
        wanted = 2 if answer_lens is None else answer_lens[self.indices[done]]
        ended = ~np.isnan(self.end_s[done]) & ~self.failed[done]
        return int((ended & (self.num_tokens[done] < wanted)).sum())

    def ttft_s(self) -> F64:
        """Of all that had a first token, in the order of issue."""
        done = slice(0, self._count)
        waits = self.first_s[done] - self.issued_s[done]
        return waits[~np.isnan(waits)]

    def tpot_s(self) -> F64:
        """Per token after the first, of the answers with two and more."""
        done = slice(0, self._count)
        several = (self.num_tokens[done] > 1) & ~np.isnan(self.end_s[done]) & ~self.failed[done]
        rows = np.flatnonzero(several)
        return (self.end_s[rows] - self.first_s[rows]) / (self.num_tokens[rows] - 1)

    def e2e_s(self) -> F64:
        done = slice(0, self._count)
        spans = (self.end_s[done] - self.issued_s[done])[~self.failed[done]]
        return spans[~np.isnan(spans)]

    def _grow(self, capacity: int) -> None:
        for name, fill in (
            *(("ids", 0), ("indices", 0), ("num_tokens", 0), ("failed", False)),
            *(("issued_s", np.nan), ("first_s", np.nan), ("end_s", np.nan)),
        ):
            old = getattr(self, name)
            fresh = np.full(capacity, fill, old.dtype)
            fresh[: len(old)] = old
            setattr(self, name, fresh)
