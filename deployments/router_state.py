"""What a router keeps of each replica and pool. Data with the small steps that keep it whole; no sockets."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from ..models.engine.protocol import U64, StepRecord
from . import request_loops
from .addresses import ReplicaAddress
from .arrival import Arrivals
from .clumping import observe_shortest_step
from .index_pool import Indices
from .replica_loads import NEVER, ReplicaLoads
from .request_table import NOWHERE, RequestTable
from .round_trip import RoundTrip
from .router_stats import Histogram, PoolSnapshot, ReplicaSnapshot
from .routing_policy import limit_in_flight
from .speed import StepLine, observe_step
from .wire import Output, ReplicaStatus


class ReplicaState(StrEnum):
    """
    connecting ──Welcome──> ready ──Draining──> draining
         │                    │                    │
         └──────────────────> lost <───────────────┘      silence, a lost connection, Goodbye
                               └──Welcome──> ready
    refused: another wire version or other keys; ends with a new address only
    quarantined: how snapshots call one that is ready and kept out of routing
    """

    CONNECTING = "connecting"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"
    REFUSED = "refused"
    QUARANTINED = "quarantined"


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
        quarantined: kept out of routing: it ends what it has, and is connected still.
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
        self._shortest_step_s = 0.0
        self.outbox: list[U64] = []
        self.aborts: list[int] = []
        self.status: ReplicaStatus | None = None
        self.status_s = 0.0
        self.num_output_tokens = 0
        self.status_in_flight_s = 0.0
        self._in_flight_s, self._in_flight_until_s = 0.0, now_s
        self._round_trip = RoundTrip()
        self._arrivals = Arrivals()
        self._state = ReplicaState.CONNECTING
        self._listed = True
        self._quarantined = False

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
    def quarantined(self) -> bool:
        return self._quarantined

    @quarantined.setter
    def quarantined(self, quarantined: bool) -> None:
        if quarantined != self._quarantined:
            self._quarantined = quarantined
            self.loads.set_accepts(self.number, self.accepts)

    @property
    def alive(self) -> bool:
        return self._state in (ReplicaState.READY, ReplicaState.DRAINING)

    @property
    def accepts(self) -> bool:
        return self._state is ReplicaState.READY and self._listed and not self._quarantined

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

    def note_step_end(self, output: Output, now_s: float) -> None:
        """An Output came. Learn from its step how fast the replica is; with work left, the next step began when it
        was sent."""
        loads, number = self.loads, self.number
        self._learn_speed(output.outputs.step)
        self._shortest_step_s = observe_shortest_step(self._shortest_step_s, output.outputs.step.step_s)
        began_s = self._arrivals.at_s(output.sent_s, now_s) - float(loads.delay_s[number])
        if not output.num_in_flight:
            loads.intake_s[number] = -NEVER
        elif output.intake is not None:
            loads.intake_s[number] = began_s + output.intake.in_s
            loads.intake_every_s[number] = output.intake.every_s
        else:
            loads.intake_s[number] = began_s + self._shortest_step_s
            loads.intake_every_s[number] = self._shortest_step_s
        self.note_in_flight(output.num_in_flight)

    def note_round_trip(self, measured_s: float, away_s: float) -> None:
        """A Ping came back."""
        self._round_trip = self._round_trip.observe(measured_s, away_s)
        self.loads.delay_s[self.number] = 0.5 * self._round_trip.mean_s

    def note_in_flight(self, num_in_flight: int) -> None:
        """The replica told how many requests it holds, of all routers."""
        alone = self.status is not None and self.status.num_gateways <= 1
        self.loads.set_others(self.number, 0 if alone else max(0, num_in_flight - self.num_in_flight))

    def book_in_flight(self, now_s: float) -> None:
        """Ask before each message that may change it. Requests bound meanwhile count from the message before."""
        self._in_flight_s += self.num_in_flight * (now_s - self._in_flight_until_s)
        self._in_flight_until_s = now_s

    def note_status(self, status: ReplicaStatus, now_s: float) -> None:
        self.book_in_flight(now_s)
        self.status_in_flight_s = self._in_flight_s
        self.status = status
        self.status_s = now_s
        self.note_in_flight(status.stats.num_running + status.stats.num_waiting)

    def book_tokens(self, num_tokens: int) -> None:
        """So many have come, and are no longer outstanding."""
        self.loads.output_tokens[self.number] -= num_tokens
        self.num_output_tokens += num_tokens

    def _learn_speed(self, step: StepRecord) -> None:
        loads, line = self.loads, self.pool.line
        num_prompt, num_decode = step.num_prefill_tokens, step.num_decode_tokens
        line.observe(num_prompt, num_decode, step.step_s)
        slowness = float(loads.slowness[self.number])
        loads.slowness[self.number] = observe_step(slowness, line.costs, num_prompt, num_decode, step.step_s)

    def snapshot(self, now_s: float) -> ReplicaSnapshot:
        loads, number = self.loads, self.number
        return ReplicaSnapshot(
            address=self.address,
            state=(ReplicaState.QUARANTINED if self._quarantined and self.alive else self._state).value,
            alive=self.alive,
            reason=self.reason,
            num_in_flight=self.num_in_flight,
            num_in_flight_others=int(self.loads.num_others[self.number]),
            outstanding_tokens=float(loads.prompt_tokens[number] + max(0.0, loads.output_tokens[number])),
            tokens_per_s=self.tokens_per_s(),
            status=self.status,
            status_age_s=now_s - self.status_s if self.status else 0.0,
            num_output_tokens=self.num_output_tokens,
            num_prompt_tokens=int(self.loads.num_prompt_tokens[self.number]),
            delay_s=float(self.loads.delay_s[self.number]),
            in_flight_s=self.status_in_flight_s,
        )


def release(loads: ReplicaLoads, table: RequestTable, slots: Indices) -> None:
    """These, which differ, are no longer at the replicas that they are bound to, and what they did not need is no
    longer outstanding there."""
    request_loops.release(slots, table.charges(), loads.outstanding())
    loads.has_news = True
