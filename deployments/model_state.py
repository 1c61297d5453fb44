"""What a router keeps of each model: its pools, the requests that wait, and what its answers were like."""

import math

import numpy as np

from .index_pool import Indices
from .length_prediction import LengthPrediction
from .prefix_affinity import PrefixMap
from .replica_loads import F64, ReplicaLoads
from .request_loops import NOWHERE, expect
from .request_queue import RequestQueue, sample_of
from .request_table import RequestTable
from .router_state import Pool, Replica
from .router_stats import ModelSnapshot
from .speed import TokenCosts, costs_of_replicas, token_costs

_NO_LIMIT = 1 << 31
_ONE = np.ones(1, np.int64)


class Model:
    """One served model.

    Attributes:
        number: its place in the router's list of models.
        pools: with the replicas, in this order wherever arrays have one item per replica.
        queue: requests waiting for a replica with room.
        unserved_since_s: since when no replica could take its requests; None while one can.
        reckoned_s: when `reckon` was called.
        mean_queued: prompt and expected output tokens of what waited then, means.
    """

    def __init__(self, name: str, number: int, max_queued: int, table: RequestTable, loads: ReplicaLoads) -> None:
        self.name = name
        self.number = number
        self.max_queued = max_queued
        self.pools: list[Pool] = []
        self.replicas: list[Replica] = []
        self.numbers = np.zeros(0, np.int64)
        self._pool_of = np.zeros(0, np.int64)
        self.queue = RequestQueue(table)
        self.answers = LengthPrediction()
        self.prefixes = PrefixMap()
        self.unserved_since_s: float | None = None
        self.reckoned_s = -math.inf
        self.mean_queued = 0.0, 0.0
        self.num_submitted = 0
        self.num_refused = 0
        self.num_finished = 0
        self.num_failed = 0
        self.num_aborted = 0
        self.num_continued = 0
        self.num_continued_tokens, self.num_continued_left = 0, 0.0
        self.num_prompt_tokens = 0
        self.num_output_tokens = 0
        self._table = table
        self._loads = loads

    def note_replicas(self) -> None:
        """The replicas of its pools are others now."""
        self.replicas = [replica for pool in self.pools for replica in pool.replicas]
        self.numbers = np.array([replica.number for replica in self.replicas], np.int64)
        self._pool_of = np.repeat(np.arange(len(self.pools)), [len(pool.replicas) for pool in self.pools])

    def token_costs(self, rows: Indices) -> TokenCosts:
        """What tokens cost at these of its replicas. Pools not measured yet count as the mean of the others."""
        full_batch = np.array([pool.full_batch for pool in self.pools], np.float64)
        costs = token_costs([pool.line.costs for pool in self.pools], np.ones(len(self.pools)), full_batch)
        return costs_of_replicas(costs, self._pool_of[rows], self._loads.slowness[self.numbers[rows]])

    def expected_tokens(self, slots: Indices) -> tuple[Indices, F64]:
        """[N] prompt tokens of requests to be sent, with what they have emitted, and output tokens expected of them
        yet."""
        table = self._table
        emitted, max_tokens = table.num_emitted, table.max_tokens
        prompts, expected, open_ended = expect(slots, table.prompt_lens, emitted, max_tokens, table.ignore_eos)
        if len(open_ended):
            those = slots[open_ended]
            expected[open_ended] = self.answers.remaining(
                table.prompt_lens[those], emitted[those], max_tokens[those]
            )
        return prompts, expected

    def reckon(self, now_s: float) -> None:
        """What is outstanding at its replicas and what waits, by how far all answers have come.

        When a request was bound, its answer was expected to be as long as others. Those that run are long ones.
        """
        table, loads = self._table, self._loads
        self.reckoned_s = now_s
        slots = np.flatnonzero((table.replica != NOWHERE) & (table.model == self.number))
        emitted = table.num_emitted[slots]
        open_ended = table.ignore_eos[slots] == 0
        self.answers.watch(table.prompt_lens[slots[open_ended]], emitted[open_ended])
        _, output_tokens = self.expected_tokens(slots)
        table.charge[slots] = emitted - table.num_emitted_before[slots] + output_tokens
        outstanding = np.bincount(table.replica[slots], output_tokens, len(loads.limit))
        loads.output_tokens[self.numbers] = outstanding[self.numbers]
        prompt_tokens, output_tokens = self.expected_tokens(sample_of(self.queue.all()))
        self.mean_queued = float(prompt_tokens.mean()), float(output_tokens.mean())

    def queued_tokens(self) -> float:
        """Output tokens expected of what waits."""
        return float(self.expected_tokens(self.queue.all())[1].sum())

    def enqueue(self, slots: Indices, first: bool = False) -> None:
        """Let them wait, at the queue's end or before all others."""
        self._loads.has_news = True
        if first:
            self.queue.push_first(slots)
        else:
            self.queue.push(slots)

    def snapshot(self) -> ModelSnapshot:
        return ModelSnapshot(
            model=self.name,
            num_queued=len(self.queue),
            num_in_flight=int(self._loads.num_in_flight[self.numbers].sum()),
            num_submitted=self.num_submitted,
            num_refused=self.num_refused,
            num_finished=self.num_finished,
            num_failed=self.num_failed,
            num_aborted=self.num_aborted,
            num_continued=self.num_continued,
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            expected_output_tokens=float(self.answers.expected(_ONE, _ONE * _NO_LIMIT)[0]),
            num_continued_tokens=self.num_continued_tokens,
            num_continued_left=self.num_continued_left,
        )
