"""CPU seconds by part: the router (this process), the engines' hosts, and everything else of the service."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

ENGINES, OTHERS = "engines", "others"


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """Used by each part.

    Attributes:
        router: this process, all threads.
        engines: the processes that carry engines.
        others: Ray's own, and gateways.
        machine: all cores together, whoever used them.
        wall_s: time that passed, times the cores of the machine is what there was.
    """

    router: float
    engines: float
    others: float
    machine: float
    wall_s: float

    def __sub__(self, earlier: "CpuSeconds") -> "CpuSeconds":
        return CpuSeconds(
            self.router - earlier.router,
            self.engines - earlier.engines,
            self.others - earlier.others,
            self.machine - earlier.machine,
            self.wall_s - earlier.wall_s,
        )

    @property
    def busy_share(self) -> float:
        """Of all cores of the machine."""
        return self.machine / (self.wall_s * (psutil.cpu_count() or 1))


class CpuMeter:
    """Reads the CPU times of processes that stay the same while it is used.

    Args:
        processes: each with its part, `ENGINES` or `OTHERS`; not this process.
    """

    def __init__(self, processes: Iterable[tuple[psutil.Process, str]]) -> None:
        self._processes = list(processes)

    @property
    def num_engine_processes(self) -> int:
        return sum(part == ENGINES for _, part in self._processes)

    def read(self) -> CpuSeconds:
        """Totals so far."""
        used = {ENGINES: 0.0, OTHERS: 0.0}
        for process, part in self._processes:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            used[part] += times.user + times.system
        whole = psutil.cpu_times()
        idle = whole.idle + getattr(whole, "iowait", 0.0)
        return CpuSeconds(time.process_time(), used[ENGINES], used[OTHERS], sum(whole[:8]) - idle, time.monotonic())


def service_processes(
    processes: Iterable[psutil.Process], carries_engines: Callable[[str], bool]
) -> list[tuple[psutil.Process, str]]:
    """Each with its part, by its command line."""
    found: list[tuple[psutil.Process, str]] = []
    for process in processes:
        try:
            command = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        found.append((process, ENGINES if carries_engines(command) else OTHERS))
    return found
