"""Scaling efficiency of one model over a window, and where the rest went. Pure: counters and times in, figures out.

    sum of baselines  =  measured  +  no demand  +  starved  +  unexplained          all in tokens/s

    replica 0  |########################|  busy
    replica 1  |#########.......########|  idle while requests wait elsewhere:  starved
    replica 2  |##################......|  idle, and nothing waits anywhere:    no demand

An idle second costs the replica's baseline rate; what neither kind of idling explains is `unexplained`, which is
negative where replicas run faster than their baseline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

# Of the requests in flight when the baseline was measured; with fewer, replicas are slower for want of work.
SATURATED_IN_FLIGHT_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class ReplicaCounters:
    """One replica of the model at one moment.

    Attributes:
        replica: its identity; a replica that starts anew has a new one.
        node: the node it runs on.
        accelerator: what it computes on; `Yardstick`s are looked up by it.
        output_tokens: tokens generated since it started.
        idle_s: seconds without any request since it started.
        num_running: requests in its steps now.
        num_waiting: requests in its own queue now.
    """

    replica: str
    node: str
    accelerator: str
    output_tokens: int
    idle_s: float
    num_running: int
    num_waiting: int


@dataclass(frozen=True, slots=True)
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
        return self.num_waiting + sum(replica.num_running for replica in self.replicas)


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


def account(samples: Sequence[ModelCounters], yardsticks: Mapping[str, Yardstick]) -> Ledger | None:
    """The ledger of one model over `samples`, oldest first.

    A replica counts in the intervals at whose both ends it stands, so one that comes or goes within the window is
    provisioned for its own part of it. Whether work waited is known at the samples only; an interval with waiting
    work at one end has half of its idle time charged as starved.

    Args:
        samples: at least two, with growing times.
        yardsticks: by accelerator.

    Returns None when no replica stands at both ends of any interval, or one has no yardstick.
    """
    window_s = samples[-1].time_s - samples[0].time_s if samples else 0.0
    known = all(replica.accelerator in yardsticks for sample in samples for replica in sample.replicas)
    if window_s <= 0 or not known:
        return None
    tokens, baseline_tokens, starved_tokens, no_demand_tokens = 0, 0.0, 0.0, 0.0
    for before, after in pairwise(samples):
        interval_s = after.time_s - before.time_s
        waiting_share = ((before.num_waiting > 0) + (after.num_waiting > 0)) / 2
        for old, new in _standing(before, after):
            yardstick = yardsticks[new.accelerator]
            idle_tokens = yardstick.tokens_per_s * min(max(new.idle_s - old.idle_s, 0.0), interval_s)
            tokens += new.output_tokens - old.output_tokens
            baseline_tokens += yardstick.tokens_per_s * interval_s
            starved_tokens += idle_tokens * waiting_share
            no_demand_tokens += idle_tokens * (1 - waiting_share)
    if baseline_tokens == 0:
        return None
    return Ledger(
        window_s=window_s,
        measured=tokens / window_s,
        baseline=baseline_tokens / window_s,
        no_demand=no_demand_tokens / window_s,
        starved=starved_tokens / window_s,
        saturated=_is_saturated(samples, yardsticks),
    )


def tokens_per_s(samples: Sequence[ModelCounters]) -> dict[str, float]:
    """Output tokens per second by replica over `samples`, for those that stand at both ends of some interval."""
    window_s = samples[-1].time_s - samples[0].time_s if samples else 0.0
    tokens: dict[str, int] = {}
    for before, after in pairwise(samples):
        for old, new in _standing(before, after):
            tokens[new.replica] = tokens.get(new.replica, 0) + new.output_tokens - old.output_tokens
    return {replica: count / window_s for replica, count in tokens.items()} if window_s > 0 else {}


def _standing(before: ModelCounters, after: ModelCounters) -> list[tuple[ReplicaCounters, ReplicaCounters]]:
    """Replicas that stand at both moments. Counters that went back belong to a new life of the replica."""
    earlier = {replica.replica: replica for replica in before.replicas}
    return [
        (earlier[new.replica], new)
        for new in after.replicas
        if new.replica in earlier and new.output_tokens >= earlier[new.replica].output_tokens
    ]


def _is_saturated(samples: Sequence[ModelCounters], yardsticks: Mapping[str, Yardstick]) -> bool:
    """Requests in flight, more than wanted never making up for less at another moment, against those wanted."""
    wanted = [sum(yardsticks[replica.accelerator].num_in_flight for replica in s.replicas) for s in samples]
    present = [min(sample.num_in_flight, want) for sample, want in zip(samples, wanted, strict=True)]
    return sum(present) >= SATURATED_IN_FLIGHT_SHARE * sum(wanted)
