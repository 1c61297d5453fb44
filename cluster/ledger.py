"""Scaling efficiency of one model over a window, and where the rest went. Pure: counters and times in, figures out.

    sum of baselines  =  measured  +  no demand  +  starved  +  control plane  +  unexplained     all in tokens/s

    replica 0  |########################|  busy
    replica 1  |#########.......########|  idle while requests wait elsewhere:         starved
    replica 2  |######~~###~~###~~######|  idle while its own work is on the way, or
                                           at work but between steps:                  control plane
    replica 3  |##################......|  idle, and nothing waits anywhere:           no demand

Each such second costs the replica's baseline rate and is in one column only; what they do not explain is
`unexplained`, which is negative where replicas run faster than their baseline.
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
        overhead_s: of it, with work but between steps.
        handover_s: of it, without work while a router had already given it some: as the routers count, to which it
            took from the decision to the first step.
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
    overhead_s: float = 0.0
    handover_s: float = 0.0


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

    @property
    def waiting_for(self) -> str | None:
        """What an idle replica lacks work for: `starved` when others have more than they can do, `control plane`
        when requests wait and no replica has any, None when none wait."""
        if self.num_waiting == 0:
            return None
        return "starved" if any(replica.num_in_flight > 0 for replica in self.replicas) else "control plane"


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What the ledger takes from a baseline, per replica.

    Attributes:
        tokens_per_s: output tokens at saturation.
        num_in_flight: requests that a replica held then.
        overhead_share: of its time with work, what it then spent between steps: so much is in its rate already.
    """

    tokens_per_s: float
    num_in_flight: float
    overhead_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Ledger:
    """The account of one window, in output tokens per second of the whole model.

    Attributes:
        window_s: length of the window.
        measured: what was generated.
        baseline: the sum of the baselines of what was provisioned.
        no_demand: lost to replicas idle while nothing waited anywhere.
        starved: lost to replicas idle while requests waited elsewhere.
        control_plane: lost to replicas whose work was on its way to them, or which were between steps.
        saturated: there was as much work all along as when the baselines were measured.
    """

    window_s: float
    measured: float
    baseline: float
    no_demand: float
    starved: float
    saturated: bool
    control_plane: float = 0.0

    @property
    def gap(self) -> float:
        return self.baseline - self.measured

    @property
    def unexplained(self) -> float:
        """The rest of the gap; negative where replicas were faster than their baseline."""
        return self.gap - self.no_demand - self.starved - self.control_plane

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
        return {
            "no demand": self.no_demand,
            "starved": self.starved,
            "control plane": self.control_plane,
            "unexplained": self.unexplained,
        }


def _nothing_lost() -> dict[str, float]:
    return {"no demand": 0.0, "starved": 0.0, "control plane": 0.0}


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
    overhead_s: float = 0.0
    handover_s: float = 0.0
    idle_s: dict[str, float] = field(default_factory=_nothing_lost)

    @property
    def scale(self) -> float:
        return self.standing_s / self.service_s

    @property
    def working_s(self) -> float:
        return self.service_s - sum(self.idle_s.values())

    def lost_s(self, yardstick: Yardstick) -> dict[str, float]:
        """Seconds by column; those of overhead beyond the baseline's belong to the control plane.

        A hand-over is known when its first step has ended, so it may count in a later interval than the idle time
        that it explains: it is set against that of the whole window.
        """
        all_idle_s = self.service_s - self.working_s
        handover_s = min(self.handover_s, all_idle_s)
        rest = 1.0 - handover_s / all_idle_s if all_idle_s > 0.0 else 0.0
        lost_s = {reason: seconds * rest for reason, seconds in self.idle_s.items()}
        lost_s["control plane"] += handover_s + max(
            0.0, self.overhead_s - yardstick.overhead_share * self.working_s
        )
        return lost_s


def account(
    samples: Sequence[ModelCounters], yardsticks: Mapping[str, Yardstick], *, measured: float | None = None
) -> Ledger | None:
    """The ledger of one model over `samples`, oldest first.

    A replica counts in the intervals at whose both ends it stands, so one that comes or goes within the window is
    provisioned for its own part of it. Time in which its work was on the way is counted by the routers. Whether
    other work waited is known at the samples only; an interval with waiting work at one end has half of its idle
    time charged so.

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
    baseline, told, lost = 0.0, 0.0, _nothing_lost()
    for tally in tallies.values():
        yardstick = yardsticks[tally.yardstick]
        rate = yardstick.tokens_per_s
        baseline += rate * tally.standing_s / window_s
        told += tally.tokens * tally.scale / window_s
        for reason, seconds in tally.lost_s(yardstick).items():
            lost[reason] += rate * seconds * tally.scale / window_s
    return Ledger(
        window_s=window_s,
        measured=told if measured is None else measured,
        baseline=baseline,
        no_demand=lost["no demand"],
        starved=lost["starved"],
        control_plane=lost["control plane"],
        saturated=_is_saturated(samples, yardsticks),
    )


def tokens_per_s(samples: Sequence[ModelCounters]) -> dict[str, float]:
    """Output tokens per second by replica over `samples`, for those that stand at both ends of some interval."""
    window_s = _window_s(samples)
    return {replica: tally.tokens * tally.scale / window_s for replica, tally in _tallies(samples).items()}


def overhead_share(samples: Sequence[ModelCounters]) -> float:
    """Of all replicas' time with work, what was spent between steps: for a baseline's yardstick."""
    tallies = _tallies(samples).values()
    working_s = sum(tally.working_s for tally in tallies)
    return sum(tally.overhead_s for tally in tallies) / working_s if working_s > 0.0 else 0.0


def _window_s(samples: Sequence[ModelCounters]) -> float:
    return samples[-1].time_s - samples[0].time_s if samples else 0.0


def _tallies(samples: Sequence[ModelCounters]) -> dict[str, _Tally]:
    """By replica; those that told nothing new are left out."""
    tallies: dict[str, _Tally] = {}
    for before, after in pairwise(samples):
        earlier = {replica.replica: replica for replica in before.replicas}
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
            tally.overhead_s += min(new.overhead_s - old.overhead_s, span_s - idle_s)
            tally.handover_s += max(new.handover_s - old.handover_s, 0.0)
            for end in (before, after):
                tally.idle_s[end.waiting_for or "no demand"] += idle_s / 2
    return {replica: tally for replica, tally in tallies.items() if tally.service_s > 0 and tally.standing_s > 0}


def _started_anew(old: ReplicaCounters, new: ReplicaCounters) -> bool:
    return (
        new.service_s < old.service_s
        or new.idle_s < old.idle_s
        or new.overhead_s < old.overhead_s
        or new.output_tokens < old.output_tokens
    )


def _is_saturated(samples: Sequence[ModelCounters], yardsticks: Mapping[str, Yardstick]) -> bool:
    """Requests in flight, more than wanted never making up for less at another moment, against those wanted."""
    wanted = [sum(yardsticks[replica.yardstick].num_in_flight for replica in s.replicas) for s in samples]
    present = [min(sample.num_in_flight, want) for sample, want in zip(samples, wanted, strict=True)]
    return sum(present) >= SATURATED_IN_FLIGHT_SHARE * sum(wanted)
