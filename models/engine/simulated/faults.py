"""Known faults to inject into a simulated engine, as pure functions of the time since its start.

A stall stops the work of a step wherever it falls:

    without          |== step ==|
    stall    ............|xxxxxxxx|........
    with             |===          =======|
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Slow:
    """Steps that start at `at_s` or later take `percent` per cent longer."""

    percent: float
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing is computed from `at_s` on for `duration_s`."""

    at_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Die:
    """The engine fails at `at_s`: the step that would end then or later never does."""

    at_s: float


@dataclass(frozen=True, slots=True)
class LoseSlots:
    """From `at_s` on, steps have `share` (0 to 1) fewer slots for requests, but at least one."""

    share: float
    at_s: float = 0.0


Fault = Slow | Stall | Die | LoseSlots


def faulty_step_s(faults: Sequence[Fault], start_s: float, step_s: float) -> float:
    """How long a step takes that starts at `start_s` and would take `step_s`."""
    for fault in faults:
        if isinstance(fault, Slow) and start_s >= fault.at_s:
            step_s *= 1 + fault.percent / 100
    for stall in sorted((fault for fault in faults if isinstance(fault, Stall)), key=lambda stall: stall.at_s):
        end_s = stall.at_s + stall.duration_s
        if start_s < end_s and stall.at_s < start_s + step_s:
            step_s += end_s - max(start_s, stall.at_s)
    return step_s


def faulty_slots(faults: Sequence[Fault], start_s: float, max_num_seqs: int) -> int:
    """The slots that a step has which starts at `start_s`."""
    kept = float(max_num_seqs)
    for fault in faults:
        if isinstance(fault, LoseSlots) and start_s >= fault.at_s:
            kept *= 1 - fault.share
    return max(1, int(kept + 1e-9))


def death_s(faults: Sequence[Fault]) -> float:
    """When the engine dies; infinity if never."""
    return min((fault.at_s for fault in faults if isinstance(fault, Die)), default=inf)
