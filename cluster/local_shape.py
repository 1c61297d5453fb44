"""Which Ray nodes a local cluster has, before any of them runs."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from ..deployments.placement import NodeResources, simulated_resources
from ..deployments.simulated_config import SIMULATED_PREFIX
from .config import LocalClusterConfig, SimulatedNodesConfig

# The type of nodes that have cores and compute.
COMPUTING_TYPE = "cpu"


class RayNodeShape(BaseModel):
    """One Ray node of a local cluster.

    Attributes:
        num_cores: of this machine, which its replicas are pinned to; 0 for one that carries simulated nodes.
        resources: what else Ray is told that it has.
        node_type: as the autoscaler knows it, where one runs.
    """

    model_config = ConfigDict(frozen=True)

    num_cores: int
    resources: dict[str, float] = {}
    node_type: str = ""


def ray_nodes(local: LocalClusterConfig, cores_per_node: int) -> tuple[RayNodeShape, ...]:
    """All Ray nodes to start with, the head first."""
    computing = [computing_shape(cores_per_node)] * local.nodes
    return (*computing, *(shape for group in local.simulated_nodes for shape in _simulated(group)))


def _simulated(group: SimulatedNodesConfig) -> list[RayNodeShape]:
    starts = range(0, group.nodes, group.hosts_per_ray_node)
    return [
        RayNodeShape(
            num_cores=0,
            resources=simulated_resources(
                group.accelerator, group.accelerators, min(group.hosts_per_ray_node, group.nodes - start)
            ),
            node_type=simulated_type(group),
        )
        for start in starts
    ]


def computing_shape(num_cores: int) -> RayNodeShape:
    """A node whose cores compute."""
    return RayNodeShape(num_cores=num_cores, node_type=COMPUTING_TYPE)


def simulated_type(group: SimulatedNodesConfig) -> str:
    """The type of this group's nodes, such as `simulated-MI300X-8`."""
    return f"{SIMULATED_PREFIX}{group.accelerator}-{group.accelerators}"


def expected_nodes(shapes: Sequence[RayNodeShape]) -> list[NodeResources]:
    """What Ray will know of these nodes, to check placement before they start."""
    return [
        NodeResources(node_id=name, name=name, address="127.0.0.1", total=total, free=total, labels={})
        for index, shape in enumerate(shapes)
        for name, total in [(f"node-{index}", {"CPU": float(shape.num_cores), **shape.resources})]
    ]
