"""Waiting until a service serves, with progress, and with the replica's own words when it cannot."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from ray import serve
from ray.serve.schema import ApplicationStatus

from ..models.errors import EngineError, StateError
from . import discovery
from .router_stats import RouterSnapshot

POLL_S = 0.25


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
        return f"{self.pool}: {self.num_ready} of {self.num_wanted} ready{''.join(f', {p}' for p in self.phases)}"


def wait_ready(
    service: str,
    num_replicas: Mapping[str, int],
    timeout_s: float,
    on_progress: Callable[[Sequence[PoolProgress]], None] | None = None,
    since: float = 0.0,
) -> None:
    """Wait until every gateway reaches all replicas of all pools.

    Args:
        num_replicas: by pool, as wanted.
        on_progress: called whenever something changed.
        since: failures before this time (seconds since the epoch) are of an earlier start.

    Raises:
        EngineError: a replica could not start; the message is its own.
        StateError: not ready in time, or the service was taken down.
    """
    deadline = time.monotonic() + timeout_s
    told: list[PoolProgress] = []
    while True:
        starts = [report for report in discovery.list_starts(service) if report.at >= since]
        for report in starts:
            if report.error:
                raise EngineError(f"a replica of {report.pool} could not start: {report.error}")
        problem = _problem(service)
        snapshots = [
            msgspec.msgpack.decode(value, type=RouterSnapshot)
            for value in discovery.list_gateways(service).values()
        ]
        progress = [_progress(pool, num_replicas[pool], starts, snapshots) for pool in sorted(num_replicas)]
        if progress != told:
            told = progress
            if on_progress is not None:
                on_progress(progress)
        if problem is None and all(each.num_ready >= each.num_wanted for each in progress):
            return
        if time.monotonic() >= deadline:
            state = "; ".join(map(str, progress)) + (f"; {problem}" if problem else "")
            raise StateError(f"service {service!r} is not ready after {timeout_s:g} s: {state}")
        time.sleep(POLL_S)


def _problem(service: str) -> str | None:
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
    phases = tuple(report.phase for report in own if report.replica_id not in known)
    return PoolProgress(pool, sum(report.replica_id in known for report in own), num_wanted, phases)
