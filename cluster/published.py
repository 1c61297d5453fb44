"""What floor 4 keeps and reads in the cluster's key-value store. Import only where Ray's environment is settled."""

import msgspec

from ..deployments import discovery
from ..deployments.nodes import alive_nodes
from ..deployments.router_stats import RouterSnapshot
from .baseline import Baseline
from .observer import Reading
from .service_view import yardstick_name

_BASELINES = "baselines/"


def publish_baseline(service: str, baseline: Baseline) -> None:
    """Make `baseline` what its model's replicas on its accelerator are measured by, in place of an earlier one."""
    key = f"{_BASELINES}{baseline.key.model}/{yardstick_name(baseline.key.accelerator, baseline.key.tp)}"
    discovery.put_value(service, key, baseline.model_dump_json().encode())


def published_baselines(service: str) -> list[Baseline]:
    """One per model and kind of replica, at most."""
    return [Baseline.model_validate_json(value) for value in discovery.list_values(service, _BASELINES).values()]


def node_names() -> dict[str, str]:
    """Of the alive nodes, by Ray's id."""
    return {node.node_id: node.name for node in alive_nodes()}


def read_service(service: str) -> Reading:
    """One look at a service, for the observer."""
    gateways = discovery.list_gateways(service).values()
    return Reading(
        snapshots=[msgspec.msgpack.decode(value, type=RouterSnapshot) for value in gateways],
        node_names=node_names(),
        baselines=published_baselines(service),
    )
