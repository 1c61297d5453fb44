"""What the ledger reads: counters of replicas, and what passed between two looks at one."""

from dataclasses import dataclass
from enum import StrEnum

from ...deployments.step_account import NO_STEPS, StepTotals


class Presence(StrEnum):
    """How a provisioned replica stands; each but `serving` is the reason for whatever it does not compute."""

    SERVING = "serving"
    DRAINING = "draining"  # finishes what it has and gets nothing new
    QUARANTINED = "quarantined"  # answers, but is kept out of routing
    STARTING = "starting"  # its accelerator is there, its engine is not yet
    DEAD = "dead"  # does not answer

    @property
    def answers(self) -> bool:
        """It has counters that go on."""
        return self in (Presence.SERVING, Presence.DRAINING, Presence.QUARANTINED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaCounters:
    """One replica of the model as it last told.

    Attributes:
        replica: its identity.
        node: the node it runs on.
        pool: its pool.
        yardstick: name of the `Yardstick` that it is measured by.
        presence: see there. Without answers only the names above count.
        service_s: its own time in service when it told; goes back when it starts anew.
        idle_s: of that, without work.
        output_tokens: generated in that time.
        num_in_flight: requests that it holds, now.
        num_waiting: of these, in its own queue.
        steps: what its steps add up to.
        in_flight_s: request-seconds that routers had bound to it by then; None where no router tells.
    """

    replica: str
    node: str
    yardstick: str
    pool: str = ""
    presence: Presence = Presence.SERVING
    service_s: float = 0.0
    idle_s: float = 0.0
    output_tokens: int = 0
    num_in_flight: int = 0
    num_waiting: int = 0
    steps: StepTotals = NO_STEPS
    in_flight_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCounters:
    """All provisioned replicas of one model at one moment.

    Attributes:
        time_s: when, on any clock that only goes forward.
        num_queued: requests that no replica has yet.
        num_continued_tokens: of prompts and answers, in all, sent to another replica because theirs died.
        num_continued_left: output tokens that were still expected of these, in all.
    """

    time_s: float
    num_queued: int
    replicas: tuple[ReplicaCounters, ...]
    num_continued_tokens: int = 0
    num_continued_left: float = 0.0

    @property
    def num_in_flight(self) -> int:
        return self.num_queued + sum(replica.num_in_flight for replica in self.replicas)


@dataclass(frozen=True, slots=True)
class Span:
    """What one replica did between two looks.

    Attributes:
        seconds: of its time in service, up to the end of its last step.
        idle_s: of them, without work.
        in_flight: requests bound to it, mean; None where no router tells.
    """

    seconds: float
    idle_s: float
    output_tokens: int
    steps: StepTotals
    in_flight: float | None

    @property
    def working_s(self) -> float:
        return self.seconds - self.idle_s


def unborn(replica: ReplicaCounters) -> ReplicaCounters:
    """As it was at the beginning of its service."""
    return ReplicaCounters(
        replica=replica.replica,
        node=replica.node,
        yardstick=replica.yardstick,
        pool=replica.pool,
        in_flight_s=None if replica.in_flight_s is None else 0.0,
    )


def span_between(old: ReplicaCounters, new: ReplicaCounters) -> Span | None:
    """None when it told nothing new, started anew in between, or does not answer."""
    if not (old.presence.answers and new.presence.answers):
        return None
    service_s = new.service_s - old.service_s
    idle_s, num_tokens = new.idle_s - old.idle_s, new.output_tokens - old.output_tokens
    steps = new.steps.since(old.steps)
    seconds = service_s - steps.open_s
    if service_s <= 0.0 or seconds <= 0.0 or idle_s < 0.0 or num_tokens < 0 or steps.step_s < 0.0:
        return None
    in_flight = None
    if old.in_flight_s is not None and new.in_flight_s is not None and new.in_flight_s >= old.in_flight_s:
        in_flight = (new.in_flight_s - old.in_flight_s) / service_s
    return Span(seconds, min(idle_s, seconds), num_tokens, steps, in_flight)
