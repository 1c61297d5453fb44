"""Find-peak: the highest Server load that keeps the latency limits. Pure; a probe is one short run."""

from collections.abc import Callable
from dataclasses import dataclass

from ...models.errors import StateError

GROW = 1.25
CLOSE_ENOUGH = 0.02
MAX_PROBES = 16


@dataclass(frozen=True, slots=True)
class Probe:
    """One run at `qps`, and whether LoadGen called it valid."""

    qps: float
    kept_limits: bool


def find_peak(
    start_qps: float, probe: Callable[[float], bool], *, close_enough: float = CLOSE_ENOUGH
) -> tuple[float, list[Probe]]:
    """Grow or shrink, by a quarter and then by more, until one load keeps the limits and another does not; then
    halve the gap.

    Returns:
        The highest load that kept them, within `close_enough`, and all probes.

    Raises:
        StateError: no load that was tried kept them.
    """
    probes: list[Probe] = []

    def keeps(qps: float) -> bool:
        probes.append(Probe(qps, probe(qps)))
        return probes[-1].kept_limits

    good, bad = 0.0, float("inf")
    qps, step = start_qps, GROW
    while len(probes) < MAX_PROBES and (bad == float("inf") or (bad - good) / bad > close_enough):
        if keeps(qps):
            good = qps
        else:
            bad = qps
        qps = good * step if bad == float("inf") else bad / step if good == 0.0 else (good + bad) / 2
        step *= GROW
    if good == 0.0:
        raise StateError(f"no load down to {probes[-1].qps:.2f} queries/s kept the latency limits")
    return good, probes
