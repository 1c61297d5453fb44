"""What was injected, what the ledger found, and how far apart they are; see `ledger_injection.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nfold.cluster.ledger import COLUMNS, UNEXPLAINED

# By injection: its own columns, of which the last takes what else it loses.
INJECTIONS: dict[str, tuple[str, ...]] = {
    "slow_5": ("slow step",),
    "slow_20": ("slow step",),
    "half_slots": ("underfilled",),
    "dead_node": ("unhealthy", "recompute"),
    "starved_pool": ("starved",),
    "delay": ("control plane",),
    "small_kv": ("recompute", "underfilled"),
    "no_demand": ("no demand",),
    "start_up": ("starting",),
}
# Those of the real engine.
NATIVE_INJECTIONS: dict[str, tuple[str, ...]] = {
    "held_back": ("slow step",),
    "small_kv": INJECTIONS["small_kv"],
    "paused_rank": ("slow step",),
}
# What its remainder may be: more than seconds in a state.
TAKES_REST = ("half_slots", "dead_node", "delay", "small_kv", "no_demand")
GOALS = {"max_error_points": 1.0, "max_wrong_column_points": 0.5, "max_unexplained_points": 1.0}
# The machine's own noise is in them.
NATIVE_GOALS = dict.fromkeys(GOALS, 3.0)
Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One run with injections, in points of the sum of baselines.

    Attributes:
        measured: what came out.
        known: of the truth, what follows from the injection itself.
        found: the ledger's columns.
        on_the_way_share: of all empty slots, those that the requests on their way would fill.
        rest: lost against the run without injections, beyond what `known` says.
    """

    injections: Names
    num: int
    measured: float
    known: Mapping[str, float]
    found: Mapping[str, float]
    on_the_way_share: float = 0.0
    rest: float = 0.0

    def against(self, clean: "Case") -> "Case":
        """With its rest."""
        return replace(self, rest=clean.measured - self.measured - sum(self.known.values()))


@dataclass(frozen=True, slots=True)
class Verdict:
    """True and found of one case, and the worst errors."""

    injections: Names
    num: int
    true: Mapping[str, float]
    found: Mapping[str, float]
    error_points: float
    wrong_column_points: float
    unexplained_points: float


def judge(case: Case, rests: Mapping[Names, float]) -> Verdict:
    """`rests`: of all cases of that many accelerators, by injections."""
    true = dict.fromkeys(COLUMNS, 0.0) | dict(case.known)
    for name, share in _rest_by_cause(case, rests).items():
        true[INJECTIONS[name][-1]] += share
    return verdict_of(case.injections, case.num, true, case.found)


def _rest_by_cause(case: Case, rests: Mapping[Names, float]) -> dict[str, float]:
    """Of a pair: what a dead node's requests cost is what they cost alone. Where demand lacks, another loses what
    is lost beyond that; a delay the slots that its requests would fill. Else each loses the mean of what it loses
    alone and what it loses beside the other."""
    takers = [name for name in case.injections if name in TAKES_REST]
    if len(takers) < 2:
        return dict.fromkeys(takers, case.rest)
    one, other = takers
    if "dead_node" in takers:
        fixed = "dead_node"
        share = rests[fixed,]
    elif "no_demand" in takers:
        fixed = one if other == "no_demand" else other
        share = case.rest - rests["no_demand",]
        if fixed == "delay":
            share = case.rest * case.on_the_way_share
    else:
        fixed = one
        share = (rests[one,] + case.rest - rests[other,]) / 2
    return {fixed: share, (one if fixed == other else other): case.rest - share}


def verdict_of(injections: Names, num: int, true: Mapping[str, float], found: Mapping[str, float]) -> Verdict:
    known = INJECTIONS | NATIVE_INJECTIONS
    own = {column for name in injections for column in known[name]}
    errors = {name: abs(found[name] - true[name]) for name in COLUMNS}
    return Verdict(
        injections=injections,
        num=num,
        true=true,
        found=found,
        error_points=max((errors[name] for name in own), default=0.0),
        wrong_column_points=max(errors[name] for name in COLUMNS if name not in own),
        unexplained_points=abs(found[UNEXPLAINED]),
    )


def line_of(verdict: Verdict) -> str:
    """Each column in which either is at least a twentieth of a point: true > found."""
    told = [
        f"{name} {verdict.true.get(name, 0.0):.2f} > {verdict.found[name]:.2f}"
        for name in (*COLUMNS, UNEXPLAINED)
        if max(abs(verdict.true.get(name, 0.0)), abs(verdict.found[name])) >= 0.05
    ]
    what = " + ".join(verdict.injections) or "nothing"
    return f"  {what:26} {'; '.join(told) or 'nothing lost'}"


def summary(verdicts: Sequence[Verdict]) -> dict[str, float]:
    return {
        "max_error_points": max(verdict.error_points for verdict in verdicts),
        "max_wrong_column_points": max(verdict.wrong_column_points for verdict in verdicts),
        "max_unexplained_points": max(verdict.unexplained_points for verdict in verdicts),
    }
