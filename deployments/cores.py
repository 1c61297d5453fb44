"""CPU pools: each rank gets cores of its own, so that one node against two is a real measurement.

A rank leases its cores with file locks in a directory of the Ray node. The kernel drops the locks when the process
ends, however it ends, so nobody has to clean up.
"""

import fcntl
import os
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..models.errors import DeviceError

# A Ray node label: the cores that this node may use. Labels allow no comma, so a dot separates ranges: `0-3.6`.
CORES_LABEL = "nfold-cores"
POLL_S = 0.1


def parse_cores(text: str) -> tuple[int, ...]:
    """The cores that `0-3.6` (or `0-3,6`) names: 0, 1, 2, 3 and 6.

    Raises:
        DeviceError: the text is not a list of cores.
    """
    cores: list[int] = []
    for part in text.replace(",", ".").split("."):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise DeviceError(f"{CORES_LABEL}={text!r}: {part!r} is not a core or a range of cores such as 0-3")
        cores.extend(range(int(first), int(last if dash else first) + 1))
    return tuple(sorted(set(cores)))


def format_cores(cores: Sequence[int]) -> str:
    """The label's value for these cores; `parse_cores` reads it back."""
    ranges: list[list[int]] = []
    for core in sorted(set(cores)):
        if ranges and ranges[-1][1] == core - 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ".".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ranges)


def node_cores(label: str | None) -> tuple[int, ...]:
    """The cores of this node: by its label, else those that this process may use."""
    return parse_cores(label) if label else tuple(sorted(os.sched_getaffinity(0)))


@dataclass(frozen=True, slots=True)
class CoreLease:
    """Cores that are this process's alone while it lives."""

    cores: tuple[int, ...]
    locks: tuple[IO[bytes], ...]

    def release(self) -> None:
        for lock in self.locks:
            lock.close()


def lease_cores(cores: Sequence[int], count: int, directory: Path, timeout_s: float = 0.0) -> CoreLease:
    """Take `count` of `cores` that no other process holds.

    Args:
        cores: the cores of this node.
        count: how many this rank needs.
        directory: of this Ray node; holds one lock file per core.
        timeout_s: how long to wait for them.

    Raises:
        DeviceError: fewer than `count` are free.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    while True:
        with (directory / "turn").open("wb") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)  # one at a time, or two ranks could each hold half of what both need
            locks = _lock_free(cores, count, directory)
        if len(locks) == count:
            return CoreLease(tuple(locks), tuple(locks.values()))
        for lock in locks.values():
            lock.close()
        if time.monotonic() >= deadline:
            raise DeviceError(
                f"this rank needs {count} cores of its own; of this node's {len(cores)} cores "
                f"({format_cores(cores)}) {len(locks)} are free"
            )
        time.sleep(POLL_S)


def _lock_free(cores: Sequence[int], count: int, directory: Path) -> dict[int, IO[bytes]]:
    """Lock files of up to `count` cores, by core."""
    locks: dict[int, IO[bytes]] = {}
    for core in cores:
        if len(locks) == count:
            break
        lock = (directory / f"core-{core}").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locks[core] = lock
        except BlockingIOError:
            lock.close()
    return locks


def pin_process(cores: Sequence[int], pid: int | None = None) -> None:
    """Keep every thread of this process, or of `pid`, on these cores; threads started later inherit it from their
    starter."""
    for thread in os.listdir(f"/proc/{'self' if pid is None else pid}/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:
            continue  # a thread that ended meanwhile


@contextmanager
def kept_on(cores: Sequence[int]) -> Generator[None]:
    """Keep this process on these cores meanwhile; on all that it may use, where none is given."""
    usual = os.sched_getaffinity(0)
    pin_process(cores or sorted(usual))
    try:
        yield
    finally:
        pin_process(sorted(usual))
