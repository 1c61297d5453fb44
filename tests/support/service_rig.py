"""Replicas with fake engines in threads, and routers that talk to them over real sockets."""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, TypeVar

from fake_engine import FakeEngine
from nfold.deployments.addresses import ReplicaAddress, ReplicaIdentity, ServiceKeys
from nfold.deployments.engine_service import EngineService, ServiceSettings
from nfold.deployments.router import Router, RouterSettings, TokenChunk
from nfold.models.engine.protocol import FinishReason

TIMEOUT_S = 30.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    """For what other threads do. Fails after TIMEOUT_S."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {TIMEOUT_S} s for {what}"
        time.sleep(0.002)


def poll_until(router: Router, condition: Callable[[], object], what: str) -> int:
    """Drive the router until `condition`. Returns how many messages it handled."""
    deadline = time.monotonic() + TIMEOUT_S
    num_messages = 0
    while not condition():
        assert time.monotonic() < deadline, f"waited {TIMEOUT_S} s for {what}"
        num_messages += router.poll(0.01)
    return num_messages


@dataclass
class Answer:
    """A sink that keeps what it gets."""

    chunks: list[TokenChunk] = field(default_factory=list)

    def __call__(self, chunk: TokenChunk) -> None:
        assert not self.ended, "a chunk after the last one"
        self.chunks.append(chunk)

    @property
    def tokens(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    @property
    def finish(self) -> FinishReason:
        return self.chunks[-1].finish if self.chunks else FinishReason.NONE

    @property
    def ended(self) -> bool:
        return self.finish != FinishReason.NONE


@dataclass
class Running:
    """One replica at work."""

    service: EngineService
    engine: FakeEngine
    thread: threading.Thread

    @property
    def address(self) -> ReplicaAddress:
        return self.service.address


class Closes(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=Closes)


class Rig:
    """Starts replicas and routers and ends them all, also when a test fails: a context of ZMQ that is left open is
    collected in whatever thread comes next, and blocks it for ever."""

    def __init__(self) -> None:
        self._running: list[Running] = []
        self._to_close: list[Closes] = []

    def __enter__(self) -> "Rig":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thing in self._to_close:
            thing.close()
        for running in self._running:
            running.engine.gate.set()
            running.service.stop()
        for running in self._running:
            running.thread.join(TIMEOUT_S)
            assert not running.thread.is_alive(), f"the service does not end; it is at\n{_place_of(running.thread)}"

    def replica(
        self,
        replica_id: str,
        engine: FakeEngine | None = None,
        *,
        model: str = "m",
        pool: str = "p",
        node_id: str = "",
        keys: ServiceKeys | None = None,
        settings: ServiceSettings | None = None,
    ) -> Running:
        engine = engine or FakeEngine()
        identity = ReplicaIdentity(replica_id=replica_id, model=model, pool=pool, node_id=node_id)
        service = EngineService(engine, identity, keys, settings or ServiceSettings(status_s=0.05))
        thread = threading.Thread(target=service.run, name=f"replica {replica_id}", daemon=True)
        thread.start()
        self._running.append(Running(service, engine, thread))
        return self._running[-1]

    def closing(self, thing: C) -> C:
        """`thing`, which is closed at the end (again, if the test did)."""
        self._to_close.append(thing)
        return thing

    def router(
        self,
        *replicas: Running,
        settings: RouterSettings | None = None,
        keys: ServiceKeys | None = None,
        router_id: str = "router",
    ) -> Router:
        """Connected to all given replicas, which are ready."""
        router = self.closing(Router(router_id, keys, settings or RouterSettings(tick_s=0.02)))
        router.update_replicas([replica.address for replica in replicas])
        poll_until(router, lambda: states(router) == {"ready"} or not replicas, "replicas that are ready")
        return router


def _place_of(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame))


def states(router: Router) -> set[str]:
    return {replica.state for replica in router.snapshot().replicas}
