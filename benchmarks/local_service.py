"""A service on this machine for the time of a measurement, started as `nfold serve` starts it."""

import signal
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from nfold.cluster.config import NfoldConfig
from nfold.cluster.run_state import RunState
from nfold.cluster.service import start_service, stop_service

Progress = Callable[[str], None]


@contextmanager
def serving(config: NfoldConfig, progress: Progress) -> Generator[RunState]:
    """The service, until the context ends; this process is connected to it. Several may follow each other.

    Its supervisor is a process of its own, so SIGTERM must end it, too, not this process alone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        state = start_service(config, home, progress)
        try:
            yield state
        finally:
            progress("stopping the service")
            stop_service(state, home, lambda text: None, drain=False)
            _forget_serve()


def _forget_serve() -> None:
    """Serve keeps a client of the cluster that is gone, which would fail at the next one."""
    from ray.serve.context import _set_global_client

    _set_global_client(None)
