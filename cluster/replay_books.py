"""What replicas and router of a replay count for the ledger, as live ones do."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..deployments.step_account import StepAccount
from ..models.engine.simulated.scheduler import StepWork
from .ledger import Presence, ReplicaCounters

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class ReplayBooks:
    """Counters of all replicas of a replay.

    Args:
        yardsticks: name of each replica's.
        nodes: of each.
        from_s, until_s: [K] between which each serves: before it starts, from then on it is dead.
    """

    def __init__(self, yardsticks: Sequence[str], nodes: Sequence[str], from_s: F64, until_s: F64) -> None:
        num = len(yardsticks)
        self._yardsticks = yardsticks
        self._nodes = nodes
        self._from_s, self._until_s = from_s, until_s
        self._accounts = [StepAccount() for _ in range(num)]
        self._busy_s = np.zeros(num)
        self._began_s = np.full(num, np.nan)
        self._num_output = np.zeros(num, np.int64)
        self._in_flight_s = np.zeros(num)
        self._counted_s = 0.0

    def begin_step(self, replica: int, now_s: float) -> None:
        self._began_s[replica] = now_s

    def end_step(self, replica: int, step_s: float, work: StepWork, num_held: int) -> None:
        """Before what ended in it is taken off `num_held`."""
        self._accounts[replica].add(work.record(step_s), num_held)
        self._busy_s[replica] += step_s
        self._began_s[replica] = np.nan

    def add_tokens(self, replica: int, num_tokens: int) -> None:
        self._num_output[replica] += num_tokens

    def count_in_flight(self, in_flight: I64, now_s: float) -> None:
        """Before it changes."""
        self._in_flight_s += in_flight * (now_s - self._counted_s)
        self._counted_s = now_s

    def counters(self, time_s: float, in_flight: I64, num_waiting: Sequence[int]) -> tuple[ReplicaCounters, ...]:
        """As of a moment at which nothing happens."""
        self.count_in_flight(in_flight, time_s)
        return tuple(
            self._counters_of(replica, time_s, int(in_flight[replica]), num_waiting[replica])
            for replica in range(len(self._accounts))
        )

    def _counters_of(self, replica: int, time_s: float, in_flight: int, num_waiting: int) -> ReplicaCounters:
        service_s = time_s - float(self._from_s[replica])
        began_s = float(self._began_s[replica])
        open_s = 0.0 if np.isnan(began_s) else time_s - began_s
        presence = Presence.SERVING
        if service_s < 0.0:
            presence, service_s = Presence.STARTING, 0.0
        elif time_s >= self._until_s[replica]:
            presence = Presence.DEAD
        # Rounded, or it would at times go back by a rounding error.
        idle_s = max(0.0, round(service_s - float(self._busy_s[replica]) - open_s, 6))
        return ReplicaCounters(
            replica=str(replica),
            node=self._nodes[replica],
            yardstick=self._yardsticks[replica],
            presence=presence,
            service_s=service_s,
            idle_s=idle_s,
            output_tokens=int(self._num_output[replica]),
            num_in_flight=in_flight,
            num_waiting=num_waiting,
            steps=self._accounts[replica].totals(open_s),
            in_flight_s=float(self._in_flight_s[replica]),
        )
