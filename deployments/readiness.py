"""Waiting until a service serves, with progress, and with the replica's own words when it cannot."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx
import msgspec
import ray
from ray import serve
from ray.serve.schema import ApplicationStatus

from ..models.errors import EngineError, StateError
from . import discovery
from .application import ServicePlan
from .config import HttpConfig, ServiceConfig
from .nodes import alive_nodes
from .router_stats import RouterSnapshot

POLL_S = 0.25
HEALTH_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class PoolProgress:
    """How far a pool has come.

    Attributes:
        num_ready: replicas that every gateway reaches.
        phases: what the others do, as they told last.
    """

    pool: str
    num_ready: int
    num_wanted: int
    phases: tuple[str, ...]

    def __str__(self) -> str:
        others = Counter("not reached yet" if phase == "ready" else phase for phase in self.phases)
        told = "".join(f", {count} {phase}" for phase, count in others.items())
        return f"{self.pool}: {self.num_ready} of {self.num_wanted} ready{told}"


def wait_ready(
    config: ServiceConfig,
    plan: ServicePlan,
    timeout_s: float,
    on_progress: Callable[[Sequence[PoolProgress]], None] | None = None,
    since: float = 0.0,
) -> None:
    """Wait until the API answers and every gateway reaches all replicas of all pools.

    Args:
        plan: what is wanted now; after scaling, `dataclasses.replace` it.
        on_progress: called whenever something changed.
        since: failures before this time (seconds since the epoch) are of an earlier start.

    Raises:
        EngineError: a replica could not start; the message is its own.
        StateError: not ready in time, or the service was taken down.
    """
    deadline = time.monotonic() + timeout_s
    told: list[PoolProgress] = []
    while True:
        starts = discovery.list_starts(config.name)
        for report in starts:
            if report.error and report.at >= since:
                raise EngineError(f"a replica of {report.pool} could not start: {report.error}")
        problem = _serve_problem(config.name)
        snapshots = [
            msgspec.msgpack.decode(value, type=RouterSnapshot)
            for value in discovery.list_gateways(config.name).values()
        ]
        progress = [
            _progress(pool, wanted, starts, snapshots) for pool, wanted in sorted(plan.num_replicas.items())
        ]
        if progress != told:
            told = progress
            if on_progress is not None:
                on_progress(progress)
        if problem is None and all(each.num_ready >= each.num_wanted for each in progress):
            problem = _gateway_problem(config.http, plan, len(snapshots))
            if problem is None:
                return
        if time.monotonic() >= deadline:
            state = "; ".join([*map(str, progress), problem or "replicas are missing"])
            raise StateError(f"service {config.name!r} is not ready after {timeout_s:g} s: {state}")
        time.sleep(POLL_S)


def _gateway_problem(http: HttpConfig, plan: ServicePlan, num_gateways: int) -> str | None:
    if num_gateways < plan.num_gateways:
        return f"{num_gateways} of {plan.num_gateways} gateways are ready"
    if ray.get_runtime_context().get_node_id() != alive_nodes()[0].node_id:
        return None  # the API is the head's, and may listen on its loopback only
    url = f"http://{'127.0.0.1' if http.host in ('0.0.0.0', '::') else http.host}:{http.port}/health"
    try:
        status = httpx.get(url, timeout=HEALTH_TIMEOUT_S, trust_env=False).status_code
    except httpx.TransportError as error:
        return f"{url} does not answer yet: {error}"
    return None if status == 200 else f"{url} answers {status}"


def _serve_problem(service: str) -> str | None:
    """What Serve still waits for; None when all deployments are as wanted.

    Raises:
        EngineError, StateError: it waits no more.
    """
    application = serve.status().applications.get(service)
    if application is None or application.status == ApplicationStatus.DELETING:
        raise StateError(f"service {service!r} is not running")
    if application.status == ApplicationStatus.DEPLOY_FAILED:
        raise EngineError(f"Ray Serve could not start service {service!r}: {application.message}")
    if application.status == ApplicationStatus.RUNNING:
        return None
    waiting = [
        f"{name} {deployment.status}"
        for name, deployment in application.deployments.items()
        if deployment.status != "HEALTHY"
    ]
    return f"Ray Serve: {application.status}" + (f" ({', '.join(waiting)})" if waiting else "")


def _progress(
    pool: str, num_wanted: int, starts: Sequence[discovery.StartReport], snapshots: Sequence[RouterSnapshot]
) -> PoolProgress:
    reached = [
        {replica.address.replica_id for replica in snapshot.replicas if replica.state == "ready"}
        for snapshot in snapshots
    ]
    known = set[str].intersection(*reached) if reached else set[str]()
    own = [report for report in starts if report.pool == pool]
    ready = [report for report in own if report.serves and known.issuperset(report.serves)]
    phases = tuple(report.phase for report in own if report not in ready and not report.error)
    return PoolProgress(pool, len(ready), num_wanted, phases)
