"""Goals beside what was measured, and the common figures of the last line."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from control_plane_cpu import CpuSeconds
from control_plane_requests import F64


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal and what was measured.

    Attributes:
        at_least: else at most.
        note: what it is measured against, or what was published.
    """

    name: str
    measured: float | None
    goal: float
    unit: str = ""
    at_least: bool = True
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None when nothing was measured."""
        if self.measured is None:
            return None
        return self.measured >= self.goal if self.at_least else self.measured <= self.goal

    def __str__(self) -> str:
        says = {True: "met", False: "MISSED", None: "not measured"}[self.met]
        measured = "-" if self.measured is None else _figure(self.measured, self.unit)
        bound = "at least" if self.at_least else "at most"
        goal = f"{bound} {_figure(self.goal, self.unit)}"
        return f"  {self.name:<38}{measured:>20}   goal {goal:<28} {says:<8} {self.note}".rstrip()


def _figure(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.2%}"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 3
    return f"{value:,.{digits}f} {unit}".rstrip()


def print_goals(title: str, goals: Sequence[Goal]) -> None:
    """Everything that comes from simulated engines says so."""
    print(f"\n{title} (simulated accelerators)")
    for goal in goals:
        print(goal)


def cpu_figures(cpu: CpuSeconds, num_tokens: int, num_cores: int) -> dict[str, float | None]:
    """CPU seconds per million output tokens, by part, and how full the machine was."""
    millions = num_tokens / 1e6
    return {
        "router_cpu_s_per_million_tokens": cpu.router / millions if num_tokens else None,
        "engine_cpu_s_per_million_tokens": cpu.engines / millions if num_tokens else None,
        "other_cpu_s_per_million_tokens": cpu.others / millions if num_tokens else None,
        "router_cores": cpu.router / cpu.wall_s,
        "engine_cores": cpu.engines / cpu.wall_s,
        "other_cores": cpu.others / cpu.wall_s,
        "foreign_cores": max(0.0, cpu.machine - cpu.router - cpu.engines - cpu.others) / cpu.wall_s,
        "machine_busy_share": cpu.machine / (cpu.wall_s * num_cores),
    }


def what_is_full(figures: dict[str, float | None], num_cores: int) -> str:
    """Which part the machine runs out of first, in words; empty when there is room."""
    router, busy = (figures[name] or 0.0 for name in ("router_cores", "machine_busy_share"))
    if router > 0.9:
        return f"the router's process is full ({router:.2f} of one core)"
    if busy > 0.93:
        cores = cores_by_part(figures) | {"processes outside this run": figures["foreign_cores"] or 0.0}
        return f"this machine's {num_cores} cores are full: {told_cores(cores)}"
    return ""


def cores_by_part(figures: dict[str, float | None]) -> dict[str, float]:
    """What each part of a run takes of the machine."""
    parts = {"engine hosts": "engine_cores", "router": "router_cores", "Ray and gateways": "other_cores"}
    return {part: figures[key] or 0.0 for part, key in parts.items()}


def told_cores(cores: dict[str, float]) -> str:
    told = ", ".join(f"{part} {value:.2f}" for part, value in cores.items())
    return f"{told}. Real accelerators would not need the hosts' share"


def latency_figures(name: str, values_s: F64) -> dict[str, float | None]:
    """p50 and p99 in milliseconds; None without values, or where the percentile is of one that never came."""
    keys = {f"{name}_p50_ms": 50, f"{name}_p99_ms": 99}
    if not len(values_s):
        return dict.fromkeys(keys)
    with np.errstate(invalid="ignore"):  # between two that never came
        found = {key: float(np.percentile(values_s, share)) * 1e3 for key, share in keys.items()}
    return {key: value if np.isfinite(value) else None for key, value in found.items()}


def added_figures(measured_s: F64, ideal_s: F64) -> dict[str, float | None]:
    """TTFT and what was added to it, see `control_plane_ideal`: differences of percentiles.

    Args:
        measured_s: [M] by the driver.
        ideal_s: [M] of the replay without a control plane.
    """
    measured, ideal = (latency_figures("ttft", values_s) for values_s in (measured_s, ideal_s))
    figures = measured | {f"engines_{name}": value for name, value in ideal.items()}
    return figures | {f"added_{name}": _less(value, ideal[name]) for name, value in measured.items()}


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other
