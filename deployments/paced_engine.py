"""What an engine has that many can share a thread with."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class PacedEngine(Protocol):
    """An engine whose steps end by the clock, so that no thread has to wait inside `step`."""

    def next_step_at(self) -> float | None:
        """When `step` is due; None when nothing is."""
        ...

    def next_intake(self) -> tuple[float, float] | None:
        """When it takes in requests next, and how long from one such time to the next; None while it has no step
        to run, and takes them at any time."""
        ...
