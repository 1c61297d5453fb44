"""When the requests of a load come: pure schedules on a clock that starts at 0."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class Arrivals(Protocol):
    """How many requests are due, and when."""

    @property
    def steady(self) -> bool:
        """Whether the load settles, so that a window in its midst is measured; else the whole run is."""
        ...

    @property
    def open(self) -> bool:
        """Whether requests come whatever becomes of the earlier ones; then a refusal is a result, not a mistake."""
        ...

    def take_due(self, elapsed_s: float, num_submitted: int, num_in_flight: int) -> list[float]:
        """When each of the requests to submit now was due. Latencies count from then, not from when it was sent."""
        ...

    def next_due_s(self) -> float:
        """When the next one comes by the clock alone; infinite where it waits for others to end."""
        ...

    def ramped_up(self, num_finished: int) -> bool:
        """Whether the load has settled."""
        ...

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class ClosedLoop:
    """`concurrency` requests are in flight, but for moments. Settled when as many have ended and so are spread."""

    concurrency: int
    steady: bool = field(default=True, init=False)
    open: bool = field(default=False, init=False)

    def take_due(self, elapsed_s: float, num_submitted: int, num_in_flight: int) -> list[float]:
        return [elapsed_s] * (self.concurrency - num_in_flight)

    def next_due_s(self) -> float:
        return float("inf")

    def ramped_up(self, num_finished: int) -> bool:
        return num_finished >= self.concurrency

    def __str__(self) -> str:
        return f"closed loop of {self.concurrency}"


@dataclass(frozen=True)
class Offline:
    """All at once."""

    num_requests: int
    steady: bool = field(default=False, init=False)
    open: bool = field(default=False, init=False)

    def take_due(self, elapsed_s: float, num_submitted: int, num_in_flight: int) -> list[float]:
        return [elapsed_s] * (self.num_requests - num_submitted)

    def next_due_s(self) -> float:
        return float("inf")

    def ramped_up(self, num_finished: int) -> bool:
        return True

    def __str__(self) -> str:
        return f"offline, {self.num_requests} at once"


class Poisson:
    """Independent users: exponential gaps of mean 1 / `rate_per_s`, the same for the same seed. For one run."""

    steady = True
    open = True

    def __init__(self, rate_per_s: float, seed: int = 0) -> None:
        assert rate_per_s > 0
        self._rate_per_s = rate_per_s
        self._rng = np.random.default_rng(seed)
        self._next_s = self._gap_s()

    def take_due(self, elapsed_s: float, num_submitted: int, num_in_flight: int) -> list[float]:
        due: list[float] = []
        while self._next_s <= elapsed_s:
            due.append(self._next_s)
            self._next_s += self._gap_s()
        return due

    def next_due_s(self) -> float:
        return self._next_s

    def ramped_up(self, num_finished: int) -> bool:
        return num_finished > 0

    def __str__(self) -> str:
        return f"Poisson, {self._rate_per_s:g} requests/s"

    def _gap_s(self) -> float:
        return float(self._rng.exponential(1 / self._rate_per_s))
