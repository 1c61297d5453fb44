"""A service on this machine for the time of a measurement, started as `nfold serve` starts it."""

import signal
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
from control_plane_cpu import service_processes
from nfold.cluster.config import NfoldConfig
from nfold.cluster.processes import session_processes
from nfold.cluster.run_state import RunState
from nfold.cluster.service import Progress, start_service, stop_service


@contextmanager
def serving(config: NfoldConfig, progress: Progress, home: Path | None = None) -> Generator[RunState]:
    """The service, until the context ends; this process is connected to it. Several may follow each other.

    Its supervisor is a process of its own, so SIGTERM must end it, too, not this process alone.

    Args:
        home: where it keeps what is to be kept; by default a folder that goes away.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as directory:
        home = home or Path(directory)
        state = start_service(config, home, progress)
        try:
            yield state
        finally:
            progress("stopping the service")
            stop_service(state, home, lambda text: None, drain=False)
            _forget_serve()


def processes_of(state: RunState) -> list[tuple[psutil.Process, str]]:
    """All of a local cluster and its service, each with its part, see `CpuMeter`."""
    assert state.local is not None
    leader = state.local.supervisor_pid
    pools = [f"ServeReplica:{state.config.name}:{pool}" for pool in state.config.pools]
    found = [psutil.Process(leader), *session_processes(leader)]
    return service_processes(found, lambda command: any(pool in command for pool in pools))


def _forget_serve() -> None:
    """Serve keeps a client of the cluster that is gone, which would fail at the next one."""
    from ray.serve.context import _set_global_client

    _set_global_client(None)
