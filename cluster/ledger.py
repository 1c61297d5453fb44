"""Scaling efficiency of one model over a window, and where the rest went. Pure: counters and times in, figures out.

    sum of baselines  =  measured  +  no demand  +  starved  +  unexplained          all in tokens/s

    replica 0  |########################|  busy
    replica 1  |#########.......########|  idle while requests wait elsewhere:  starved
    replica 2  |##################......|  idle, and nothing waits anywhere:    no demand

An idle second costs the replica's baseline rate; what neither kind of idling explains is `unexplained`, which is
negative where replicas run faster than their baseline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

# Of the requests in flight when the baseline was measured; with fewer, replicas are slower for want of work.
SATURATED_IN_FLIGHT_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaCounters:
    """One replica of the model as it last told.

    Attributes:
        replica: its identity.
        node: the node it runs on.
        yardstick: name of the `Yardstick` that it is measured by.
        service_s: its own time in service when it told; goes back when it starts anew.
        idle_s: of that, without work.
        output_tokens: generated in that time.
        num_in_flight: requests that it holds.
        num_waiting: of these, in its own queue.
    """

    replica: str
    node: str
    yardstick: str
    service_s: float
    idle_s: float
    output_tokens: int
    num_in_flight: int
    num_waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCounters:
    """All replicas of one model at one moment.

    Attributes:
        time_s: when, on any clock that only goes forward.
        num_queued: requests that no replica has yet.
    """

    time_s: float
    num_queued: int
    replicas: tuple[ReplicaCounters, ...]

    @property
    def num_waiting(self) -> int:
        return self.num_queued + sum(replica.num_waiting for replica in self.replicas)

    @property
    def num_in_flight(self) -> int:
        return self.num_queued + sum(replica.num_in_flight for replica in self.replicas)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What the ledger takes from a baseline, per replica.

    Attributes:
        tokens_per_s: output tokens at saturation.
        num_in_flight: requests that a replica held then.
    """

    tokens_per_s: float
    num_in_flight: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """The account of one window, in output tokens per second of the whole model.

    Attributes:
        window_s: length of the window.
        measured: what was generated.
        baseline: the sum of the baselines of what was provisioned.
        no_demand: lost to replicas idle while nothing waited anywhere.
        starved: lost to replicas idle while requests waited elsewhere.
        saturated: there was as much work all along as when the baselines were measured.
    """

    window_s: float
    measured: float
    baseline: float
    no_demand: float
    starved: float
    saturated: bool

    @property
    def gap(self) -> float:
        return self.baseline - self.measured

    @property
    def unexplained(self) -> float:
        """The rest of the gap; negative where replicas were faster than their baseline."""
        return self.gap - self.no_demand - self.starved

    @property
    def efficiency(self) -> float | None:
        """Measured over the sum of baselines; None unless the window was saturated."""
        return self.measured / self.baseline if self.saturated else None

    @property
    def headroom(self) -> float | None:
        """Tokens/s that more load could still get; None in a saturated window."""
        return None if self.saturated else max(0.0, self.gap)

    @property
    def losses(self) -> dict[str, float]:
        """The columns by name; they sum to the gap."""
        return {"no demand": self.no_demand, "starved": self.starved, "unexplained": self.unexplained}


@dataclass(slots=True)
class _Tally:
    """What one replica did in the intervals at whose both ends it stood.

    Its counters are as old as its last message, so they cover `service_s` on its own clock, not quite the
    `standing_s` of those intervals: everything is scaled from the one to the other.
    """

    yardstick: str
    standing_s: float = 0.0
    service_s: float = 0.0
    tokens: int = 0
    idle_s: dict[str, float] = field(default_factory=lambda: {"starved": 0.0, "no demand": 0.0})

    @property
    def scale(self) -> float:
        return self.standing_s / self.service_s


def account(
    samples: Sequence[ModelCounters], yardsticks: Mapping[str, Yardstick], *, measured: float | None = None
) -> Ledger | None:
    """The ledger of one model over `samples`, oldest first.

    A replica counts in the intervals at whose both ends it stands, so one that comes or goes within the window is
    provisioned for its own part of it. Whether work waited is known at the samples only; an interval with waiting
    work at one end has half of its idle time charged as starved.

    Args:
        samples: at least two, with growing times.
        yardsticks: by name.
        measured: output tokens/s over the window as a client counted them; None takes what the replicas told.

    Returns None when no replica stands at both ends of any interval, or one has no yardstick.
    """
    window_s = _window_s(samples)
    tallies = _tallies(samples)
    known = all(replica.yardstick in yardsticks for sample in samples for replica in sample.replicas)
    if not tallies or not known:
        return None
    baseline, told, idle = 0.0, 0.0, {"starved": 0.0, "no demand": 0.0}
    for tally in tallies.values():
        rate = yardsticks[tally.yardstick].tokens_per_s
        baseline += rate * tally.standing_s / window_s
        told += tally.tokens * tally.scale / window_s
        for reason, seconds in tally.idle_s.items():
            idle[reason] += rate * seconds * tally.scale / window_s
    return Ledger(
        window_s=window_s,
        measured=told if measured is None else measured,
        baseline=baseline,
        no_demand=idle["no demand"],
        starved=idle["starved"],
        saturated=_is_saturated(samples, yardsticks),
    )


def tokens_per_s(samples: Sequence[ModelCounters]) -> dict[str, float]:
    """Output tokens per second by replica over `samples`, for those that stand at both ends of some interval."""
    window_s = _window_s(samples)
    return {replica: tally.tokens * tally.scale / window_s for replica, tally in _tallies(samples).items()}


def _window_s(samples: Sequence[ModelCounters]) -> float:
    return samples[-1].time_s - samples[0].time_s if samples else 0.0


def _tallies(samples: Sequence[ModelCounters]) -> dict[str, _Tally]:
    """By replica; those that told nothing new are left out."""
    tallies: dict[str, _Tally] = {}
    for before, after in pairwise(samples):
        earlier = {replica.replica: replica for replica in before.replicas}
        waiting_share = ((before.num_waiting > 0) + (after.num_waiting > 0)) / 2
        for new in after.replicas:
            old = earlier.get(new.replica)
            if old is None or _started_anew(old, new):
                continue
            tally = tallies.setdefault(new.replica, _Tally(new.yardstick))
            span_s = new.service_s - old.service_s
            idle_s = min(new.idle_s - old.idle_s, span_s)
            tally.standing_s += after.time_s - before.time_s
            tally.service_s += span_s
            tally.tokens += new.output_tokens - old.output_tokens
            tally.idle_s["starved"] += idle_s * waiting_share
            tally.idle_s["no demand"] += idle_s * (1 - waiting_share)
    return {replica: tally for replica, tally in tallies.items() if tally.service_s > 0 and tally.standing_s > 0}


def _started_anew(old: ReplicaCounters, new: ReplicaCounters) -> bool:
    return new.service_s < old.service_s or new.idle_s < old.idle_s or new.output_tokens < old.output_tokens


def _is_saturated(samples: Sequence[ModelCounters], yardsticks: Mapping[str, Yardstick]) -> bool:
    """Requests in flight, more than wanted never making up for less at another moment, against those wanted."""
    wanted = [sum(yardsticks[replica.yardstick].num_in_flight for replica in s.replicas) for s in samples]
    present = [min(sample.num_in_flight, want) for sample, want in zip(samples, wanted, strict=True)]
    return sum(present) >= SATURATED_IN_FLIGHT_SHARE * sum(wanted)
