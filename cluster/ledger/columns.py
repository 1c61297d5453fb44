"""The account of one window: what was provisioned, what came out, and where the difference went."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

UNEXPLAINED = "unexplained"
# In the order in which they are shown; what is left of the gap is `unexplained`.
COLUMNS = (
    "unhealthy",
    "starting",
    "draining",
    "no demand",
    "starved",
    "underfilled",
    "slow step",
    "recompute",
    "control plane",
)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The account of one window, in output tokens per second, of a model or a part of its replicas.

    sum of baselines  =  measured  +  the columns  +  unexplained

    Attributes:
        window_s: length of the window that is accounted for.
        measured: what was generated.
        baseline: the sum of the baselines of what was provisioned.
        columns: by the names of COLUMNS, all of them. Those of steps may be negative: better than the baseline.
        saturated: there was as much work all along as when the baselines were measured.
        hole_s: of the time asked for, what nothing is known of, as nobody looked; not in `window_s`.
    """

    window_s: float
    measured: float
    baseline: float
    columns: Mapping[str, float]
    saturated: bool
    hole_s: float = 0.0

    @property
    def gap(self) -> float:
        return self.baseline - self.measured

    @property
    def unexplained(self) -> float:
        """The rest of the gap; negative where more came out than the baselines say."""
        return self.gap - sum(self.columns.values())

    @property
    def losses(self) -> dict[str, float]:
        """All columns by name; they sum to the gap."""
        return {**self.columns, UNEXPLAINED: self.unexplained}

    @property
    def efficiency(self) -> float | None:
        """Measured over the sum of baselines; None unless the window was saturated."""
        return self.measured / self.baseline if self.saturated and self.baseline > 0.0 else None

    @property
    def headroom(self) -> float | None:
        """Tokens/s that more load could still get: what is lost for want of demand. None in a saturated window."""
        return None if self.saturated else max(0.0, self.columns["no demand"])

    def share(self, column: str) -> float:
        """A loss as a share of the sum of baselines."""
        return self.losses[column] / self.baseline if self.baseline > 0.0 else 0.0


def nothing_lost() -> dict[str, float]:
    return dict.fromkeys(COLUMNS, 0.0)


def total(ledgers: Iterable[Ledger]) -> Ledger | None:
    """Of several parts over one window, all together; None of none."""
    parts = list(ledgers)
    if not parts:
        return None
    return Ledger(
        window_s=parts[0].window_s,
        measured=sum(part.measured for part in parts),
        baseline=sum(part.baseline for part in parts),
        columns={name: sum(part.columns[name] for part in parts) for name in COLUMNS},
        saturated=parts[0].saturated,
        hole_s=parts[0].hole_s,
    )
