"""What the controller keeps, as frozen data that JSON can hold: see `history.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .decision import Decision
from .prediction import Prediction
from .settings import ControllerSettings
from .snapshot import Memory, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A decision with all that it was made from, so that it can be made again.

    Attributes:
        settings: as `ControllerSettings` dumps them.
        before, after: the memory.
    """

    decision: Decision
    snapshot: Snapshot
    settings: Mapping[str, Any]
    before: Memory
    after: Memory

    def read_settings(self) -> ControllerSettings:
        return ControllerSettings.model_validate(self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What came of a change, against what was predicted.

    Attributes:
        decision: its number.
        outcome: `reached`; or `superseded` by another change before.
        time_s: when it was scored, Unix time.
        predicted: for the work expected then.
        tokens_per_s, efficiency: measured over the first window in which all of it served; efficiency only if that
            was saturated. None when not reached.
        late_s: how much later than predicted it served.
        hole_s: of the time since the decision, so much nobody looked.
    """

    decision: int
    model: str
    outcome: str
    time_s: float
    predicted: Prediction
    tokens_per_s: float | None = None
    efficiency: float | None = None
    late_s: float = 0.0
    hole_s: float = 0.0

    @property
    def efficiency_error(self) -> float | None:
        """Predicted less measured, as a share; None where none was measured."""
        return None if self.efficiency is None else self.predicted.efficiency - self.efficiency


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """Nobody looked in between; nothing is said of it."""

    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A change that waits to be scored.

    Attributes:
        settled_s: since when all of it serves; 0 before.
    """

    decision: int
    model: str
    predicted: Prediction
    done_at_s: float
    settled_s: float = 0.0
    hole_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the controller resumes from.

    Attributes:
        time_s: of the latest look.
        told: the cause of each model's latest kept verdict, and when it was kept.
    """

    time_s: float = 0.0
    memory: Memory = field(default_factory=Memory)
    pending: tuple[Pending, ...] = ()
    told: Mapping[str, str] = field(default_factory=dict[str, str])
    told_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of the history: what happened together."""

    decided: Decided | None = None
    scores: tuple[Score, ...] = ()
    hole: Hole | None = None
    state: State | None = None
