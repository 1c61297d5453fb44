"""What a node has, in words."""

from ..deployments.placement import CPU, GPU, NodeResources, node_resource, type_resource
from ..deployments.simulated_config import SIMULATED_PREFIX


def hardware(node: NodeResources) -> str:
    """What a node has, for people."""
    simulated = [
        name for name in node.total if name.startswith(SIMULATED_PREFIX) and node_resource(name) in node.total
    ]
    if simulated:
        return ", ".join(_simulated(name, node) for name in simulated)
    gpus = node.total.get(GPU, 0)
    if not gpus:
        return f"{node.total.get(CPU, 0):g} CPU cores"
    types = [name.removeprefix(type_resource("")) for name in node.total if name.startswith(type_resource(""))]
    return f"{gpus:g} x {types[0] if types else 'GPU of an unknown type'}"


def _simulated(name: str, node: NodeResources) -> str:
    nodes = node.total[node_resource(name)]
    packed = f" ({nodes:g} nodes)" if nodes > 1 else ""
    return f"{node.total[name]:g} x {name.removeprefix(SIMULATED_PREFIX)}, simulated{packed}"
