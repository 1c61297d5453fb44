"""A replica: one engine in Serve's process, told to the gateways, watched, and drained before it ends."""

import asyncio
import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

import ray
from ray import serve

from ..models.engine.protocol import Engine
from ..models.errors import EngineError
from .addresses import ReplicaIdentity
from .discovery import StartReport, publish_replica, report_start, service_keys, withdraw_replica
from .engine_service import EngineService, ServiceSettings
from .heap import settle_heap
from .ranks import OtherRanks, load_rank, meeting_point, prepare_rank
from .replica_spec import ReplicaSpec

if TYPE_CHECKING:  # an engine that computes needs none of it
    from .simulated_host import SimulatedHost

logger = logging.getLogger(__name__)

# A rank that fails drops its connections first, and tells why a moment later.
RANK_FAILURE_WAIT_S = 5.0
# A step in progress, and the farewell to the other ranks.
JOIN_TIMEOUT_S = 10.0


class PoolReplica:
    """The Serve deployment class of a pool: rank 0 of one replica, or all engines of a simulated node.

    Engines load and run in a thread of their own; Serve's event loop stays free for health checks. Serve's
    requests never come here: tokens travel between gateways and `EngineService`.
    """

    async def __init__(self, spec: ReplicaSpec) -> None:
        context = serve.get_replica_context()
        if spec.model.simulated is None:
            self._worker = EngineThread(spec, context.replica_tag)
        else:
            from .simulated_host import SimulatedHost

            self._worker = SimulatedHost(spec, context.replica_tag, context.rank.rank)
        await asyncio.wrap_future(self._worker.ready)

    def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        failure = self._worker.failure()
        if failure is not None:
            raise failure

    async def __del__(self) -> None:
        """Serve awaits this before it ends the process: a stream is never cut by scaling down."""
        worker: EngineThread | SimulatedHost | None = getattr(self, "_worker", None)
        if worker is not None:
            await asyncio.to_thread(worker.drain)


class EngineThread:
    """Loads the engine, serves it, and clears up: the one thread that touches it.

    Attributes:
        ready: resolved when the replica is told to the gateways; failed when it could not start.
    """

    def __init__(self, spec: ReplicaSpec, replica_id: str) -> None:
        self._spec = spec
        self._identity = ReplicaIdentity(
            replica_id=replica_id,
            model=spec.model.name,
            pool=spec.pool_name,
            accelerator=spec.pool.accelerator,
            node_id=ray.get_runtime_context().get_node_id(),
            tp=spec.pool.tp,
        )
        self.ready: Future[None] = Future()
        self._ranks: OtherRanks | None = None
        self._service: EngineService | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def failure(self) -> Exception | None:
        """Why the replica serves no more, once that is so. Does not wait."""
        if self._service is None or self._ranks is None:
            return None  # still loading
        if self._service.failure is not None:
            return self._service.failure
        return self._ranks.failure() if self._thread.is_alive() else EngineError("the engine has ended")

    def drain(self) -> None:
        """Take nothing new, finish what is there (within the spec's time), end the ranks."""
        withdraw_replica(self._spec.service, self._identity.replica_id)
        if self._service is not None:  # else it is still starting, and the process ends without it
            if not self._service.drain(self._spec.drain_timeout_s):
                logger.warning("not drained within %g s; routers continue elsewhere", self._spec.drain_timeout_s)
                self._service.stop()
            self._thread.join(timeout=JOIN_TIMEOUT_S)
        if self._ranks is not None:
            self._ranks.stop()

    def _run(self) -> None:
        try:
            engine = self._start()
        except Exception as error:  # whatever it is, whoever waits must hear of it
            logger.exception("replica %s could not start", self._identity.replica_id)
            self._give_up(error)
            return
        assert self._service is not None
        try:
            settle_heap()
            self.ready.set_result(None)
            self._service.run()
        finally:
            withdraw_replica(self._spec.service, self._identity.replica_id)
            engine.close()

    def _give_up(self, error: Exception) -> None:
        """Tell why the replica cannot start."""
        told = EngineError.told(error)
        if self._ranks is not None:
            if isinstance(told, EngineError):  # rank 0 may have noticed only that another one is gone
                told = self._ranks.failure(wait_s=RANK_FAILURE_WAIT_S) or told
            self._ranks.stop()
        self._report("failed", str(told))
        self.ready.set_exception(told)

    def _start(self) -> Engine:
        spec = self._spec
        self._report("preparing")
        prepared = prepare_rank(0, spec.pool)
        self._ranks = OtherRanks(spec.pool)
        self._ranks.prepare(prepared.device)
        self._report("loading")
        init_method = meeting_point()
        self._ranks.serve(spec.engine_settings, init_method)
        engine = load_rank(prepared, 0, spec.pool, spec.engine_settings, init_method)
        settings = ServiceSettings(tcp_host=ray.util.get_node_ip_address(), accounts_steps=spec.accounts_steps)
        self._service = EngineService(engine, self._identity, service_keys(spec.service), settings)
        publish_replica(spec.service, self._service.address)
        self._report("ready")
        return engine

    def _report(self, phase: str, error: str = "") -> None:
        identity = self._identity
        report = StartReport(
            replica_id=identity.replica_id,
            pool=identity.pool,
            node_id=identity.node_id,
            phase=phase,
            error=error,
            serves=(identity.replica_id,),
        )
        report_start(self._spec.service, report)
