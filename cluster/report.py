"""The terminal report of a scaling measurement: one node, N nodes, efficiency, ledger, and what listens where."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .ledger import UNEXPLAINED, Ledger

_BAR_WIDTH = 32


@dataclass(frozen=True)
class ScalingReport:
    """What the report says.

    Attributes:
        model: name of the served model.
        workload: name of the load.
        one_node_tokens_per_s: output tokens/s of the baseline node.
        one_node_spread: (highest - lowest) / median of the baseline's repeats; None after a single one.
        num_nodes: nodes in the measurement.
        node_tokens_per_s: measured output tokens/s by node.
        ledger: the account of the measured window.
        exact_share: share of right answers, where the load checks them.
        num_failed: requests that failed within the measurement.
        addresses: what listens where, by name (`API`, `metrics`).
        simulated: no tokens were computed.
    """

    model: str
    workload: str
    one_node_tokens_per_s: float
    one_node_spread: float | None
    num_nodes: int
    node_tokens_per_s: Mapping[str, float]
    ledger: Ledger
    exact_share: float | None = None
    num_failed: int = 0
    addresses: Mapping[str, str] = field(default_factory=dict[str, str])
    simulated: bool = False

    @property
    def ratio(self) -> float:
        """Measured tokens/s of all nodes over those of one."""
        return self.ledger.measured / self.one_node_tokens_per_s


def render(report: ScalingReport) -> RenderableType:
    """The report as a rich renderable; without colour it reads the same."""
    parts: list[RenderableType] = [
        _title(report),
        _rates(report),
        _verdict(report),
        Text(),
        _ledger_bars(report.ledger),
    ]
    if report.addresses:
        parts += [Text(), _addresses(report.addresses)]
    return Group(*parts)


def _title(report: ScalingReport) -> Text:
    simulated = "SIMULATED, no tokens were computed: " if report.simulated else ""
    plural = "s" if report.num_nodes > 1 else ""
    return Text(
        f"{simulated}{report.model} under {report.workload} on {report.num_nodes} node{plural}", style="bold"
    )


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    return table


def _rates(report: ScalingReport) -> Table:
    table = _grid()
    spread = "" if report.one_node_spread is None else f"spread {report.one_node_spread:.1%}"
    table.add_row("one node (baseline)", _rate(report.one_node_tokens_per_s), spread)
    measured = f"{report.num_nodes} nodes" if report.num_nodes > 1 else "this run"
    table.add_row(measured, _rate(report.ledger.measured), f"{report.ratio:.2f} times one node", style="bold")
    for node, rate in sorted(report.node_tokens_per_s.items()):
        table.add_row(f"  {node}", _rate(rate), "")
    return table


def _verdict(report: ScalingReport) -> Text:
    ledger = report.ledger
    if ledger.efficiency is not None:
        said = f"scaling efficiency {ledger.efficiency:.1%} over {ledger.window_s:.0f} s"
    else:
        said = f"not saturated: no efficiency; headroom {_rate(ledger.headroom or 0)} over {ledger.window_s:.0f} s"
    if report.exact_share is not None:
        said += f" · {report.exact_share:.2%} of answers exact"
    if report.num_failed:
        said += f" · {report.num_failed} requests FAILED"
    return Text(
        said, style="bold green" if ledger.efficiency is not None and not report.num_failed else "bold yellow"
    )


def _ledger_bars(ledger: Ledger) -> Table:
    """One bar per column that lost something, as a share of the sum of baselines; a negative one has none."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_footer=True)
    table.add_column("where it went", footer="sum of baselines")
    table.add_column("tokens/s", justify="right", footer=f"{ledger.baseline:,.0f}")
    table.add_column("share", justify="right", footer="100.0%")
    table.add_column("")
    lost = {name: rate for name, rate in ledger.losses.items() if name == UNEXPLAINED or abs(rate) >= 0.5}
    for name, rate in {"measured": ledger.measured, **lost}.items():
        share = rate / ledger.baseline
        bar = "█" * round(_BAR_WIDTH * min(max(share, 0.0), 1.0))
        table.add_row(name, f"{rate:,.0f}", f"{share:.1%}", bar, style="green" if name == "measured" else "yellow")
    return table


def _addresses(addresses: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, address in addresses.items():
        table.add_row(name, address)
    return table


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f} tokens/s"
