"""The router of a replay: what waits, what each replica has, how fast it is; never an answer's length."""

from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from ..deployments.dispatch import RECKON_EVERY_S
from ..deployments.length_prediction import LengthPrediction
from ..deployments.request_queue import sample_of
from ..deployments.speed import StepLine, observe_step, token_costs
from ..models.engine.simulated.scheduler import NewTokens, StepWork
from .replay_policies import LOOKS_AHEAD, FleetView, Policy

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

MAX_TOKENS = 1024
_NONE: I64 = np.zeros(0, np.int64)


class ReplayRouter:
    """K replicas, N requests.

    Attributes:
        replica: [N] to which each request went last; -1 before.
        emitted: [N] output tokens that have come.
        in_flight: [K] requests that each replica has.
        num_continued_tokens, num_continued_left: of requests that went on elsewhere: tokens to be computed again,
            and output tokens that were expected of them yet.

    Args:
        prompt_lens: [N]
        lines: by pool.
        pool_of: [K] whose line each replica's is.
        limit: [K] requests that each may have.
        full_batch: [K] that it computes at saturation.
        delay_s: [K] one way to it.
    """

    def __init__(
        self,
        prompt_lens: I32,
        policy: Policy,
        *,
        lines: Sequence[StepLine],
        pool_of: I64,
        limit: I64,
        full_batch: F64,
        delay_s: F64,
    ) -> None:
        count, num = len(prompt_lens), len(limit)
        self.replica = np.full(count, -1, np.int64)
        self.emitted = np.zeros(count, np.int64)
        self.in_flight = np.zeros(num, np.int64)
        self.num_continued_tokens, self.num_continued_left = 0, 0.0
        self._prompt_lens = prompt_lens
        self._policy = policy
        self._look_ahead = LOOKS_AHEAD.get(policy, 0)
        self._lines = lines
        self._pool_of = pool_of
        self._limit = limit
        self._full_batch = full_batch
        self._delay_s = delay_s
        self._slowness = np.ones(num)
        self._prompt_tokens = np.zeros(num)
        self._output_tokens = np.zeros(num)
        self._answers = LengthPrediction()
        self._is_bound = np.zeros(count, np.bool_)
        self._awaits_first = np.zeros(count, np.bool_)  # token of the replica that has it
        self._queue, self._head = _NONE, 0
        self._reckoned_s = -inf
        self._mean_queued = 0.0, 0.0

    @property
    def num_queued(self) -> int:
        return len(self._queue) - self._head

    def enqueue(self, requests: I64, *, first: bool = False) -> None:
        """Let them wait, at the queue's end or before all others."""
        waiting = self._queue[self._head :]
        self._queue, self._head = np.concatenate((requests, waiting) if first else (waiting, requests)), 0

    def choose(self, now_s: float, serves: NDArray[np.bool_]) -> tuple[I64, I64, F64]:
        """Take from the queue what goes to a replica now, of those that serve.

        Returns:
            [M] each: requests, their replicas, and output tokens expected of them; to be bound.
        """
        nothing = _NONE, _NONE, np.zeros(0)
        num_queued = self.num_queued
        if num_queued == 0:
            return nothing
        if self._look_ahead and now_s - self._reckoned_s >= RECKON_EVERY_S:
            self._reckon(now_s)
        room = np.where(serves, self._limit - self.in_flight, 0)
        total = int(np.maximum(room, 0).sum())
        if total == 0:
            return nothing
        head = self._queue[self._head : self._head + total + self._look_ahead]
        prompt_lens = self._prompt_lens[head]
        expected = self._answers.expected(prompt_lens, np.full(len(prompt_lens), MAX_TOKENS))
        view = FleetView(
            room=room,
            in_flight=self.in_flight,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            costs=token_costs(
                [line.costs for line in self._lines], self._slowness, self._full_batch, self._pool_of
            ),
            delay_s=self._delay_s,
            num_queued=num_queued,
            mean_queued=self._mean_queued if num_queued > len(head) else (prompt_lens.mean(), expected.mean()),
            longest=self._answers.longest_of(float(self.in_flight.sum()), MAX_TOKENS),
        )
        picked, chosen = self._policy(view, prompt_lens, expected)
        requests = head[picked]
        if len(picked) < len(head):
            head[len(picked) :] = np.delete(head, picked)
        self._head += len(picked)
        return requests, chosen, expected[picked]

    def bind(self, requests: I64, replicas: I64, expected: F64) -> None:
        """What was chosen is sent."""
        num = len(self.in_flight)
        self.replica[requests] = replicas
        self._is_bound[requests] = self._awaits_first[requests] = True
        self.in_flight += np.bincount(replicas, minlength=num)
        self._prompt_tokens += np.bincount(replicas, weights=self._prompt_lens[requests], minlength=num)
        self._output_tokens += np.bincount(replicas, weights=expected, minlength=num)

    def take_in(self, replica: int, new: NewTokens, work: StepWork, step_s: float) -> tuple[I64, I64]:
        """What a step brought. Returns the requests whose first token it was, and those that ended."""
        line = self._lines[self._pool_of[replica]]
        line.observe(work.num_prefill_tokens, work.num_decode_tokens, step_s)
        self._slowness[replica] = observe_step(
            float(self._slowness[replica]), line.costs, work.num_prefill_tokens, work.num_decode_tokens, step_s
        )
        ids = new.ids.astype(np.int64)
        self.emitted[ids] += 1
        self._output_tokens[replica] -= len(ids)
        first = ended = _NONE
        if work.num_prefill_tokens:
            begun = ids[self._awaits_first[ids]]
            self._awaits_first[begun] = False
            self._prompt_tokens[replica] -= float(self._prompt_lens[begun].sum())
            first = begun[self.emitted[begun] == 1]
        if new.finish.any():
            ended = ids[new.finish != 0]
            self._is_bound[ended] = False
            self.in_flight[replica] -= len(ended)
            self._answers.observe(self._prompt_lens[ended], self.emitted[ended])
        return first, ended

    def lose(self, replica: int) -> I64:
        """It died: what it had waits again, before all others. Returns these requests."""
        had = np.flatnonzero(self._is_bound & (self.replica == replica))
        prompt_lens, emitted = self._prompt_lens[had], self.emitted[had]
        self.num_continued_tokens += int(prompt_lens.sum() + emitted.sum())
        limits = np.full(len(had), MAX_TOKENS)
        self.num_continued_left += float(self._answers.remaining(prompt_lens, emitted, limits).sum())
        self._is_bound[had] = False
        self.in_flight[replica] = 0
        self._prompt_tokens[replica] = self._output_tokens[replica] = 0.0
        self.enqueue(had, first=True)
        return had

    def _reckon(self, now_s: float) -> None:
        """As a router does of a finite batch: what is outstanding and waits, by how far all answers have come."""
        self._reckoned_s = now_s
        bound = np.flatnonzero(self._is_bound)
        prompt_lens, emitted = self._prompt_lens[bound], self.emitted[bound]
        self._answers.watch(prompt_lens, emitted)
        left = self._answers.remaining(prompt_lens, emitted, np.full(len(bound), MAX_TOKENS))
        self._output_tokens[:] = np.bincount(self.replica[bound], left, len(self.in_flight))
        waiting = self._prompt_lens[sample_of(self._queue[self._head :])]
        expected = self._answers.expected(waiting, np.full(len(waiting), MAX_TOKENS))
        self._mean_queued = float(waiting.mean()), float(expected.mean())
