"""Replica counts of a running service's pools: reading, changing and awaiting them. Needs a connected process."""

import time
from collections.abc import Mapping

from ray import serve
from ray.serve.schema import DeploymentStatusOverview, ReplicaState

from ..deployments.application import GATEWAYS, ServicePlan, scale_gateways, scale_pool
from ..deployments.nodes import alive_nodes
from ..deployments.readiness import wait_ready
from ..models.errors import StateError
from .config import NfoldConfig
from .published import COUNTED_STATES
from .service import DRAIN_SLACK_S, READY_TIMEOUT_S, Progress, told_pools

POLL_S = 0.25


def replica_counts(config: NfoldConfig) -> dict[str, int]:
    """Replicas of each pool that are there or on their way.

    Raises:
        StateError: the service is not running.
    """
    deployments = _deployments(config)
    return {
        pool: sum(deployments[pool].replica_states.get(state, 0) for state in COUNTED_STATES)
        for pool in config.pools
    }


def pool_states(config: NfoldConfig) -> dict[str, dict[str, int]]:
    """Replicas of each pool by Serve's state in words, such as `running`.

    Raises:
        StateError: the service is not running.
    """
    deployments = _deployments(config)
    return {
        pool: {_word(state): count for state, count in deployments[pool].replica_states.items()}
        for pool in config.pools
    }


def scale_pools(config: NfoldConfig, targets: Mapping[str, int], progress: Progress) -> None:
    """Give pools these numbers of replicas, and wait until those that come serve and those that go are gone.

    Raises:
        StateError: not in time: starting has its own bound, draining that of the config.
        EngineError: a replica does not start.
    """
    since, before = time.time(), replica_counts(config)
    counts = {**before, **targets}
    num_gateways = len({node.address for node in alive_nodes()}) * config.http.gateways
    for pool, target in targets.items():
        scale_pool(config.name, pool, target)
    scale_gateways(config.name, num_gateways)
    if any(counts[pool] > before[pool] for pool in counts):
        plan = ServicePlan(counts, num_gateways, ingress_everywhere=False)
        wait_ready(config, plan, READY_TIMEOUT_S, told_pools(progress), since)
    wait_settled(config, counts, progress)


def wait_settled(config: NfoldConfig, counts: Mapping[str, int], progress: Progress) -> None:
    """Until exactly the wanted replicas are there, and none ends or moves any more."""
    timeout_s = config.drain_timeout_s + DRAIN_SLACK_S
    give_up_at, told = time.monotonic() + timeout_s, ""
    while True:
        moving = "; ".join(
            f"{name}: {_in_words(status.replica_states)}"
            for name, status in _deployments(config).items()
            if set(status.replica_states) != {ReplicaState.RUNNING}
            or (name != GATEWAYS and status.replica_states[ReplicaState.RUNNING] != counts[name])
        )
        if not moving:
            return
        if time.monotonic() > give_up_at:
            raise StateError(f"not drained after {timeout_s:.0f} s: {moving}")
        if moving != told:
            progress(moving)
            told = moving
        time.sleep(POLL_S)


def _deployments(config: NfoldConfig) -> Mapping[str, DeploymentStatusOverview]:
    application = serve.status().applications.get(config.name)
    if application is None:
        raise StateError(f"service {config.name!r} is not running on this cluster")
    return application.deployments


def _in_words(states: Mapping[ReplicaState, int]) -> str:
    return ", ".join(f"{count} {_word(state)}" for state, count in states.items())


def _word(state: str) -> str:
    return ReplicaState(state).value.lower().replace("_", " ")  # Serve says states, and hands out plain strings
