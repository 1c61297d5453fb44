"""Continuous batching of simulated requests: which tokens a step computes, and what comes out. No time, no tensors.

The same rules as a real engine's: running requests first, in the order in which they came, each gets the tokens
that it lacks until the step's token budget is spent; then waiting ones while slots, budget and KV cache last. When
the cache is full, the youngest go back to the front of the queue and are computed again.

What a step does per request is compiled (`loops`).
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..protocol import I32, U8, U64, StepRecord
from .answers import place_weights
from .loops import (
    ID,
    NUM_COMPUTED,
    NUM_ONCE_COMPUTED,
    NUM_ROWS,
    NUM_TOKENS,
    Sequences,
    admit,
    advance,
    continue_running,
)
from .profile import EngineLimits

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
    """The requests of one engine. Call `compose` and `complete` in turn; `submit` and `abort` at any time.

    Attributes:
        num_running, num_waiting: requests.
        num_kv_tokens: tokens in the KV cache.
        num_preemptions: so far.
    """

    def __init__(
        self, limits: EngineLimits, *, kv_capacity_tokens: int, max_model_len: int, vocab_size: int
    ) -> None:
        self._limits = limits
        self._kv_capacity = kv_capacity_tokens
        self._vocab_size = np.uint64(vocab_size)
        self._weights = place_weights(max_model_len)
        self._running: Sequences = np.zeros((NUM_ROWS, limits.max_num_seqs), np.int64)
        self._given: I64 = np.zeros(limits.max_num_seqs, np.int64)  # tokens that the composed step computes of each
        self._num_held = 0  # tokens in the KV cache once everything that runs lacks none
        self._waiting: deque[Sequences] = deque()
        self._arrived: list[Sequences] = []
        self._steps_since_prefill = 0
        self.num_running = 0
        self.num_waiting = 0
        self.num_kv_tokens = 0
        self.num_preemptions = 0

    def submit(self, sequences: Sequences) -> None:
        """Queue requests, each of which fits the KV cache alone."""
        self._arrived.append(sequences)
        self.num_waiting += sequences.shape[1]

    def abort(self, ids: U64) -> None:
        gone = ids.view(np.int64)
        running = self._running[:, : self.num_running]
        keep = np.flatnonzero(~np.isin(running[ID], gone))
        self._given[: len(keep)] = self._given[keep]
        self._keep_running(running[:, keep])
        self._waiting = deque(_without(chunk, gone) for chunk in self._waiting)
        self._arrived = [_without(chunk, gone) for chunk in self._arrived]
        self.num_waiting = sum(chunk.shape[1] for chunk in (*self._waiting, *self._arrived))

    def compose(self, max_num_seqs: int) -> StepWork:
        """Decide the next step, with at most `max_num_seqs` requests (at least 1)."""
        if not (self._limits.async_scheduling and self.num_running):
            self._queue_arrived()
        self._preempt(max_num_seqs)
        budget = self._limits.max_num_batched_tokens
        prefill, decode, again = continue_running(self._running, self._given, self.num_running, budget)
        budget -= prefill + decode
        if budget > 0 and not self._may_prefill():
            budget = 0
        num_waiting = self.num_waiting - sum(chunk.shape[1] for chunk in self._arrived)
        num_admitted, num_fitting, admitted, admitted_again = self._admit(max_num_seqs - self.num_running, budget)
        self._queue_arrived()
        return StepWork(
            num_prefill_tokens=prefill + admitted,
            num_decode_tokens=decode,
            num_recomputed_tokens=again + admitted_again,
            num_kv_tokens=self.num_kv_tokens + prefill + decode + admitted,
            num_running=self.num_running,
            num_without_room=num_waiting - num_fitting,
            num_deferred=num_fitting - num_admitted,
        )

    def steps_to_intake(self) -> tuple[int, int]:
        """Steps from the end of the composed one until a request must have come to be taken in, and from one such
        time to the next."""
        limits = self._limits
        if self._always_prefills():
            return 0, 1
        every = limits.prefill_every_steps
        lag = 2 if limits.async_scheduling else 1
        steps = every - self._steps_since_prefill - lag
        return steps if steps >= 0 else steps + every, every

    def complete(self) -> NewTokens:
        """Do what `compose` decided: the new tokens, one for each request that lacks none any more."""
        ids, token_ids, finish, self.num_running, self._num_held, self.num_kv_tokens = advance(
            self._running, self._given, self.num_running, self._weights, self._vocab_size
        )
        return NewTokens(ids, token_ids, finish)

    def _queue_arrived(self) -> None:
        if self._arrived:
            together = len(self._arrived) > 1
            self._waiting.append(np.concatenate(self._arrived, axis=1) if together else self._arrived[0])
            self._arrived = []

    def _may_prefill(self) -> bool:
        self._steps_since_prefill += 1
        if self._steps_since_prefill < self._limits.prefill_every_steps:
            return self._always_prefills()
        self._steps_since_prefill = 0
        return True

    def _always_prefills(self) -> bool:
        """Whatever the step's turn, as so little runs."""
        return self.num_running < max(1, self._limits.prefill_always_below)

    def _preempt(self, max_num_seqs: int) -> None:
        """Send the youngest back until all that run fit."""
        num_kept = min(self.num_running, max_num_seqs)
        running = self._running[:, : self.num_running]
        if self._num_held > self._kv_capacity:
            held = np.cumsum(running[NUM_TOKENS])
            num_kept = min(num_kept, int(np.searchsorted(held, self._kv_capacity, side="right")))
        num_sent_back = self.num_running - num_kept
        if num_sent_back:
            sent_back = running[:, num_kept:].copy()
            np.maximum(sent_back[NUM_ONCE_COMPUTED], sent_back[NUM_COMPUTED], out=sent_back[NUM_ONCE_COMPUTED])
            sent_back[NUM_COMPUTED] = 0
            self._keep_running(running[:, :num_kept])
            self._waiting.appendleft(sent_back)
            self.num_waiting += num_sent_back
            self.num_preemptions += num_sent_back

    def _keep_running(self, running: Sequences) -> None:
        """Only these, in this order."""
        self.num_running = running.shape[1]
        self._running[:, : self.num_running] = running
        self._num_held = int(running[NUM_TOKENS].sum())
        self.num_kv_tokens = int(running[NUM_COMPUTED].sum())

    def _admit(self, num_slots: int, budget: int) -> tuple[int, int, int, int]:
        """Let waiting requests run as well, while `num_slots`, the token `budget` and the KV cache last.

        Returns: how many; how many there was room for, whatever the budget; the tokens that the step computes of
        them, and of these the ones computed before.
        """
        kv_room = self._kv_capacity - self._num_held
        num_admitted = num_fitting = total = total_again = 0
        for chunk in self._waiting:
            admitted, fitting, kv_room, held, given, again = admit(
                chunk, self._running, self._given, self.num_running, num_slots - num_fitting, budget, kv_room
            )
            self.num_running += admitted
            self._num_held += held
            budget -= given
            num_admitted += admitted
            num_fitting += fitting
            total += given
            total_again += again
            if fitting < chunk.shape[1]:
                break
        self._take_waiting(num_admitted)
        return num_admitted, num_fitting, total, total_again

    def _take_waiting(self, count: int) -> None:
        """The first so many do not wait any more."""
        self.num_waiting -= count
        while count:
            chunk = self._waiting.popleft()
            if count < chunk.shape[1]:
                self._waiting.appendleft(chunk[:, count:])
            count -= min(count, chunk.shape[1])


def _without(chunk: Sequences, gone: I64) -> Sequences:
    return chunk[:, ~np.isin(chunk[ID], gone)]
