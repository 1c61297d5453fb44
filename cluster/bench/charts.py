"""The charts of a report, each drawn twice, wide and narrow, so that text keeps its size on any screen."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..baseline import Baseline
from .figures import DISTRIBUTIONS
from .record import RunRecord

WIDE_IN = (7.6, 3.7)
NARROW_IN = (3.5, 3.3)
PNG_DPI = 160

INK, MUTED, GRID = "#1c2733", "#5f6f80", "#e4e9ee"
MEASURED, IDEAL, LOSS, GAIN = "#0b7285", "#a3b1bf", "#e8890c", "#74b816"
NODES = ("#0b7285", "#e8890c", "#5f3dc4", "#2f9e44", "#c2255c", "#1971c2", "#846358", "#495057")
_MAX_NODES_NAMED = 8
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "svg.fonttype": "none",
}

Draw = Callable[[Axes, bool], None]


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart.

    Attributes:
        name: of its files.
        title, text: what it shows, for people.
        wide, narrow: SVG elements.
        png: the wide one.
    """

    name: str
    title: str
    text: str
    wide: str
    narrow: str
    png: bytes


def charts_of(record: RunRecord, directory: Path) -> list[Chart]:
    """Those that the record has figures for.

    Args:
        directory: the record's folder.
    """
    kept = np.load(directory / record.whole.typical.logs / DISTRIBUTIONS, allow_pickle=False)
    found: list[Chart] = []
    if not record.workload.scenario.lower_is_better:
        found.append(
            _chart(
                "scaling",
                "Scaling against linear",
                "Each dot is one run, a hollow one a kept baseline; the dashed line is so many times one node.",
                lambda axes, narrow: _scaling(axes, record, narrow),
                record.simulated,
            )
        )
    ledger = record.whole.typical.ledger
    if ledger is not None:
        columns = {"sum of baselines": ledger.baseline, **ledger.losses, "measured": ledger.measured}
        found.append(
            _chart(
                "ledger",
                "Where the rest went",
                "The loss ledger: from the sum of the baselines down to what was measured.",
                lambda axes, narrow: _waterfall(axes, columns, narrow),
                record.simulated,
            )
        )
    limits = record.loadgen.settings
    for name, title, limit in (
        ("ttft", "Time to first token", "ttft_latency"),
        ("tpot", "Time per output token", "tpot_latency"),
    ):
        values_ms = kept[f"{name}_s"].astype(float) * 1e3
        if len(values_ms):
            limit_ms = float(limits[limit]) / 1e6 if record.workload.scenario.is_server else None
            found.append(
                _chart(
                    name,
                    title,
                    f"Milliseconds over {len(values_ms):,} answers"
                    + (
                        "." if limit_ms is None else f"; the limit, {limit_ms:,.0f} ms, is for the 99th percentile."
                    ),
                    lambda axes, narrow, values=values_ms, at=limit_ms: _distribution(axes, values, at),
                    record.simulated,
                )
            )
    if len(kept["timeline_s"]) > 2:
        names = json.loads(str(kept["nodes"]))
        found.append(
            _chart(
                "nodes",
                "Tokens per second by node",
                "Over the run, means of a few seconds.",
                lambda axes, narrow: _over_time(axes, kept["timeline_s"], kept["node_tokens"], names, narrow),
                record.simulated,
            )
        )
    return found


def _chart(name: str, title: str, text: str, draw: Draw, simulated: bool) -> Chart:
    with mpl.rc_context(_STYLE):
        wide, narrow = (
            _svg(_figure(draw, size, simulated, size is NARROW_IN), f"{name}-{number}")
            for number, size in enumerate((WIDE_IN, NARROW_IN))
        )
        png = io.BytesIO()
        titled = _figure(draw, WIDE_IN, simulated, False)
        titled.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        titled.savefig(png, format="png", dpi=PNG_DPI)
    return Chart(name, title, text, wide, narrow, png.getvalue())


def _figure(draw: Draw, size_in: tuple[float, float], simulated: bool, narrow: bool) -> Figure:
    figure = Figure(figsize=size_in, layout="constrained")
    axes = figure.add_subplot()
    draw(axes, narrow)
    if simulated:
        axes.text(
            0.5, 0.5, "SIMULATED", transform=axes.transAxes, ha="center", va="center", zorder=0,
            fontsize=24 if narrow else 44, color="#dfe5ea", rotation=18, fontweight="bold",
        )  # fmt: skip
    return figure


def _svg(figure: Figure, salt: str) -> str:
    """One element, without the XML head; ids differ between charts."""
    with mpl.rc_context({"svg.hashsalt": salt}):
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue().partition("<svg")[1] + out.getvalue().partition("<svg")[2]


def _thousands(value: float, _: object = None) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:,.0f}"


def _scaling(axes: Axes, record: RunRecord, narrow: bool) -> None:
    points, alone = record.points, _kept_alone(record)
    one = points[0].median / points[0].num_accelerators if alone is None else alone[1]
    counts = np.array([point.num_accelerators for point in points])
    medians = np.array([point.median for point in points])
    ends = np.array([0, counts.max() * 1.05])
    axes.plot(ends, one * ends, "--", color=IDEAL, label="linear")
    axes.plot(counts, medians, color=MEASURED, linewidth=2, label="measured (median)")
    for point in points:
        axes.plot([point.num_accelerators] * len(point.figures), point.figures, "o", color=MEASURED, alpha=0.45)
    if alone is not None:
        axes.plot(alone[0], alone[0] * one, "o", color=MEASURED, fillstyle="none", label="baseline (kept)")
    for count, median in zip(counts, medians, strict=True):
        if count != counts[0] or alone is not None:
            axes.annotate(
                f"{median / (one * count):.1%}",
                (count, median),
                xytext=(-8, 8),
                textcoords="offset points",
                ha="right",
                fontweight="bold",
            )
    axes.set_xlim(0, None)
    axes.set_ylim(0, None)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("accelerators")
    axes.set_ylabel("" if narrow else record.unit)
    axes.yaxis.set_major_formatter(_thousands)
    axes.legend(loc="upper left")


def _kept_alone(record: RunRecord) -> tuple[int, float] | None:
    """Accelerators of the baseline, and the rate of one by which the ledger measures; None if this record has a run
    on one node, or no baseline."""
    ledger = record.points[0].typical.ledger
    if record.baseline is None or ledger is None or len(record.points[0].nodes) == 1:
        return None
    kept = Baseline.model_validate(record.baseline.kept)
    alone = record.points[0].median / record.points[0].num_accelerators / ledger.of_linear
    return kept.num_replicas * kept.key.tp, alone


def _waterfall(axes: Axes, columns: dict[str, float], narrow: bool) -> None:
    """Horizontal, so that names are readable at any width; columns of nothing are left out."""
    whole = columns["sum of baselines"]
    shown = [
        (name, rate)
        for name, rate in columns.items()
        if name in ("sum of baselines", "measured") or abs(rate) >= 0.0005 * whole
    ]
    left = whole
    for row, (name, rate) in enumerate(shown):
        if name in ("sum of baselines", "measured"):
            begin, width, color = 0.0, rate, IDEAL if row == 0 else MEASURED
        else:
            begin, width, color = left - rate, rate, LOSS if rate > 0 else GAIN
            left -= rate
        axes.barh(row, width, left=begin, color=color, height=0.66)
        label = f"{rate / whole:.1%}" if narrow else f"{rate:,.0f}  ({rate / whole:.1%})"
        inside = name in ("sum of baselines", "measured")
        axes.annotate(
            label,
            (0 if inside else min(begin, begin + width), row),
            xytext=(6 if inside else -6, 0),
            textcoords="offset points",
            va="center",
            ha="left" if inside else "right",
            color="white" if name == "measured" else INK,
        )
    axes.set_yticks(range(len(shown)), [name for name, _ in shown], color=INK)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(_thousands)
    axes.locator_params(axis="x", nbins=4 if narrow else 7)
    axes.set_xlabel("tokens/s")


def _distribution(axes: Axes, values_ms: np.ndarray, limit_ms: float | None) -> None:
    """A histogram without the last half percent, with the percentiles that the rules look at."""
    high = float(np.percentile(values_ms, 99.5)) * 1.05
    if limit_ms is not None and limit_ms < 3 * high:
        high = max(high, limit_ms * 1.05)
    axes.hist(values_ms, bins=60, range=(0, max(high, 1e-6)), color=MEASURED, alpha=0.85)
    for percentile, place in ((50, 0.94), (90, 0.84), (99, 0.74)):
        value = float(np.percentile(values_ms, percentile))
        axes.axvline(value, color=INK, linewidth=1, linestyle=":")
        right = value > 0.6 * high
        axes.annotate(
            f"p{percentile} {value:,.0f} ms" if value >= 100 else f"p{percentile} {value:.1f} ms",
            (value, place),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if right else 4, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1},
        )
    if limit_ms is not None and limit_ms <= high:
        axes.axvline(limit_ms, color="#c92a2a", linewidth=1.5)
    axes.set_xlim(0, high)
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("answers")
    axes.yaxis.set_major_formatter(_thousands)


def _over_time(axes: Axes, times_s: np.ndarray, tokens: np.ndarray, names: list[str], narrow: bool) -> None:
    stretch = max(1, len(times_s) // (30 if narrow else 60))
    at, counted = times_s[::stretch], tokens[::stretch]
    rates = np.diff(counted, axis=0) / np.diff(at)[:, None]
    middles = (at[1:] + at[:-1]) / 2
    named = len(names) <= _MAX_NODES_NAMED
    for number, name in enumerate(names):
        color = NODES[number % len(NODES)] if named else MEASURED
        axes.plot(
            middles, rates[:, number], color=color, linewidth=1.6 if named else 0.9,
            alpha=1.0 if named else 0.55, label=name if named else None,
        )  # fmt: skip
    if not named:
        axes.plot(middles, np.median(rates, axis=1), color=LOSS, linewidth=2, label=f"median of {len(names)} nodes")
    axes.set_ylim(0, None)
    axes.set_xlim(0, None)
    axes.set_xlabel("seconds")
    axes.set_ylabel("" if narrow else "tokens/s")
    axes.yaxis.set_major_formatter(_thousands)
    axes.legend(loc="lower right", ncols=1 if narrow else 2)
