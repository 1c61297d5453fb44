"""What a router keeps of each replica, model and pool. Data with the small steps that keep it whole; no sockets."""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum

from ..models.engine.protocol import StepRecord
from .addresses import ReplicaAddress
from .request_table import Request
from .router_stats import Histogram, ModelSnapshot, PoolSnapshot, ReplicaSnapshot
from .routing_policy import OutputLength, StepCurve, limit_in_flight, observe_slowness, tokens_per_s
from .wire import ReplicaStatus


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
    """The replicas of one model on one accelerator."""

    model: str
    name: str
    curve: StepCurve = field(default_factory=StepCurve)
    ttft: Histogram = field(default_factory=Histogram)
    tpot: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)

    def snapshot(self) -> PoolSnapshot:
        return PoolSnapshot(
            model=self.model,
            pool=self.name,
            ttft=self.ttft.snapshot(),
            tpot=self.tpot.snapshot(),
            e2e=self.e2e.snapshot(),
        )


@dataclass(slots=True, eq=False)
class Replica:
    """One replica.

    Attributes:
        endpoint: the way there; empty when there is none.
        connection: the name of its present connection; empty without one.
        last_heard_s, greeted_s, pinged_s: when it last said something, was last greeted, was last pinged.
        listed: still among the addresses given; an unlisted one only ends what it has.
        in_flight: requests that it holds, by slot.
        outbox: assigned, to be sent with the next flush. Requests may have left since.
        aborts: wire ids to abort with the next flush.
        num_others: requests of other routers that it holds, as last told.
    """

    address: ReplicaAddress
    pool: Pool
    endpoint: str
    last_heard_s: float
    state: ReplicaState = ReplicaState.CONNECTING
    reason: str = ""
    connection: str = ""
    greeted_s: float = float("-inf")
    pinged_s: float = float("-inf")
    listed: bool = True
    in_flight: dict[int, Request] = field(default_factory=dict)
    outbox: list[Request] = field(default_factory=list)
    aborts: list[int] = field(default_factory=list)
    outstanding_tokens: float = 0.0
    num_others: int = 0
    slowness: float = 1.0
    status: ReplicaStatus | None = None
    status_s: float = 0.0
    num_output_tokens: int = 0
    num_prompt_tokens: int = 0

    @property
    def replica_id(self) -> str:
        return self.address.replica_id

    @property
    def alive(self) -> bool:
        return self.state in (ReplicaState.READY, ReplicaState.DRAINING)

    @property
    def accepts(self) -> bool:
        return self.state is ReplicaState.READY and self.listed

    @property
    def may_accept_soon(self) -> bool:
        return self.listed and self.state in (ReplicaState.READY, ReplicaState.CONNECTING)

    def tokens_per_s(self) -> float | None:
        return tokens_per_s(self.pool.curve, self.slowness, self.address.max_num_seqs)

    def room(self, overcommit: float) -> int:
        limit = limit_in_flight(self.address.max_num_seqs, overcommit)
        return limit - len(self.in_flight) - self.num_others if self.accepts else 0

    def tokens_to_compute(self, mean_cost: float) -> float:
        """Outstanding here; `mean_cost` is reckoned for each request of other routers."""
        own = max(self.outstanding_tokens, len(self.in_flight))  # answers may be longer than expected
        return own + self.num_others * mean_cost

    def take(self, request: Request, num_emitted: int) -> None:
        """The request will be sent here."""
        request.replica_id = self.replica_id
        request.charge = request.cost
        request.num_prompt_charged = len(request.prompt_ids) + num_emitted
        self.in_flight[request.slot] = request
        self.outstanding_tokens += request.charge
        self.outbox.append(request)

    def prompt_is_computed(self, request: Request) -> None:
        """Its first row came."""
        self.outstanding_tokens -= request.num_prompt_charged
        request.charge -= request.num_prompt_charged
        request.num_prompt_charged = 0

    def release(self, request: Request, num_emitted: int) -> None:
        """The request is no longer here; what it did not need is no longer outstanding."""
        del self.in_flight[request.slot]
        request.replica_id = ""
        self.outstanding_tokens -= request.charge - (num_emitted - request.num_emitted_before)
        if not self.in_flight:
            self.outstanding_tokens = 0.0  # and with it what rounding left over

    def release_all(self) -> list[Request]:
        """It is lost: nothing is here any more. Returns what was, oldest first."""
        requests = sorted(self.in_flight.values(), key=lambda request: request.submitted_s)
        for request in requests:
            request.replica_id = ""
        self.in_flight.clear()
        self.outbox.clear()
        self.aborts.clear()
        self.outstanding_tokens = 0.0
        self.num_others = 0
        return requests

    def note_in_flight(self, num_in_flight: int) -> None:
        """The replica told how many requests it holds, of all routers."""
        alone = self.status is not None and self.status.num_gateways <= 1
        self.num_others = 0 if alone else max(0, num_in_flight - len(self.in_flight))

    def note_status(self, status: ReplicaStatus, now_s: float) -> None:
        self.status = status
        self.status_s = now_s
        self.note_in_flight(status.stats.num_running + status.stats.num_waiting)

    def book_step(self, step: StepRecord, num_tokens: int) -> None:
        """Learn from one step: its speed, and `num_tokens` that are no longer outstanding."""
        computed = step.num_prefill_tokens + step.num_decode_tokens
        self.pool.curve = self.pool.curve.observe(computed, step.step_s)
        self.slowness = observe_slowness(self.slowness, self.pool.curve, computed, step.step_s)
        self.outstanding_tokens -= num_tokens
        self.num_output_tokens += num_tokens

    def snapshot(self, now_s: float) -> ReplicaSnapshot:
        return ReplicaSnapshot(
            address=self.address,
            state=self.state.value,
            alive=self.alive,
            reason=self.reason,
            num_in_flight=len(self.in_flight),
            num_in_flight_others=self.num_others,
            outstanding_tokens=max(0.0, self.outstanding_tokens),
            tokens_per_s=self.tokens_per_s(),
            status=self.status,
            status_age_s=now_s - self.status_s if self.status else 0.0,
            num_output_tokens=self.num_output_tokens,
            num_prompt_tokens=self.num_prompt_tokens,
        )


@dataclass(slots=True, eq=False)
class Model:
    """One served model.

    Attributes:
        queue: requests waiting for a replica with room, by slot, in order.
        unserved_since_s: since when no replica could take its requests; None while one can.
    """

    name: str
    max_queued: int
    replicas: list[Replica] = field(default_factory=list)
    queue: OrderedDict[int, Request] = field(default_factory=OrderedDict)
    queued_tokens: float = 0.0
    answers: OutputLength = field(default_factory=OutputLength)
    unserved_since_s: float | None = None
    num_submitted: int = 0
    num_refused: int = 0
    num_finished: int = 0
    num_failed: int = 0
    num_aborted: int = 0
    num_continued: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0

    def enqueue(self, request: Request, num_emitted: int, first: bool = False) -> None:
        """Let it wait, at the queue's end or before all others; its cost is reckoned anew."""
        sampling = request.sampling
        expected = self.answers.expected(sampling.max_tokens, sampling.ignore_eos) - num_emitted
        request.cost = len(request.prompt_ids) + num_emitted + max(expected, 1.0)
        self.queue[request.slot] = request
        self.queue.move_to_end(request.slot, last=not first)
        self.queued_tokens += request.cost

    def dequeue(self, request: Request) -> None:
        del self.queue[request.slot]
        self.queued_tokens = self.queued_tokens - request.cost if self.queue else 0.0

    def snapshot(self) -> ModelSnapshot:
        return ModelSnapshot(
            model=self.name,
            num_queued=len(self.queue),
            num_in_flight=sum(len(replica.in_flight) for replica in self.replicas),
            num_submitted=self.num_submitted,
            num_refused=self.num_refused,
            num_finished=self.num_finished,
            num_failed=self.num_failed,
            num_aborted=self.num_aborted,
            num_continued=self.num_continued,
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            expected_output_tokens=self.answers.expected(1 << 31),
        )
