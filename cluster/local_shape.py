"""Which Ray nodes a local cluster has, before any of them runs."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from ..deployments.placement import NodeResources, simulated_resources
from .config import LocalClusterConfig, SimulatedNodesConfig


class RayNodeShape(BaseModel):
    """One Ray node of a local cluster.

    Attributes:
        num_cores: of this machine, which its replicas are pinned to; 0 for one that carries simulated nodes.
        resources: what else Ray is told that it has.
    """

    model_config = ConfigDict(frozen=True)

    num_cores: int
    resources: dict[str, float] = {}


def ray_nodes(local: LocalClusterConfig, cores_per_node: int) -> tuple[RayNodeShape, ...]:
    """All Ray nodes to start with, the head first."""
    computing = [RayNodeShape(num_cores=cores_per_node)] * local.nodes
    return (*computing, *(shape for group in local.simulated_nodes for shape in _simulated(group)))


def _simulated(group: SimulatedNodesConfig) -> list[RayNodeShape]:
    starts = range(0, group.nodes, group.hosts_per_ray_node)
    return [
        RayNodeShape(
            num_cores=0,
            resources=simulated_resources(
                group.accelerator, group.accelerators, min(group.hosts_per_ray_node, group.nodes - start)
            ),
        )
        for start in starts
    ]


def expected_nodes(shapes: Sequence[RayNodeShape]) -> list[NodeResources]:
    """What Ray will know of these nodes, to check placement before they start."""
    return [
        NodeResources(node_id=name, name=name, address="127.0.0.1", total=total, free=total, labels={})
        for index, shape in enumerate(shapes)
        for name, total in [(f"node-{index}", {"CPU": float(shape.num_cores), **shape.resources})]
    ]
