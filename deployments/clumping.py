"""When to send what is bound to a replica: pure functions.

An engine takes new requests between two steps. A request that arrives during a step joins the next one, whether it
arrives early or late in it, so requests may be held and sent together as long as they still arrive in time:

    replica   ├──────── step ────────┼──────── step ────────┤
                                     ^ they must have arrived
    router         hold  .  .  send ─┘

Nothing is held when the router is not busy, or when it cannot know when the step ends. An engine may tell how long
a step is going to take; of one that does not, the shortest of late is taken.
"""

from dataclasses import dataclass

# How late in a step the last moment to send is, of what it lasts at least.
LATEST_IN_STEP = 0.85
# How fast the shortest step forgets, per step: steps grow longer with the batch.
SHORTEST_STEP_GROWTH = 1.05
_RATE_WINDOW_S = 0.1


def clump_s(requests_per_s: float, num_replicas: int, max_submits_per_s: float, max_clump_s: float) -> float:
    """How long requests wait for company, so that `num_replicas` replicas together get at most `max_submits_per_s`
    messages per second: a replica's messages are then one wait and one gap between requests apart."""
    if requests_per_s <= max_submits_per_s:
        return 0.0
    return min(num_replicas * (1.0 / max_submits_per_s - 1.0 / requests_per_s), max_clump_s)


def send_at_s(now_s: float, hold_s: float, step_began_s: float, step_s: float, delay_s: float) -> float:
    """When to send a request that is bound to a replica now.

    Args:
        hold_s: the longest that it may wait.
        step_began_s: when the replica's present step began; in the far past when that is not known.
        step_s: that this step lasts at least.
        delay_s: one way to the replica.
    """
    deadline_s = step_began_s + LATEST_IN_STEP * step_s - delay_s
    return max(now_s, min(now_s + hold_s, deadline_s))


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
