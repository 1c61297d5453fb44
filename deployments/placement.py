"""Which bundles a replica takes, and how many replicas the nodes that are there have room for. No Ray here.

A replica is one placement group, STRICT_PACK: all its bundles lie on one node. Bundle r belongs to rank r.
Simulated engines go by whole nodes: one process carries all engines of its simulated node.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..models.errors import PlacementError
from .config import PoolConfig
from .simulated_config import SIMULATED_PREFIX

CPU = "CPU"
GPU = "GPU"
PLACEMENT_STRATEGY = "STRICT_PACK"

# Ray gives each node one unit of its accelerator's type; a bundle takes a crumb of it, to land on that type.
TYPE_CRUMB = 0.001
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class NodeResources:
    """What a Ray node has.

    Attributes:
        node_id: Ray's, in hex.
        name: for people.
        address: of the machine; several nodes may share one.
        total: resource name to amount.
        free: of it, what nothing has taken.
        labels: the node's Ray labels.
    """

    node_id: str
    name: str
    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str]


def type_resource(accelerator: str) -> str:
    """The resource by which Ray marks a node that has this accelerator."""
    return f"accelerator_type:{accelerator}"


def node_resource(accelerator: str) -> str:
    """The resource of which a Ray node has one unit per simulated node that it carries."""
    return SIMULATED_PREFIX + "node-" + accelerator.removeprefix(SIMULATED_PREFIX)


def simulated_resources(accelerator: str, num_accelerators: int, num_nodes: int) -> dict[str, float]:
    """What a Ray node has that carries `num_nodes` simulated nodes of `num_accelerators` each."""
    name = SIMULATED_PREFIX + accelerator.removeprefix(SIMULATED_PREFIX)
    return {name: float(num_accelerators * num_nodes), node_resource(accelerator): float(num_nodes)}


def engines_per_node(accelerator: str, total: Mapping[str, float]) -> int:
    """Engines of each simulated node on a Ray node with these resources."""
    return round(total[accelerator] / total[node_resource(accelerator)])


def bundles(pool: PoolConfig) -> list[dict[str, float]]:
    """One bundle per rank of a replica."""
    return [_bundle(pool) for _ in range(pool.tp)]


def _bundle(pool: PoolConfig) -> dict[str, float]:
    if pool.accelerator == CPU:
        return {CPU: pool.cores_per_rank}
    if pool.accelerator == GPU:
        return {GPU: 1}
    if pool.is_simulated:
        return {node_resource(pool.accelerator): 1}  # a whole one, however many of its accelerators are healthy
    return {GPU: 1, type_resource(pool.accelerator): TYPE_CRUMB}


def replicas_that_fit(pool: PoolConfig, nodes: Sequence[NodeResources]) -> int:
    """Replicas of this pool alone that the free resources hold: with tp 1, seven on a node with 7 of 8 GPUs."""
    rooms = [dict(node.free) for node in nodes]
    count = 0
    while take_room(pool, rooms):
        count += 1
    return count


def check_fit(pools: Mapping[str, PoolConfig], nodes: Sequence[NodeResources]) -> dict[str, int]:
    """How many replicas each pool starts with.

    Pools with a number get it, largest replicas first; pools without one then fill what is left, in turn.

    Args:
        pools: by deployment name.
        nodes: alive nodes.

    Raises:
        PlacementError: a pool cannot have its number of replicas, or not even one; says which bundle of it does not
            fit on which node, and by how much.
    """
    rooms = [dict(node.free) for node in nodes]
    by_size = sorted(pools.items(), key=lambda item: -_size(item[1]))
    counts = dict.fromkeys(pools, 0)
    for name, pool in by_size:
        for _ in range(pool.num_replicas or 1):
            if not take_room(pool, rooms):
                raise PlacementError(_explain(name, pool, counts[name], nodes, rooms))
            counts[name] += 1
    filling = [(name, pool) for name, pool in by_size if pool.num_replicas is None]
    while filling:
        filling = [(name, pool) for name, pool in filling if take_room(pool, rooms)]
        for name, _ in filling:
            counts[name] += 1
    return counts


def _size(pool: PoolConfig) -> float:
    return pool.tp * (pool.cores_per_rank if pool.accelerator == CPU else 1)


def _replica_total(pool: PoolConfig) -> dict[str, float]:
    return {resource: amount * pool.tp for resource, amount in _bundle(pool).items()}


def take_room(pool: PoolConfig, rooms: list[dict[str, float]]) -> bool:
    """Take one replica out of the first node with room; False when none has."""
    wanted = _replica_total(pool)
    for room in rooms:
        if all(room.get(resource, 0) >= amount - ROUNDING for resource, amount in wanted.items()):
            for resource, amount in wanted.items():
                room[resource] -= amount
            return True
    return False


def _explain(
    name: str, pool: PoolConfig, placed: int, nodes: Sequence[NodeResources], rooms: Sequence[Mapping[str, float]]
) -> str:
    resource = next(iter(_bundle(pool)))
    amount = _bundle(pool)[resource]
    wanted = amount * pool.tp
    shape = f"its bundle {{{resource}: {amount:g}}}"
    if pool.tp > 1:
        shape = f"its {pool.tp} bundles of {{{resource}: {amount:g}}}, which stay together,"
    parts = [_explain_node(pool, resource, wanted, node, room) for node, room in zip(nodes, rooms, strict=True)]
    which = f"replica {placed + 1} of {pool.num_replicas}" if pool.num_replicas else "a first replica"
    return f"pool {name}: no room for {which}; {shape} needs {resource} {wanted:g} on one node; " + (
        "; ".join(parts) if parts else "the cluster has no node"
    )


def _explain_node(
    pool: PoolConfig, resource: str, wanted: float, node: NodeResources, room: Mapping[str, float]
) -> str:
    total = node.total.get(resource, 0)
    if not total:
        return f"{node.name} has no {resource}"
    if resource == GPU and pool.accelerator != GPU and type_resource(pool.accelerator) not in node.total:
        types = [key.removeprefix(type_resource("")) for key in node.total if key.startswith(type_resource(""))]
        return f"{node.name} has {', '.join(types) or f'{resource} of an unknown type'}, not {pool.accelerator}"
    left = room.get(resource, 0)
    taken = node.free.get(resource, 0) - left
    ours = f", {taken:g} of them given to this service's other replicas" if taken > ROUNDING else ""
    return f"{node.name} has {left:g} free of {total:g} ({wanted - left:g} too few{ours})"
