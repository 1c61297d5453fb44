"""The replicas of a service as Serve has them, and ending single ones. Needs a connected process."""

import contextlib
from collections.abc import Collection
from typing import Any, cast

import ray
from ray import serve
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.context import _get_global_client
from ray.serve.schema import ReplicaState

from ...deployments.application import GATEWAYS
from ...models.errors import StateError
from .actuation import ActualPool, ActualReplica

TIMEOUT_S = 10.0
# A recovering replica serves: only Serve's controller started anew.
RUNNING = (ReplicaState.RUNNING, ReplicaState.RECOVERING, ReplicaState.PENDING_MIGRATION)
STARTING = (ReplicaState.STARTING, ReplicaState.UPDATING)

Deployments = dict[str, dict[str, Any]]


def deployments_of(service: str) -> Deployments:
    """What Serve's controller says of each deployment of a service, in the words of Serve's REST API.

    Raises:
        StateError: the service is not running, or Serve's controller does not answer.
    """
    serve.status()  # connects
    client = _get_global_client()
    assert client is not None
    details = cast(
        dict[str, Any], ray.get(client._controller.get_serve_instance_details.remote(), timeout=TIMEOUT_S)
    )
    application = details["applications"].get(service)
    if application is None:
        raise StateError(f"service {service!r} is not running on this cluster")
    return application["deployments"]


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
