"""Many paced engines in one thread: each keeps its own service, with its own socket, sessions and status."""

import logging
import math
import time
from collections.abc import Callable, Sequence

from .engine_service import EngineService
from .transport import SocketHost

logger = logging.getLogger(__name__)


class EngineHost:
    """Takes turns among the services of paced engines.

    `run` is the blocking loop of one thread; all other methods may be used from any thread.

    Args:
        services: made with `sockets`.
        sockets: closed at the end of `run`.
        on_failure: told of each service whose engine failed, in the loop's thread; the others go on.
        clock: the engines'.
        gather_s: how late a step may be told, for turns of several engines in a row, which are cheaper than one by
            one after a sleep each. The engines' schedules do not move.
    """

    def __init__(
        self,
        services: Sequence[EngineService],
        sockets: SocketHost,
        on_failure: Callable[[EngineService], None],
        clock: Callable[[], float] = time.monotonic,
        gather_s: float = 0.0,
    ) -> None:
        self._services = tuple(services)
        self._sockets = sockets
        self._on_failure = on_failure
        self._clock = clock
        self._gather_s = gather_s if len(self._services) > 1 else 0.0

    @property
    def failure(self) -> Exception | None:
        """What ended the last service, once all engines have failed: the health check must fail then."""
        failures = [service.failure for service in self._services]
        return failures[-1] if all(failures) else None

    def run(self) -> None:
        """Serve until every service has ended (see `EngineService.run`)."""
        due = dict.fromkeys(self._services, self._clock())
        try:
            while due:
                self._take_turns(due)
        finally:
            self._sockets.close()

    def drain(self, timeout_s: float) -> bool:
        """Take nothing new, and wait until all that is in flight is finished. False when time ran out."""
        give_up_at_s = time.monotonic() + timeout_s
        for service in self._services:
            service.begin_drain()
        return all(service.wait_ended(give_up_at_s - time.monotonic()) for service in self._services)

    def stop(self) -> None:
        """End all services; routers continue what was in flight elsewhere."""
        for service in self._services:
            service.stop()

    def _take_turns(self, due: dict[EngineService, float]) -> None:
        """Wait for the next message or the earliest step; give a turn to whom it concerns; drop who has ended."""
        ready = self._sockets.wait(min(due.values()) + self._gather_s - self._clock())
        now_s = self._clock()
        for service, due_s in list(due.items()):
            if due_s <= now_s or ready is None or (ready and service.has_messages(ready)):
                due[service] = service.turn()
                if due[service] == math.inf:
                    del due[service]
                    if service.failure is not None:
                        self._on_failure(service)
