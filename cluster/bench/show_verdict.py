"""Verdicts and comparisons on the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .differences import differences
from .equivalence import Comparison, Verdict
from .record import RunRecord, headline
from .verdict import Judgement

_STYLES = {
    Verdict.REPRODUCED: "bold green",
    Verdict.NOT_REPRODUCED: "bold red",
    Verdict.INCONCLUSIVE: "bold yellow",
}
_MAX_DIFFERENCES = 12


def render_judgement(judgement: Judgement) -> RenderableType:
    """Without colour it reads the same."""
    parts: list[RenderableType] = [Text(judgement.sentence, style=_STYLES[judgement.verdict])]
    for name, comparison in judgement.measures.items():
        parts.append(Text(f"  {name}: {_ratio(comparison)} - {comparison.verdict}"))
    if judgement.differences:
        parts += [Text(), Text("what differs, likeliest cause first")]
        for number, difference in enumerate(judgement.differences[:_MAX_DIFFERENCES], 1):
            parts.append(Text(f"  {number}. {difference}"))
        if len(judgement.differences) > _MAX_DIFFERENCES:
            parts.append(Text(f"  and {len(judgement.differences) - _MAX_DIFFERENCES} more"))
    else:
        parts.append(Text("nothing that is recorded differs"))
    return Group(*parts)


def render_comparison(records: Sequence[tuple[str, RunRecord]]) -> RenderableType:
    """Records side by side, and what differs from the first."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for name, _ in records:
        table.add_column(name, justify="right", overflow="fold")
    first = records[0][1]
    for row, values in _rows([record for _, record in records]).items():
        table.add_row(row, *values)
    parts: list[RenderableType] = [Text(headline(first), style="bold"), table]
    for name, record in records[1:]:
        parts += [Text(), Text(f"{name} against {records[0][0]}")]
        found = differences(first, record)
        parts += [Text(f"  {number}. {each}") for number, each in enumerate(found[:_MAX_DIFFERENCES], 1)]
        if not found:
            parts.append(Text("  nothing that is recorded differs"))
    return Group(*parts)


def _rows(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    first = records[0].whole.median
    rows: dict[str, list[str]] = {
        "workload": [f"{record.workload.name} {record.workload.scenario}" for record in records],
        "figure": [
            f"{record.whole.median:,.3f} s" if record.unit == "s" else f"{record.whole.median:,.0f} {record.unit}"
            for record in records
        ],
        "of the first": [f"{record.whole.median / first:.1%}" for record in records],
        "repeats that count": [
            f"{sum(run.counts for run in record.whole.runs)} of {len(record.whole.runs)}" for record in records
        ],
        "nodes": [str(record.whole.num_nodes) for record in records],
        "accelerators": [f"{record.whole.num_accelerators} x {record.model.accelerator}" for record in records],
        "accuracy": [_accuracy(record) for record in records],
        "simulated": ["SIMULATED" if record.simulated else "no" for record in records],
        "measured": [record.provenance.date for record in records],
    }
    for name, pick in (("TTFT p99", "ttft_s"), ("TPOT p99", "tpot_s")):
        found = [getattr(record.whole.typical, pick) for record in records]
        rows[name] = ["–" if each is None else f"{each.p99 * 1e3:,.1f} ms" for each in found]
    return rows


def _accuracy(record: RunRecord) -> str:
    if record.accuracy is None:
        return "no run"
    return "passed" if record.accuracy.passed else "NOT passed"


def _ratio(comparison: Comparison) -> str:
    if comparison.low is None or comparison.high is None:
        return f"{comparison.ratio - 1:+.2%} here, too few repeats for an interval"
    return f"{comparison.ratio - 1:+.2%} here ({comparison.low - 1:+.2%} to {comparison.high - 1:+.2%})"
