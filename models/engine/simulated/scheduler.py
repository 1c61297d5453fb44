"""Continuous batching of simulated requests: which tokens a step computes, and what comes out. No time, no tensors.

The same rules as a real engine's: running requests first, in the order in which they came, each gets the tokens
that it lacks until the step's token budget is spent; then waiting ones while slots, budget and KV cache last. When
the cache is full, the youngest go back to the front of the queue and are computed again.

Work per step is a fixed number of array operations.
"""

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..protocol import I32, U8, U64, StepRecord
from .answers import next_token_ids, place_weights
from .profile import EngineLimits
from .sequences import (
    END,
    FINISH,
    HASH,
    ID,
    NONE,
    NUM_COMPUTED,
    NUM_ONCE_COMPUTED,
    NUM_PROMPT,
    NUM_TOKENS,
    SEED,
    Sequences,
)

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step computes, in tokens, and what it leaves.

    Attributes:
        num_prefill_tokens: of prompts.
        num_decode_tokens: of requests past their prompt.
        num_recomputed_tokens: of both, those that had been computed before.
        num_kv_tokens: context that the step's requests hold in the KV cache when it is done.
        num_running, num_without_room, num_deferred: requests, see `StepRecord`.
    """

    num_prefill_tokens: int
    num_decode_tokens: int
    num_recomputed_tokens: int
    num_kv_tokens: int
    num_running: int = 0
    num_without_room: int = 0
    num_deferred: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_prefill_tokens + self.num_decode_tokens

    def record(self, step_s: float) -> StepRecord:
        """Its account, if it takes so long."""
        return StepRecord(
            step_s=step_s,
            num_prefill_tokens=self.num_prefill_tokens,
            num_decode_tokens=self.num_decode_tokens,
            num_recomputed_tokens=self.num_recomputed_tokens,
            num_kv_tokens=self.num_kv_tokens,
            num_running=self.num_running,
            num_without_room=self.num_without_room,
            num_deferred=self.num_deferred,
        )


@dataclass(frozen=True, slots=True)
class NewTokens:
    """One row per new token."""

    ids: U64  # [R]
    token_ids: I32  # [R]
    finish: U8  # [R] FinishReason

    @classmethod
    def none(cls) -> "NewTokens":
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.uint8))


class SimulatedScheduler:
    """The requests of one engine. Call `compose` and `complete` in turn; `submit` and `abort` at any time."""

    def __init__(
        self, limits: EngineLimits, *, kv_capacity_tokens: int, max_model_len: int, vocab_size: int
    ) -> None:
        self._limits = limits
        self._kv_capacity = kv_capacity_tokens
        self._vocab_size = vocab_size
        self._weights = place_weights(max_model_len)
        self._ones = np.ones(limits.max_num_seqs, np.int64)
        self._running: Sequences = NONE
        self._given: I64 = NONE[0]  # tokens that the composed step computes of each
        self._all_decode = True  # everything that runs lacks one token, the one sampled last
        self._waiting: deque[Sequences] = deque()
        self._arrived: list[Sequences] = []
        self._steps_since_prefill = 0
        self.num_kv_tokens = 0  # tokens in the KV cache
        self.num_waiting = 0
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        return self._running.shape[1]

    def submit(self, sequences: Sequences) -> None:
        """Queue requests, each of which fits the KV cache alone."""
        self._arrived.append(sequences)
        self.num_waiting += sequences.shape[1]

    def abort(self, ids: U64) -> None:
        gone = ids.view(np.int64)
        keep = ~np.isin(self._running[ID], gone)
        self.num_kv_tokens -= int(self._running[NUM_COMPUTED, ~keep].sum())
        self._running, self._given = self._running[:, keep], self._given[keep[: len(self._given)]]
        self._waiting = deque(_without(chunk, gone) for chunk in self._waiting)
        self._arrived = [_without(chunk, gone) for chunk in self._arrived]
        self.num_waiting = sum(chunk.shape[1] for chunk in (*self._waiting, *self._arrived))

    def compose(self, max_num_seqs: int) -> StepWork:
        """Decide the next step, with at most `max_num_seqs` requests (at least 1)."""
        if not (self._limits.async_scheduling and self.num_running):
            self._queue_arrived()
        self._preempt(max_num_seqs)
        work = self._continue_running()
        budget = self._limits.max_num_batched_tokens - work.num_tokens
        num_before, num_slots = self.num_running, max_num_seqs - self.num_running
        num_waiting = self.num_waiting - sum(chunk.shape[1] for chunk in self._arrived)
        num_fitting = self._count_fitting(num_slots)
        if budget > 0 and self._may_prefill():
            work = self._admit(work, num_slots, budget)
        num_admitted = self.num_running - num_before
        self._queue_arrived()
        return replace(
            work,
            num_running=self.num_running,
            num_without_room=num_waiting - num_fitting,
            num_deferred=num_fitting - num_admitted,
        )

    def complete(self) -> NewTokens:
        """Do what `compose` decided: the new tokens, one for each request that lacks none any more."""
        running = self._running
        running[NUM_COMPUTED] += self._given
        self.num_kv_tokens += int(self._given.sum())
        self._given = NONE[0]
        caught_up = running[NUM_COMPUTED] == running[NUM_TOKENS]
        self._all_decode = bool(caught_up.all())
        rows = running if self._all_decode else running.take(np.flatnonzero(caught_up), axis=1)
        hashes = rows[HASH].view(np.uint64)
        token_ids = next_token_ids(rows[SEED].view(np.uint64), hashes, self._vocab_size)
        hashes = (hashes + token_ids * self._weights.take(rows[NUM_TOKENS])).view(np.int64)
        ids = rows[ID].astype(np.uint64)
        if self._all_decode:
            running[HASH] = hashes
            running[NUM_TOKENS] += 1
        else:
            running[HASH, caught_up] = hashes
            running[NUM_TOKENS] += caught_up
        goes_on = running[NUM_TOKENS] != running[END]
        finish = np.zeros(self.num_running, np.uint8)
        if not goes_on.all():
            ended = np.flatnonzero(~goes_on)
            finish[ended] = running[FINISH, ended]
            self.num_kv_tokens -= int(running[NUM_COMPUTED, ended].sum())
            self._running = running.take(np.flatnonzero(goes_on), axis=1)
        return NewTokens(ids, token_ids.astype(np.int32), finish if self._all_decode else finish[caught_up])

    def _queue_arrived(self) -> None:
        if self._arrived:
            together = len(self._arrived) > 1
            self._waiting.append(np.concatenate(self._arrived, axis=1) if together else self._arrived[0])
            self._arrived = []

    def _may_prefill(self) -> bool:
        self._steps_since_prefill += 1
        if self._steps_since_prefill < self._limits.prefill_every_steps:
            return self.num_running < max(1, self._limits.prefill_always_below)
        self._steps_since_prefill = 0
        return True

    @property
    def _num_held(self) -> int:
        """Tokens in the KV cache once everything that runs lacks none."""
        if self._all_decode:
            return self.num_kv_tokens + self.num_running
        return int(self._running[NUM_TOKENS].sum())

    def _preempt(self, max_num_seqs: int) -> None:
        """Send the youngest back until all that run fit."""
        num_kept = min(self.num_running, max_num_seqs)
        if self._num_held > self._kv_capacity:
            held = np.cumsum(self._running[NUM_TOKENS])
            num_kept = min(num_kept, int(np.searchsorted(held, self._kv_capacity, side="right")))
        num_sent_back = self.num_running - num_kept
        if num_sent_back:
            sent_back = self._running[:, num_kept:].copy()
            self.num_kv_tokens -= int(sent_back[NUM_COMPUTED].sum())
            np.maximum(sent_back[NUM_ONCE_COMPUTED], sent_back[NUM_COMPUTED], out=sent_back[NUM_ONCE_COMPUTED])
            sent_back[NUM_COMPUTED] = 0
            self._running = self._running[:, :num_kept]
            self._waiting.appendleft(sent_back)
            self.num_waiting += num_sent_back
            self.num_preemptions += num_sent_back

    def _continue_running(self) -> StepWork:
        """Give what runs the tokens that it lacks, within the step's budget."""
        running, budget = self._running, self._limits.max_num_batched_tokens
        if self._all_decode and self.num_running <= budget:
            self._given = self._ones[: self.num_running]
            return StepWork(0, self.num_running, 0, self._num_held)
        lacks = running[NUM_TOKENS] - running[NUM_COMPUTED]
        given = self._given = np.clip(budget - (np.cumsum(lacks) - lacks), 0, lacks)
        total = int(given.sum())
        decode = int(given[running[NUM_COMPUTED] >= running[NUM_PROMPT]].sum())
        again = np.clip(running[NUM_ONCE_COMPUTED] - running[NUM_COMPUTED], 0, given)
        return StepWork(total - decode, decode, int(again.sum()), self.num_kv_tokens + total)

    def _count_fitting(self, num_slots: int) -> int:
        """Waiting requests that slots and KV cache have room for, whatever the step's budget."""
        if num_slots == 0:
            return 0
        kv_room = self._kv_capacity - self._num_held
        count = 0
        for chunk in self._waiting:
            # As in `_admit`: one more token each.
            needs = np.cumsum(chunk[NUM_TOKENS, : num_slots - count] + 1)
            fits = int(np.searchsorted(needs, kv_room, side="right"))
            count += fits
            if fits < chunk.shape[1]:
                break
            kv_room -= int(needs[-1]) if fits else 0
        return count

    def _admit(self, work: StepWork, num_slots: int, budget: int) -> StepWork:
        """Let waiting requests run as well, while `num_slots`, the token `budget` and the KV cache last."""
        kv_room = self._kv_capacity - self._num_held
        admitted: list[Sequences] = []
        given: list[I64] = []
        while self._waiting and num_slots > 0 and budget > 0:
            chunk = self._waiting[0]
            lens = chunk[NUM_TOKENS, :num_slots]
            ends = np.cumsum(lens)
            # One more token each, so that what is admitted can also take its first step.
            fits_cache = np.searchsorted(ends + np.arange(1, len(ends) + 1), kv_room, side="right")
            starts_in_budget = np.searchsorted(ends - lens, budget)
            count = int(min(fits_cache, starts_in_budget))
            if count:
                total = int(ends[count - 1])
                admitted.append(chunk[:, :count])
                given.append(np.minimum(lens[:count], budget - (ends[:count] - lens[:count])))
                num_slots -= count
                budget -= total
                kv_room -= total + count
            if count < chunk.shape[1]:
                self._waiting[0] = chunk[:, count:]
                break
            self._waiting.popleft()
        if not admitted:
            return work
        fresh, fresh_given = np.concatenate(admitted, axis=1), np.concatenate(given)
        self._running = np.concatenate((self._running, fresh), axis=1)
        self._given = np.concatenate((self._given, fresh_given))
        self.num_waiting -= fresh.shape[1]
        total = int(fresh_given.sum())
        again = int(np.minimum(fresh[NUM_ONCE_COMPUTED], fresh_given).sum())
        return StepWork(
            num_prefill_tokens=work.num_prefill_tokens + total,
            num_decode_tokens=work.num_decode_tokens,
            num_recomputed_tokens=work.num_recomputed_tokens + again,
            num_kv_tokens=work.num_kv_tokens + total,
        )


def _without(chunk: Sequences, gone: I64) -> Sequences:
    return chunk[:, ~np.isin(chunk[ID], gone)]
