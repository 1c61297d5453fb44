"""One simulated node: a Serve replica whose one thread carries an engine for each of the node's accelerators.

To routers each engine is a replica of its own, `<Serve's replica>.<engine>`, with its own address and messages. One
that fails is withdrawn alone. There is no torch in this process.
"""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import ray

from ..models.engine.simulated.engine import SimulatedEngine
from ..models.errors import EngineError
from .addresses import ReplicaIdentity, ServiceKeys
from .discovery import StartReport, publish_replica, report_start, service_keys, withdraw_replica
from .engine_host import EngineHost
from .engine_service import EngineService, ServiceSettings
from .heap import settle_heap
from .placement import engines_per_node
from .replica_spec import ReplicaSpec
from .simulated_config import ANSWER_VOCAB_SIZE
from .transport import SocketHost

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 10.0
# A tenth of a usual step. No real engine shares its process, so this costs and spares simulated ones alone.
GATHER_S = 0.01


def make_services(
    spec: ReplicaSpec,
    identities: Sequence[ReplicaIdentity],
    host_index: int,
    keys: ServiceKeys | None,
    settings: ServiceSettings,
    sockets: SocketHost,
) -> list[EngineService]:
    """A simulated engine behind a service of its own for each identity.

    Args:
        host_index: which simulated node of its pool this is, from 0; decides which faults hit.
    """
    simulated = spec.model.simulated
    assert simulated is not None, "a simulated pool"
    profile = simulated.profile(spec.pool.accelerator)
    return [
        EngineService(
            SimulatedEngine(
                profile,
                simulated.scenario,
                faults=simulated.faults_of(host_index, index),
                max_model_len=spec.model.engine.max_model_len,
                vocab_size=ANSWER_VOCAB_SIZE,
            ),
            identity,
            keys,
            settings,
            host=sockets,
        )
        for index, identity in enumerate(identities)
    ]


class SimulatedHost:
    """What `EngineThread` is to one engine, for all of a simulated node.

    Args:
        host_index: see `make_services`.

    Attributes:
        ready: resolved when the engines are told to the gateways; failed when they could not start.
    """

    def __init__(self, spec: ReplicaSpec, replica_id: str, host_index: int) -> None:
        self._spec = spec
        self._replica_id = replica_id
        self._host_index = host_index
        self._node_id = ray.get_runtime_context().get_node_id()
        self.ready: Future[None] = Future()
        self._host: EngineHost | None = None
        self._serving: list[str] = []
        self._thread = threading.Thread(target=self._run, name="engines", daemon=True)
        self._thread.start()

    def failure(self) -> Exception | None:
        """Why no engine serves any more, once that is so. Does not wait."""
        if self._host is None:
            return None  # still starting
        if self._host.failure is not None:
            return self._host.failure
        return None if self._thread.is_alive() else EngineError("the engines have ended")

    def drain(self) -> None:
        """Take nothing new, finish what is there (within the spec's time)."""
        for replica_id in list(self._serving):
            withdraw_replica(self._spec.service, replica_id)
        if self._host is not None:
            if not self._host.drain(self._spec.drain_timeout_s):
                logger.warning("not drained within %g s; routers continue elsewhere", self._spec.drain_timeout_s)
                self._host.stop()
            self._thread.join(timeout=JOIN_TIMEOUT_S)

    def _run(self) -> None:
        try:
            host = self._start()
        except Exception as error:  # whatever it is, whoever waits must hear of it
            logger.exception("simulated node %s could not start", self._replica_id)
            told = EngineError.told(error)
            self._report("failed", str(told))
            self.ready.set_exception(told)
            return
        try:
            settle_heap()
            self.ready.set_result(None)
            host.run()
        finally:
            for replica_id in list(self._serving):
                withdraw_replica(self._spec.service, replica_id)

    def _start(self) -> EngineHost:
        self._report("starting")
        spec, sockets = self._spec, SocketHost()
        num_engines = engines_per_node(spec.pool.accelerator, _own_resources(self._node_id))
        identities = [self._identity(index) for index in range(num_engines)]
        settings = ServiceSettings(tcp_host=ray.util.get_node_ip_address(), accounts_steps=spec.accounts_steps)
        keys = service_keys(spec.service)
        services = make_services(spec, identities, self._host_index, keys, settings, sockets)
        self._host = EngineHost(services, sockets, self._withdraw, gather_s=GATHER_S)
        for service in services:
            publish_replica(spec.service, service.address)
            self._serving.append(service.address.replica_id)
        self._report("ready")
        return self._host

    def _identity(self, index: int) -> ReplicaIdentity:
        return ReplicaIdentity(
            replica_id=f"{self._replica_id}.{index}",
            model=self._spec.model.name,
            pool=self._spec.pool_name,
            accelerator=self._spec.pool.accelerator,
            node_id=self._node_id,
        )

    def _withdraw(self, service: EngineService) -> None:
        replica_id = service.address.replica_id
        logger.error("engine %s has failed and is withdrawn: %s", replica_id, service.failure)
        withdraw_replica(self._spec.service, replica_id)
        self._serving.remove(replica_id)
        self._report("ready")

    def _report(self, phase: str, error: str = "") -> None:
        report = StartReport(
            replica_id=self._replica_id,
            pool=self._spec.pool_name,
            node_id=self._node_id,
            phase=phase,
            error=error,
            serves=tuple(self._serving),
        )
        report_start(self._spec.service, report)


def _own_resources(node_id: str) -> dict[str, float]:
    return next(node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id)
