"""LoadGen's system under test: a router in this process, driven with arrays.

    LoadGen's threads          this thread
    issue(ids, indices) ──> arrived ──> submit_bulk, all at once ──> router
                            eventfd          progress: first tokens, ends <── one message per replica and step
    FirstTokenComplete, QuerySamplesComplete, a list per message

No Python runs per token. Accuracy runs need the tokens themselves and take one sink per request instead.
"""

import os
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import mlperf_loadgen
import numpy as np
from numpy.typing import NDArray

from ...deployments.router import Router, TokenChunk
from ...models.engine.protocol import I32, U8, FinishReason, SamplingParams
from ...models.errors import OverloadedError, RequestError, UnavailableError
from .queries import Queries
from .samples import SampleSet

I64 = NDArray[np.int64]

# What is open in the router at any time, the rest of an Offline query waits here; and what it is given at once.
MAX_OPEN = 400_000
MAX_AT_ONCE = 4096
LONGEST_WAIT_S = 0.05
_NO_DATA = np.zeros(1, np.int32)

Complete = Callable[[Sequence[Any]], None]


class Sut:
    """Answers LoadGen's queries through `router`. `issue` is LoadGen's to call, all else the driving thread's.

    Args:
        keep_tokens: give LoadGen the tokens of every answer (accuracy mode).
        tell_first: LoadGen counts first tokens.
        first_complete, complete: LoadGen's; tests give others.
    """

    def __init__(
        self,
        router: Router,
        model: str,
        samples: SampleSet,
        *,
        keep_tokens: bool = False,
        tell_first: bool = True,
        clock: Callable[[], float] = time.monotonic,
        first_complete: Complete = mlperf_loadgen.FirstTokenComplete,
        complete: Complete = mlperf_loadgen.QuerySamplesComplete,
    ) -> None:
        self.queries = Queries()
        self.waited_s = 0.0
        self._router = router
        self._model = model
        self._samples = samples
        self._keep_tokens = keep_tokens
        self._tell_first = tell_first
        self._clock = clock
        self._first_complete = first_complete
        self._complete = complete
        self._arrived: deque[tuple[Sequence[int], Sequence[int], float]] = deque()
        self._num_submitted = 0
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._waiter = select.poll()
        self._waiter.register(self._bell, select.POLLIN)
        self._waiter.register(router.fileno(), select.POLLIN)
        self._tick_due_s = clock()

    def issue(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        """A query; returns at once. Called by LoadGen's threads."""
        self._arrived.append((ids, indices, self._clock()))
        os.eventfd_write(self._bell, 1)

    def flush_queries(self) -> None:
        """LoadGen says so when it has issued its last query; nothing waits for that here."""

    def turn(self) -> None:
        """Submit what has arrived, then handle messages, for the first of which it waits a moment."""
        self._take_arrived()
        self._submit()
        router = self._router
        router.flush()
        if not router.has_messages() and not self._arrived:
            now_s = self._clock()
            wait_s = min(LONGEST_WAIT_S, self._tick_due_s - now_s, router.next_flush_s())
            if wait_s > 0:
                if self._waiter.poll(wait_s * 1e3):
                    self._silence_bell()
                self.waited_s += self._clock() - now_s
        if (gather_s := router.gather_s()) > 0.0:
            time.sleep(gather_s)
            self.waited_s += gather_s
        router.drain_messages()
        if self._clock() >= self._tick_due_s:
            router.tick()
            self._tick_due_s = self._clock() + router.settings.tick_s

    @property
    def num_open(self) -> int:
        """Issued and not ended."""
        return len(self.queries) - self.queries.num_ended

    def close(self) -> None:
        os.close(self._bell)

    def progress(self, first: I64, done: I64, num_tokens: I32, finish: U8, now_s: float) -> None:
        """See `BulkSink`; tags are rows of `queries`."""
        if len(first):
            self.queries.note_first(first, now_s)
            self._say_first(first)
        if len(done):
            self._end(done, num_tokens, finish, now_s, None)

    def _take_arrived(self) -> None:
        while self._arrived:
            ids, indices, at_s = self._arrived.popleft()
            self.queries.add(np.array(ids, np.int64), np.array(indices, np.int64), at_s)

    def _submit(self) -> None:
        """As much of what waits as may be open."""
        while self._num_submitted < len(self.queries):
            room = MAX_OPEN - (self._num_submitted - self.queries.num_ended)
            if room <= 0:
                return
            first = self._num_submitted
            rows = np.arange(first, min(len(self.queries), first + min(room, MAX_AT_ONCE)))
            self._num_submitted += len(rows)
            try:
                self._submit_rows(rows)
            except (OverloadedError, RequestError, UnavailableError) as error:
                self.queries.first_error = self.queries.first_error or str(error)
                nothing = np.zeros(len(rows), np.int32)
                self._end(rows, nothing, np.full(len(rows), FinishReason.ERROR, np.uint8), self._clock(), None)

    def _submit_rows(self, rows: I64) -> None:
        samples, indices = self._samples, self.queries.indices[rows]
        limits, seeds = samples.max_tokens[indices], samples.seeds[indices]
        if not self._keep_tokens:
            self._router.submit_bulk(
                self._model,
                samples.tokens,
                samples.prompt_lens[indices],
                limits,
                seeds,
                rows,
                self,
                ignore_eos=samples.ignore_eos,
                temperature=samples.temperature,
                prompt_starts=samples.starts[indices],
            )
            return
        sampling = [
            SamplingParams(
                max_tokens=limit, temperature=samples.temperature, seed=seed, ignore_eos=samples.ignore_eos
            )
            for limit, seed in zip(limits.tolist(), seeds.tolist(), strict=True)
        ]
        prompts = [samples.prompt(index) for index in indices.tolist()]
        self._router.submit_many(self._model, prompts, sampling, [self._sink(row) for row in rows.tolist()])

    def _sink(self, row: int) -> Callable[[TokenChunk], None]:
        token_ids: list[int] = []
        rows = np.array([row])

        def take(chunk: TokenChunk) -> None:
            now_s = self._clock()
            if chunk.token_ids and not token_ids:
                self.queries.note_first(rows, now_s)
                self._say_first(rows)
            token_ids.extend(chunk.token_ids)
            if chunk.finish is not FinishReason.NONE:
                self.queries.first_error = self.queries.first_error or chunk.error
                finish = np.array([chunk.finish], np.uint8)
                self._end(rows, np.array([len(token_ids)], np.int32), finish, now_s, np.array(token_ids, np.int32))

        return take

    def _say_first(self, rows: I64) -> None:
        if self._tell_first:
            answer, pointer = mlperf_loadgen.QuerySampleResponse, _NO_DATA.ctypes.data
            self._first_complete([answer(each, pointer, 0, 1) for each in self.queries.ids[rows].tolist()])

    def _end(self, rows: I64, num_tokens: I32, finish: U8, now_s: float, tokens: I32 | None) -> None:
        """Tells LoadGen the whole token count. One that failed has its real, lower count, which LoadGen calls an
        error: the run is then invalid, as it should be."""
        queries = self.queries
        queries.note_end(rows, num_tokens, finish, now_s)
        without_first = rows[np.isnan(queries.first_s[rows])]
        if len(without_first):
            self._say_first(without_first)
        data = _NO_DATA if tokens is None else tokens
        pointer, num_bytes = data.ctypes.data, 0 if tokens is None else tokens.nbytes
        answer = mlperf_loadgen.QuerySampleResponse
        counts = zip(queries.ids[rows].tolist(), num_tokens.tolist(), strict=True)
        self._complete([answer(each, pointer, num_bytes, count) for each, count in counts])

    def _silence_bell(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return
