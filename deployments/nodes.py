"""The alive nodes of the Ray cluster, as plain data."""

from collections.abc import Mapping

import ray
from ray._private.state import available_resources_per_node

from .placement import NodeResources


def alive_nodes() -> list[NodeResources]:
    """What the connected cluster has, the head first."""
    free = available_resources_per_node()
    nodes = [
        NodeResources(
            node_id=node["NodeID"],
            name=_name(node),
            address=node["NodeManagerAddress"],
            total=node["Resources"],
            free=free.get(node["NodeID"], {}),
            labels=node["Labels"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(nodes, key=lambda node: ("node:__internal_head__" not in node.total, node.name))


def _name(node: Mapping[str, str]) -> str:
    """The name it was given (`ray start --node-name`), else the host's."""
    named = node["NodeName"] != node["NodeManagerAddress"]
    return node["NodeName"] if named else node["NodeManagerHostname"]
