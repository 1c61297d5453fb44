"""When a message would have come if nothing had held it up.

    sent (sender's clock) ──── the way ────> at_s . . . . waits . . . .> handled (our clock)

What lies between the two clocks and the shortest way is learnt from the fastest messages of late.
"""

# Per second: clocks drift apart, and ways grow longer.
FORGETS = 0.001


class Arrivals:
    """Of the messages of one sender. Times in seconds, of two clocks that need not agree."""

    def __init__(self) -> None:
        self._least_s = self._handled_s = float("inf")

    def at_s(self, sent_s: float, handled_s: float) -> float:
        """On our clock, at most `handled_s`; call it for each message, in order."""
        passed_s = max(0.0, handled_s - self._handled_s)
        self._least_s = min(handled_s - sent_s, self._least_s + FORGETS * passed_s)
        self._handled_s = handled_s
        return sent_s + self._least_s
