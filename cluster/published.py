"""What floor 4 keeps and reads in the cluster's key-value store. Import only where Ray's environment is settled."""

from collections.abc import Sequence

import msgspec
from ray.serve.schema import ReplicaState

from ..deployments import discovery
from ..deployments.addresses import ReplicaAddress, this_host
from ..deployments.config import ServiceConfig, pool_name
from ..deployments.cores import CORES_LABEL, parse_cores
from ..deployments.nodes import alive_nodes
from ..deployments.router_stats import RouterSnapshot
from ..deployments.serve_details import deployments_of
from ..models.errors import StateError
from .baseline import Baseline
from .controller.latest import latest_costs
from .observer import Reading
from .provisioned import PoolTarget
from .service_view import yardstick_name
from .speed_priors import speed_prior_of

_BASELINES = "baselines/"
# Of Serve's replicas, those that there are to be.
COUNTED_STATES = (ReplicaState.STARTING, ReplicaState.UPDATING, ReplicaState.RECOVERING, ReplicaState.RUNNING)


def publish_baseline(service: str, baseline: Baseline) -> None:
    """Make `baseline` what its model's replicas on its accelerator are measured by, in place of an earlier one, and
    what routers take their speed for until they have seen their steps."""
    key = f"{_BASELINES}{baseline.key.model}/{yardstick_name(baseline.key.accelerator, baseline.key.tp)}"
    discovery.put_value(service, key, baseline.model_dump_json().encode())
    if (prior := speed_prior_of(baseline)) is not None:
        discovery.publish_speed_prior(service, prior)


def published_baselines(service: str) -> list[Baseline]:
    """One per model and kind of replica, at most."""
    return [Baseline.model_validate_json(value) for value in discovery.list_values(service, _BASELINES).values()]


def node_names() -> dict[str, str]:
    """Of the alive nodes, by Ray's id."""
    return {node.node_id: node.name for node in alive_nodes()}


def cores_of(replicas: Sequence[ReplicaAddress]) -> list[int]:
    """The cores of their nodes, where these are parts of this machine; otherwise none."""
    labels = {node.node_id: node.labels.get(CORES_LABEL) for node in alive_nodes()}
    here = {labels.get(replica.node_id) for replica in replicas if replica.host == this_host()}
    return sorted({core for label in here if label for core in parse_cores(label)})


def pool_targets(config: ServiceConfig) -> dict[str, PoolTarget]:
    """What Serve wants of each pool, and how far that is; empty while the service is not deployed."""
    try:
        deployments = deployments_of(config.name)
    except StateError:
        return {}
    starts = discovery.list_starts(config.name)
    targets: dict[str, PoolTarget] = {}
    for model in config.models:
        for pool in model.pools:
            name = pool_name(model.name, pool)
            if (deployment := deployments.get(name)) is None:
                continue
            targets[name] = PoolTarget(
                model=model.name,
                accelerator=pool.accelerator,
                tp=pool.tp,
                num_wanted=sum(replica["state"] in COUNTED_STATES for replica in deployment["replicas"]),
                num_starting=sum(
                    report.pool == name and report.phase != "ready" and not report.error for report in starts
                ),
            )
    return targets


def read_service(config: ServiceConfig) -> Reading:
    """One look at a service, for the observer."""
    service = config.name
    gateways = discovery.list_gateways(service).values()
    return Reading(
        snapshots=[msgspec.msgpack.decode(value, type=RouterSnapshot) for value in gateways],
        node_names=node_names(),
        baselines=published_baselines(service),
        targets=pool_targets(config),
        quarantined=discovery.list_quarantined(service),
        costs=latest_costs(service),
    )
