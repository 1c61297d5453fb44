"""How far away a replica is, from Pings that may have waited there for a step to end: a pure function.

    sent ──────> arrived  . . waits . .  read ──────> back
    │<──────────────────── measured ────────────────────>│         waits: from 0 to `away_s`, all alike

So the way there and back is known to within `away_s`, and what is known exactly counts most.
"""

from dataclasses import dataclass

HALF_LIFE_PINGS = 20.0
# Below this, measurements are alike: clocks, threads and other messages disturb them as much.
RESOLUTION_S = 0.001
MAX_ROUND_TRIP_S = 60.0


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """A decayed mean of measurements, weighed by the inverse square of what they may be off."""

    weight: float = 0.0
    total_s: float = 0.0

    @property
    def mean_s(self) -> float:
        """0 before anything was measured."""
        return self.total_s / self.weight if self.weight else 0.0

    def observe(self, measured_s: float, away_s: float) -> "RoundTrip":
        """With one more measurement; one that cannot be is ignored."""
        if not (0.0 <= measured_s <= MAX_ROUND_TRIP_S and 0.0 <= away_s <= MAX_ROUND_TRIP_S):
            return self
        keep = 0.5 ** (1.0 / HALF_LIFE_PINGS)
        weight = (RESOLUTION_S / (RESOLUTION_S + away_s)) ** 2
        middle_s = max(measured_s - 0.5 * away_s, 0.0)
        return RoundTrip(self.weight * keep + weight, self.total_s * keep + weight * middle_s)
