"""A run record on the terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .published_beside import published_beside
from .record import LedgerFacts, Point, RunRecord, headline

_BAR_WIDTH = 32


def render_record(record: RunRecord) -> RenderableType:
    """Figures, ledger and caveats; without colour it reads the same."""
    good = not any("INVALID" in caveat or "NOT passed" in caveat for caveat in record.caveats)
    parts: list[RenderableType] = [Text(headline(record), style="bold green" if good else "bold yellow")]
    parts += [Text(f"  ! {caveat}", style="yellow") for caveat in record.caveats]
    if record.accuracy is not None:
        scores = ", ".join(f"{name} {score:.4f}" for name, score in record.accuracy.scores.items())
        verdict = "passed" if record.accuracy.passed else "NOT passed"
        parts.append(Text(f"  accuracy {verdict}: {scores} over {record.accuracy.num_samples} samples"))
    parts += [Text(), _points(record), *_published(record)]
    ledger = record.whole.typical.ledger
    if ledger is not None and record.whole.num_nodes > 1:
        parts += [Text(), _ledger(ledger)]
    return Group(*parts)


def _points(record: RunRecord) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("nodes", "accelerators", record.unit, "repeats", "efficiency", "TTFT p99", "TPOT p99", "client"):
        table.add_column(name, justify="right")
    for point in record.points:
        run = point.typical
        efficiency = None if run.ledger is None else run.ledger.efficiency
        table.add_row(
            str(point.num_nodes),
            str(point.num_accelerators),
            f"{point.median:,.3f}" if record.unit == "s" else f"{point.median:,.0f}",
            f"{sum(each.counts for each in point.runs)} of {len(point.runs)} count",
            "" if efficiency is None else f"{efficiency:.1%}",
            "" if run.ttft_s is None else f"{run.ttft_s.p99 * 1e3:,.0f} ms",
            "" if run.tpot_s is None else f"{run.tpot_s.p99 * 1e3:,.1f} ms",
            f"{run.client.busy_share:.0%} busy",
            style="" if _counts(point) else "yellow",
        )
    return table


def _published(record: RunRecord) -> list[RenderableType]:
    parts: list[RenderableType] = []
    kind = " (simulated)" if record.simulated else ""
    for beside in published_beside(record):
        rate = f"{beside.result.tokens_per_s:,.0f} tokens/s"
        parts.append(Text(f"\npublished: {rate}, {beside.name}; this record is at {beside.share:.1%}{kind}"))
        if beside.explanation:
            parts.append(Text(f"  {beside.explanation}"))
    return parts


def _counts(point: Point) -> bool:
    return all(run.counts for run in point.runs)


def _ledger(ledger: LedgerFacts) -> Table:
    """One bar per column, as a share of the sum of baselines; a negative column has none."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_footer=True)
    table.add_column("where it went", footer="sum of baselines")
    table.add_column("tokens/s", justify="right", footer=f"{ledger.baseline:,.0f}")
    table.add_column("share", justify="right", footer="100.0%")
    table.add_column("")
    for name, rate in {"measured": ledger.measured, **ledger.losses}.items():
        share = rate / ledger.baseline
        bar = "█" * round(_BAR_WIDTH * min(max(share, 0.0), 1.0))
        table.add_row(name, f"{rate:,.0f}", f"{share:.1%}", bar, style="green" if name == "measured" else "yellow")
    return table
