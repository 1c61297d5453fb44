"""Where, when and with what a figure was measured."""

import os
import platform
import socket
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from .record import Record

_DISTRIBUTIONS = ("nfold", "torch", "transformers", "ray", "numpy")


class Provenance(Record):
    """What stands beside every kept figure.

    Attributes:
        date: ISO 8601, UTC.
        host: name of the measuring process's host.
        cpu: CPU model of that host.
        num_cores: cores that the process may use.
        versions: of nfold, torch, transformers, ray, numpy and python.
    """

    date: str
    host: str
    cpu: str
    num_cores: int
    versions: dict[str, str]


def provenance() -> Provenance:
    """That of a figure measured here and now."""
    return Provenance(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        host=socket.gethostname(),
        cpu=_cpu_model(),
        num_cores=len(os.sched_getaffinity(0)),
        versions={name: version(name) for name in _DISTRIBUTIONS} | {"python": platform.python_version()},
    )


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
