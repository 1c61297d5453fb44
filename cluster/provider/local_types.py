"""Which kinds of nodes a local cluster can be given more of. No Ray here."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...deployments.placement import CPU, simulated_resources
from ...deployments.simulated_config import SIMULATED_PREFIX
from ..config import LocalClusterConfig
from ..controller.actuation import NodeType
from ..local_cores import cores_per_node
from ..local_shape import COMPUTING_TYPE, RayNodeShape, simulated_type
from .autoscaling import NODE_TYPE_LABEL, autoscaling_config

PROVIDER = "nfold.cluster.provider.local_machine.LocalMachine"
# Ray must find this when it starts, and clients when they ask for nodes.
AUTOSCALER_ENVIRONMENT = {"RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}


def cores_of_a_node(local: LocalClusterConfig) -> int:
    """CPU cores of each node that computes, on this machine.

    Raises:
        ConfigError: a node is to have more cores than there are.
    """
    num_nodes = max(1, local.max_nodes or local.nodes)
    return cores_per_node(local.cores_per_node, sorted(os.sched_getaffinity(0)), num_nodes)


def local_node_types(local: LocalClusterConfig, num_cores: int) -> tuple[NodeType, ...]:
    """The head is one of the first type. Groups of equal nodes are one type."""
    types: dict[str, NodeType] = {}
    if local.nodes:
        most = local.max_nodes or local.nodes
        _add(types, COMPUTING_TYPE, {CPU: float(num_cores)}, CPU, num_cores, most)
    for group in local.simulated_nodes:
        most = group.max_nodes or -(-group.nodes // group.hosts_per_ray_node)
        num_accelerators = group.accelerators * group.hosts_per_ray_node
        resources = simulated_resources(group.accelerator, group.accelerators, group.hosts_per_ray_node)
        name = SIMULATED_PREFIX + group.accelerator
        _add(types, simulated_type(group), resources, name, num_accelerators, most)
    return tuple(types.values())


def _add(
    types: dict[str, NodeType],
    name: str,
    resources: dict[str, float],
    accelerator: str,
    num_accelerators: int,
    max_nodes: int,
) -> None:
    there = types[name].max_nodes if name in types else 0
    types[name] = NodeType(
        name=name,
        resources=resources,
        labels={NODE_TYPE_LABEL: name},
        accelerator=accelerator,
        num_accelerators=num_accelerators,
        min_nodes=0 if types else 1,
        max_nodes=there + max_nodes,
    )


def local_autoscaling(
    run_directory: Path, local: LocalClusterConfig, nodes: Sequence[RayNodeShape], num_cores: int
) -> dict[str, Any]:
    """What Ray's autoscaler of a local cluster works by.

    Args:
        run_directory: where the supervisor of the cluster records what runs.
        nodes: to start with, the head first.
    """
    provider = {"module": PROVIDER, "run_directory": str(run_directory)}
    types = local_node_types(local, num_cores)
    return autoscaling_config("nfold", provider, types, nodes[0].node_type)
