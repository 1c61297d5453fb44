"""The replicas of a service as Serve has them, and ending single ones. Needs a connected process."""

import contextlib
from collections.abc import Collection
from typing import Any

import ray
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.schema import ReplicaState

from ...deployments.application import GATEWAYS
from ...deployments.serve_details import Deployments
from .actuation import ActualPool, ActualReplica

# A recovering replica serves: only Serve's controller started anew.
RUNNING = (ReplicaState.RUNNING, ReplicaState.RECOVERING, ReplicaState.PENDING_MIGRATION)
STARTING = (ReplicaState.STARTING, ReplicaState.UPDATING)


def pools_in(deployments: Deployments, pools: Collection[str]) -> tuple[ActualPool, ...]:
    return tuple(_pool(name, deployments[name]) for name in pools if name in deployments)


def _pool(name: str, details: dict[str, Any]) -> ActualPool:
    states = [replica["state"] for replica in details["replicas"]]
    starting = sum(state in STARTING for state in states)
    return ActualPool(
        pool=name,
        wanted=details["target_num_replicas"],
        starting=starting,
        running=sum(state in RUNNING for state in states),
        draining=sum(state == ReplicaState.STOPPING for state in states),
        reason=details["message"] if starting or details["status"] == "UNHEALTHY" else "",
    )


def replicas_in(deployments: Deployments, pools: Collection[str]) -> tuple[ActualReplica, ...]:
    return tuple(
        ActualReplica(
            replica_id=replica["replica_id"],
            pool=name,
            node_id=replica.get("node_id") or "",
            state=ReplicaState(replica["state"]).value.lower(),
        )
        for name in pools
        if name in deployments
        for replica in deployments[name]["replicas"]
    )


def gateways_in(deployments: Deployments) -> ActualPool:
    return _pool(GATEWAYS, deployments[GATEWAYS])


def end_replica(service: str, replica: ActualReplica) -> None:
    """At once; routers continue its requests elsewhere, and Serve starts another. Does nothing when it is gone."""
    name = ReplicaID(replica.replica_id, DeploymentID(replica.pool, service)).to_full_id_str()
    with contextlib.suppress(ValueError):  # no actor of this name
        ray.kill(ray.get_actor(name, namespace=SERVE_NAMESPACE), no_restart=True)
