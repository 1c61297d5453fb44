"""A record against another: figures, verdict, what differs."""

from collections.abc import Sequence
from dataclasses import dataclass

from .balance import slowest_nodes, told_by_steps
from .differences import Difference, differences
from .equivalence import Comparison, Verdict, compare, whole_verdict
from .record import RunRecord

MARGIN = 0.02


@dataclass(frozen=True, slots=True)
class Judgement:
    """What verify says.

    Attributes:
        measures: by name: the scenario's figure and, on several nodes, how fast the slowest is.
        num_more: repeats that are missing here when inconclusive; None when no number of them would do.
        differences: most weighty first.
        reasons: why figures could not be held against each other at all.
    """

    verdict: Verdict
    margin: float
    measures: dict[str, Comparison]
    num_more: int | None
    differences: list[Difference]
    reasons: list[str]

    @property
    def sentence(self) -> str:
        if self.verdict is Verdict.REPRODUCED:
            return f"reproduced within ±{self.margin:.1%}"
        if self.verdict is Verdict.NOT_REPRODUCED:
            return f"not reproduced within ±{self.margin:.1%}"
        if self.reasons:
            return f"inconclusive: {'; '.join(self.reasons)}"
        if self.num_more is None:
            return (
                f"inconclusive, repeats here alone cannot decide within ±{self.margin:.1%}: the record needs more"
            )
        return f"inconclusive, about {self.num_more} more repeats needed to decide within ±{self.margin:.1%}"


def judge_records(there: RunRecord, here: RunRecord, margin: float = MARGIN) -> Judgement:
    """`here` as an attempt to reproduce `there`, by the points with the most nodes."""
    before, after = _figures(there), _figures(here)
    differing = differences(there, here)
    reasons = [f"no run {where} is valid" for where, values in (("there", before), ("here", after)) if not values]
    if there.workload.scenario is not here.workload.scenario or there.workload.name != here.workload.name:
        reasons.append("they are of different workloads or scenarios")
    if there.unit != here.unit:
        reasons.append("they are in different units")
    if reasons:
        return Judgement(Verdict.INCONCLUSIVE, margin, {}, None, differing, reasons)
    measures = {there.unit: compare(before, after, margin)}
    by_steps = told_by_steps(there, here)
    slowest = slowest_nodes(there, by_steps=by_steps), slowest_nodes(here, by_steps=by_steps)
    if all(slowest):
        measures["slowest node against the others"] = compare(*slowest, margin)
    verdict, num_more = whole_verdict(list(measures.values()))
    return Judgement(verdict, margin, measures, num_more, differing, [])


def _figures(record: RunRecord) -> Sequence[float]:
    return [run.figure for run in record.whole.runs if run.counts]
