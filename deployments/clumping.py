"""When a request is taken in by a replica's engine, and when to send it for that: pure functions.

An engine takes in new requests between two steps, some engines between every few. One that arrives meanwhile waits,
whether it arrives early or late, so requests may be held and sent together as long as they still arrive in time:

    replica   ├──────── step ────────┼──────── step ────────┤
                                     ^ intake: they must have arrived
    router         hold  .  .  send ─┘

Nothing is held when the router is not busy, or when it cannot know when the intake is. An engine may tell; of one
that does not, the shortest step of late is taken.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

# What is sent is to arrive so long before the intake: a part of the time between two, and no more than the second.
MARGIN_SHARE = 0.2
MAX_MARGIN_S = 0.05
# How fast the shortest step forgets, per step: steps grow longer with the batch.
SHORTEST_STEP_GROWTH = 1.05
_RATE_WINDOW_S = 0.1


def clump_s(requests_per_s: float, num_replicas: int, max_submits_per_s: float, max_clump_s: float) -> float:
    """How long requests wait for company, so that `num_replicas` replicas together get at most `max_submits_per_s`
    messages per second: a replica's messages are then one wait and one gap between requests apart."""
    if requests_per_s <= max_submits_per_s:
        return 0.0
    return min(num_replicas * (1.0 / max_submits_per_s - 1.0 / requests_per_s), max_clump_s)


@dataclass(frozen=True, slots=True)
class WayIn:
    """From the router into replicas' engines; all arrays [K].

    Attributes:
        intake_s: when the engine takes in requests next; in the far past when that is not known, or at any time.
        every_s: from one such time to the next.
        delay_s: one way to the replica.
    """

    intake_s: F64
    every_s: F64
    delay_s: F64

    @property
    def latest_s(self) -> F64:
        """Until when to send for the next intake."""
        return self.intake_s - np.minimum(MARGIN_SHARE * self.every_s, MAX_MARGIN_S) - self.delay_s

    def send_at_s(self, now_s: float, hold_s: float) -> F64:
        """When to send what is bound to these now and may wait for `hold_s`."""
        return np.maximum(now_s, np.minimum(now_s + hold_s, self.latest_s))

    def wait_s(self, now_s: float) -> F64:
        """How long until these take in what is bound to them now, the way there included."""
        taken_s = np.where(now_s <= self.latest_s, self.intake_s, self.intake_s + self.every_s)
        return np.maximum(taken_s - now_s, self.delay_s)


def observe_shortest_step(shortest_step_s: float, step_s: float) -> float:
    """After one more step; 0 is none yet."""
    if shortest_step_s <= 0.0:
        return step_s
    return min(step_s, shortest_step_s * SHORTEST_STEP_GROWTH)


@dataclass(slots=True)
class Rate:
    """Events per second of late, in windows of a tenth of a second."""

    per_s: float = 0.0
    _count: int = 0
    _since_s: float = float("-inf")

    def count(self, num_events: int, now_s: float) -> float:
        """With so many more events now."""
        elapsed_s = now_s - self._since_s
        if elapsed_s >= _RATE_WINDOW_S:
            new = self._count / elapsed_s
            # After a silence, what was before it does not count.
            self.per_s = new if elapsed_s > 10 * _RATE_WINDOW_S else 0.5 * (self.per_s + new)
            self._count = 0
            self._since_s = now_s
        self._count += num_events
        return self.per_s
