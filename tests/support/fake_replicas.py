"""Replicas of fake engines in threads of this process, reached over real sockets."""

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fake_engine import FakeEngine
from nfold.deployments.addresses import ReplicaAddress, ReplicaIdentity
from nfold.deployments.engine_service import EngineService, ServiceSettings

MODEL = "fake"


@contextmanager
def fake_replicas(
    engines: Sequence[FakeEngine], directory: Path, *, node_ids: Sequence[str] | None = None, status_s: float = 0.05
) -> Generator[list[ReplicaAddress]]:
    """One replica per engine, on `node_ids` (each on a node of its own when None)."""
    nodes = node_ids or [f"node-{i}" for i in range(len(engines))]
    services = [
        EngineService(
            engine,
            ReplicaIdentity(replica_id=f"replica-{i}", model=MODEL, pool="cpu", node_id=node),
            None,
            ServiceSettings(ipc_parent=directory, status_s=status_s),
        )
        for i, (engine, node) in enumerate(zip(engines, nodes, strict=True))
    ]
    threads = [threading.Thread(target=service.run, daemon=True) for service in services]
    for thread in threads:
        thread.start()
    try:
        yield [service.address for service in services]
    finally:
        for engine, service in zip(engines, services, strict=True):
            engine.gate.set()
            service.stop()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
