"""What a router keeps of each replica, pool and model. Data with the small steps that keep it whole; no sockets."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from ..models.engine.protocol import U64, StepRecord
from .addresses import ReplicaAddress
from .clumping import observe_shortest_step
from .index_pool import Indices
from .length_prediction import LengthPrediction
from .prefix_affinity import PrefixMap
from .replica_loads import F64, ReplicaLoads
from .request_queue import RequestQueue
from .request_table import NOWHERE, RequestTable
from .round_trip import RoundTrip
from .router_stats import Histogram, ModelSnapshot, PoolSnapshot, ReplicaSnapshot
from .routing_policy import limit_in_flight
from .speed import StepLine, TokenCosts, observe_step, token_costs
from .wire import ReplicaStatus

# Replicas of a pool whose slowness differs by less count as equal in how fast one answer grows.
SLOWNESS_GRAIN = 0.25
_NO_LIMIT = 1 << 31
_ONE = np.ones(1, np.int64)


class ReplicaState(StrEnum):
    """
    connecting ──Welcome──> ready ──Draining──> draining
         │                    │                    │
         └──────────────────> lost <───────────────┘      silence, a lost connection, Goodbye
                               └──Welcome──> ready
    refused: another wire version or other keys; ends with a new address only
    """

    CONNECTING = "connecting"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"
    REFUSED = "refused"


@dataclass(slots=True, eq=False)
class Pool:
    """The replicas of one model on one accelerator. `numbers` are theirs."""

    model: str
    name: str
    line: StepLine = field(default_factory=StepLine)
    replicas: "list[Replica]" = field(default_factory=list)
    numbers: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    ttft: Histogram = field(default_factory=Histogram)
    tpot: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)

    def set_replicas(self, replicas: "list[Replica]") -> None:
        self.replicas = replicas
        self.numbers = np.array([replica.number for replica in replicas], np.int64)

    @property
    def full_batch(self) -> int:
        """Requests in a full batch: replicas of one pool have equal engine settings. 1 when there are none."""
        return self.replicas[0].address.max_num_seqs if self.replicas else 1

    def snapshot(self) -> PoolSnapshot:
        return PoolSnapshot(
            model=self.model,
            pool=self.name,
            ttft=self.ttft.snapshot(),
            tpot=self.tpot.snapshot(),
            e2e=self.e2e.snapshot(),
        )


class Replica:
    """One replica.

    Attributes:
        number: its place in `loads`.
        endpoint: the way there; empty when there is none.
        connection: the name of its present connection; empty without one.
        last_heard_s, greeted_s, pinged_s: when it last said something, was last greeted, was last pinged.
        state, reason: see ReplicaState.
        listed: still among the addresses given; an unlisted one only ends what it has.
        step_began_s: when its present step began; in the far past when it has none or that is not known.
        shortest_step_s: of its steps of late; 0 before the first.
        outbox: wire ids bound to it, to be sent. Some may have left since.
        aborts: wire ids to abort with the next flush.
    """

    def __init__(
        self, address: ReplicaAddress, pool: Pool, loads: ReplicaLoads, overcommit: float, now_s: float
    ) -> None:
        self.address = address
        self.replica_id = address.replica_id
        self.pool = pool
        self.loads = loads
        self.number = loads.add(limit_in_flight(address.max_num_seqs, overcommit))
        self.endpoint = ""
        self.connection = ""
        self.last_heard_s = now_s
        self.greeted_s = self.pinged_s = float("-inf")
        self.reason = ""
        self.step_began_s = float("-inf")
        self.shortest_step_s = 0.0
        self.outbox: list[U64] = []
        self.aborts: list[int] = []
        self.status: ReplicaStatus | None = None
        self.status_s = 0.0
        self.num_output_tokens = 0
        self.num_prompt_tokens = 0
        self._round_trip = RoundTrip()
        self._state = ReplicaState.CONNECTING
        self._listed = True

    @property
    def state(self) -> ReplicaState:
        return self._state

    @state.setter
    def state(self, state: ReplicaState) -> None:
        self._state = state
        self.loads.set_accepts(self.number, self.accepts)

    @property
    def listed(self) -> bool:
        return self._listed

    @listed.setter
    def listed(self, listed: bool) -> None:
        self._listed = listed
        self.loads.set_accepts(self.number, self.accepts)

    @property
    def alive(self) -> bool:
        return self._state in (ReplicaState.READY, ReplicaState.DRAINING)

    @property
    def accepts(self) -> bool:
        return self._state is ReplicaState.READY and self._listed

    @property
    def may_accept_soon(self) -> bool:
        return self._listed and self._state in (ReplicaState.READY, ReplicaState.CONNECTING)

    @property
    def num_in_flight(self) -> int:
        return int(self.loads.num_in_flight[self.number])

    def tokens_per_s(self) -> float | None:
        """Output tokens at a full batch; None before its pool was measured."""
        if (costs := self.pool.line.costs) is None:
            return None
        num_seqs = self.address.max_num_seqs
        return num_seqs / (costs.step_s(0, num_seqs) * float(self.loads.slowness[self.number]))

    def compute_prompts(self, table: RequestTable, slots: Indices) -> None:
        """The first rows of these came: their prompts are no longer outstanding."""
        self.loads.prompt_tokens[self.number] -= table.prompt_charge[slots].sum()
        table.prompt_charge[slots] = 0

    def release(self, table: RequestTable, slots: Indices) -> None:
        """These are no longer here; what they did not need is no longer outstanding."""
        emitted = table.num_emitted[slots] - table.num_emitted_before[slots]
        table.replica[slots] = NOWHERE
        prompt_tokens, output_tokens = table.prompt_charge[slots].sum(), (table.charge[slots] - emitted).sum()
        self.loads.release(self.number, len(slots), float(prompt_tokens), float(output_tokens))

    def release_all(self, table: RequestTable) -> tuple[Indices, NDArray[np.bool_]]:
        """It is lost: nothing is here any more. Returns what was, oldest first, and which of these were sent."""
        slots = table.at_replica(self.number)
        unsent = np.concatenate([np.zeros(0, np.uint64), *self.outbox])
        sent = ~np.isin(table.wire_ids[slots], unsent)
        table.replica[slots] = NOWHERE
        self.outbox.clear()
        self.aborts.clear()
        self.loads.clear(self.number)
        return slots, sent

    def note_step_end(self, step_s: float, num_in_flight: int, now_s: float) -> None:
        """An Output came: with work left, the next step began when it was sent."""
        self.shortest_step_s = observe_shortest_step(self.shortest_step_s, step_s)
        delay_s = float(self.loads.delay_s[self.number])
        self.step_began_s = now_s - delay_s if num_in_flight else float("-inf")
        self.note_in_flight(num_in_flight)

    def note_round_trip(self, measured_s: float, away_s: float) -> None:
        """A Ping came back."""
        self._round_trip = self._round_trip.observe(measured_s, away_s)
        self.loads.delay_s[self.number] = 0.5 * self._round_trip.mean_s

    def note_in_flight(self, num_in_flight: int) -> None:
        """The replica told how many requests it holds, of all routers."""
        alone = self.status is not None and self.status.num_gateways <= 1
        self.loads.set_others(self.number, 0 if alone else max(0, num_in_flight - self.num_in_flight))

    def note_status(self, status: ReplicaStatus, now_s: float) -> None:
        self.status = status
        self.status_s = now_s
        self.note_in_flight(status.stats.num_running + status.stats.num_waiting)

    def book_step(self, step: StepRecord, num_tokens: int) -> None:
        """Learn from one step: its speed, and `num_tokens` that are no longer outstanding."""
        number, loads, line = self.number, self.loads, self.pool.line
        num_prompt, num_decode = step.num_prefill_tokens, step.num_decode_tokens
        line.observe(num_prompt, num_decode, step.step_s)
        slowness = float(loads.slowness[number])
        loads.slowness[number] = observe_step(slowness, line.costs, num_prompt, num_decode, step.step_s)
        loads.output_tokens[number] -= num_tokens
        self.num_output_tokens += num_tokens

    def snapshot(self, now_s: float) -> ReplicaSnapshot:
        loads, number = self.loads, self.number
        return ReplicaSnapshot(
            address=self.address,
            state=self._state.value,
            alive=self.alive,
            reason=self.reason,
            num_in_flight=self.num_in_flight,
            num_in_flight_others=int(self.loads.num_others[self.number]),
            outstanding_tokens=float(loads.prompt_tokens[number] + max(0.0, loads.output_tokens[number])),
            tokens_per_s=self.tokens_per_s(),
            status=self.status,
            status_age_s=now_s - self.status_s if self.status else 0.0,
            num_output_tokens=self.num_output_tokens,
            num_prompt_tokens=self.num_prompt_tokens,
            delay_s=float(self.loads.delay_s[self.number]),
        )


class Model:
    """One served model.

    Attributes:
        number: its place in the router's list of models.
        pools: with the replicas, in this order wherever arrays have one item per replica.
        queue: requests waiting for a replica with room.
        unserved_since_s: since when no replica could take its requests; None while one can.
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
        self.num_submitted = 0
        self.num_refused = 0
        self.num_finished = 0
        self.num_failed = 0
        self.num_aborted = 0
        self.num_continued = 0
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
        of, slowness = self._pool_of[rows], self._loads.slowness[self.numbers[rows]]
        # Times the steps of an answer, a noise of some per cent would outweigh the work that replicas have.
        felt = np.maximum(np.rint(slowness / SLOWNESS_GRAIN) * SLOWNESS_GRAIN, SLOWNESS_GRAIN)
        return TokenCosts(
            costs.step_s[of] * felt, costs.prompt_token_s[of] * slowness, costs.output_token_s[of] * slowness
        )

    def expected_tokens(self, slots: Indices) -> F64:
        """[N] output tokens that requests are expected to bring yet."""
        table = self._table
        emitted, max_tokens = table.num_emitted[slots], table.max_tokens[slots]
        expected: F64 = np.maximum(max_tokens - emitted, 1).astype(np.float64)
        open_ended = (table.ignore_eos[slots] == 0).nonzero()[0]
        if len(open_ended):
            prompt_lens = table.prompt_lens[slots[open_ended]]
            expected[open_ended] = self.answers.remaining(prompt_lens, emitted[open_ended], max_tokens[open_ended])
        return expected

    def note_answers(self, slots: Indices) -> None:
        """These ended. Those that could not end by themselves tell nothing of answers' lengths."""
        table = self._table
        slots = slots[table.ignore_eos[slots] == 0]
        if len(slots):
            self.answers.observe(table.prompt_lens[slots], table.num_emitted[slots])

    def queued_tokens(self) -> float:
        """Output tokens expected of what waits."""
        return float(self.expected_tokens(self.queue.all()).sum())

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
        )
