"""The replica's side of the data path: one thread, one engine, one message per step and gateway. (In work.)"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..models.engine.protocol import Engine
from .addresses import ReplicaAddress, ReplicaIdentity, ServiceKeys
from .wire import ReplicaStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """How the service behaves.

    Attributes:
        ipc_parent: where the 0700 directory of the ipc socket is made; None takes the system's temporary one.
        tcp_host: the node's address to bind to; None binds no tcp. Needs keys.
        status_s: seconds between two Status messages.
        gateway_dead_after_s: a gateway that says nothing for so long is gone.
    """

    ipc_parent: Path | None = None
    tcp_host: str | None = None
    status_s: float = 1.0
    gateway_dead_after_s: float = 15.0


class EngineService:
    """Serves one engine to routers.

    The constructor binds the sockets, so `address` is known at once. `run` is the blocking loop of one thread; all
    other methods and properties may be used from any thread.

    Args:
        keys: the service's; None means ipc only.
    """

    address: ReplicaAddress

    def __init__(
        self,
        engine: Engine,
        identity: ReplicaIdentity,
        keys: ServiceKeys | None,
        settings: ServiceSettings = ServiceSettings(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        raise NotImplementedError

    @property
    def status(self) -> ReplicaStatus:
        """As last sent (refreshed every `status_s`, also when no gateway is connected)."""
        raise NotImplementedError

    @property
    def failure(self) -> Exception | None:
        """What ended the loop, once the engine failed: the health check must fail then."""
        raise NotImplementedError

    def run(self) -> None:
        """Serve until `stop`, until drained, or until the engine fails (see `failure`). Closes the sockets."""
        raise NotImplementedError

    def begin_drain(self) -> None:
        """Take nothing new from now on; `run` returns when all requests are finished."""
        raise NotImplementedError

    def drain(self, timeout_s: float) -> bool:
        """`begin_drain`, then wait for `run` to return. False when time ran out."""
        raise NotImplementedError

    def stop(self) -> None:
        """Make `run` return after the step in progress; routers continue what was in flight elsewhere."""
        raise NotImplementedError
