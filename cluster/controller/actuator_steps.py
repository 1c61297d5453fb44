"""What to do next so that nodes and replicas become as a target says: a pure function of what is. No Ray here.

    nodes of a type      head  fullest ........ emptiest        leaving (sick)
                         └── stay, up to the target ─┘└─ over ─┘
    replicas of a pool   those on nodes that stay + what fits there besides + those on nodes that leave

Replicas on nodes that are over the target are not counted, so the pool shrinks by them when it has no room for
them elsewhere. Serve picks the replicas that go, as we do the nodes: the emptiest, the youngest. Only then nodes
drain: sooner, Serve would look for room for their replicas in vain, and the autoscaler would bring a node for them.
Nor does one drain where a replica may just be starting.
Those on leaving nodes are counted: Serve starts others first, wherever there is room or a new node comes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...deployments.config import PoolConfig
from ...deployments.placement import NodeResources, bundles, take_room
from .actuation import Actual, ActualNode, ActualReplica, NodeState, NodeType, Target

GOING = ("stopping",)
COMING = (NodeState.REQUESTED, NodeState.STARTING, NodeState.READY)


@dataclass(frozen=True, slots=True)
class Steps:
    """
    Attributes:
        nodes: that Ray's autoscaler should hold, by type.
        replicas: that each pool should aim at now.
        drain: ids of nodes on which Ray should place nothing more; they end when nothing runs there.
    """

    nodes: Mapping[str, int]
    replicas: Mapping[str, int]
    drain: Sequence[str]


def next_steps(
    actual: Actual, target: Target, pools: Mapping[str, PoolConfig], resources: Mapping[str, NodeResources]
) -> Steps:
    """
    Args:
        pools: by name, those that there are.
        resources: by node id, what Ray's alive nodes have.
    """
    over = _over_target(actual, target)
    leaving = {
        node.node_id
        for node in actual.nodes
        if not node.is_head and (node.node_id in target.leaving or node.state == NodeState.DRAINING)
    }
    ready = {node.node_id for node in actual.nodes if node.state == NodeState.READY} - over - leaving
    staying = [resources[node_id] for node_id in sorted(ready & resources.keys())]
    counts = _counts(actual, target, pools, staying, leaving, bool(over))
    told = all(
        pool.wanted == counts[pool.pool] and pool.running + pool.starting <= pool.wanted for pool in actual.pools
    )
    used = {replica.node_id for replica in actual.replicas if replica.state not in GOING}
    going = leaving | ((over if told else over - used) - _may_be_taken(actual, over, pools, resources))
    drain = [node.node_id for node in actual.nodes if node.state == NodeState.READY and node.node_id in going]
    return Steps(_requests(actual, target), counts, drain)


def _may_be_taken(
    actual: Actual, node_ids: set[str], pools: Mapping[str, PoolConfig], resources: Mapping[str, NodeResources]
) -> set[str]:
    """Of these, where a replica may just be starting of which Serve does not yet know the place: it would start for
    ever on a node that drains."""
    starting = {replica.pool for replica in actual.replicas if not replica.node_id and replica.state not in GOING}
    nodes = [resources[node_id] for node_id in node_ids & resources.keys()]
    by_pool = {name: [each for each in actual.replicas if each.pool == name] for name in pools}
    rooms = _rooms(pools, by_pool, nodes, count_free=False)
    return {
        node.node_id
        for node, room in zip(nodes, rooms, strict=True)
        if any(take_room(pools[pool], [dict(room)]) for pool in starting)
    }


def _requests(actual: Actual, target: Target) -> dict[str, int]:
    return {each.name: _wanted(each, target, _coming(actual, each, target)) for each in actual.node_types}


def _wanted(node_type: NodeType, target: Target, otherwise: int) -> int:
    """What the autoscaler's own bounds leave of the target: a node that it starts anew must not be drained."""
    return max(node_type.min_nodes, min(node_type.max_nodes, target.nodes.get(node_type.name, otherwise)))


def _coming(actual: Actual, node_type: NodeType, target: Target) -> int:
    return sum(
        node.node_type == node_type.name and node.state in COMING and node.node_id not in target.leaving
        for node in actual.nodes
    )


def _over_target(actual: Actual, target: Target) -> set[str]:
    """Of each type, the emptiest nodes that are too many; of equal ones, the youngest."""
    num_replicas = Counter(replica.node_id for replica in actual.replicas if replica.state not in GOING)

    def keep_first(node: ActualNode) -> tuple[bool, int, float]:
        return not node.is_head, -num_replicas[node.node_id], node.since_s

    over: set[str] = set()
    for node_type in actual.node_types:
        count = _wanted(node_type, target, node_type.max_nodes)
        ready = [
            node
            for node in actual.nodes
            if node.node_type == node_type.name
            and node.state == NodeState.READY
            and node.node_id not in target.leaving
        ]
        over |= {node.node_id for node in sorted(ready, key=keep_first)[count:] if not node.is_head}
    return over


def _counts(
    actual: Actual,
    target: Target,
    pools: Mapping[str, PoolConfig],
    staying: Sequence[NodeResources],
    leaving: set[str],
    shrinks: bool,
) -> dict[str, int]:
    by_pool = {
        name: [each for each in actual.replicas if each.pool == name and each.state not in GOING] for name in pools
    }
    # What Ray calls free lags behind what was placed and what ended by a second: grow by the lesser of the two.
    rooms = _rooms(pools, by_pool, staying, count_free=not shrinks)
    ids = {node.node_id for node in staying}
    counts: dict[str, int] = {}
    for state in sorted(actual.pools, key=lambda state: -_size(pools[state.pool])):
        own, pool = by_pool[state.pool], pools[state.pool]
        want = target.replicas.get(state.pool, state.wanted)
        here = sum(replica.node_id in ids or replica.node_id in leaving for replica in own)
        while here < want and take_room(pool, rooms):
            here += 1
        if shrinks:
            counts[state.pool] = min(want, max(here, 1))
        else:
            counts[state.pool] = min(want, max(here, state.wanted))
    return counts


def _rooms(
    pools: Mapping[str, PoolConfig],
    replicas: Mapping[str, Sequence[ActualReplica]],
    nodes: Sequence[NodeResources],
    *,
    count_free: bool,
) -> list[dict[str, float]]:
    """What replicas may still take on each of these nodes."""
    rooms = {node.node_id: dict(node.total) for node in nodes}
    for name, own in replicas.items():
        for replica in own:
            for bundle in bundles(pools[name]) if replica.node_id in rooms else ():
                for resource, amount in bundle.items():
                    room = rooms[replica.node_id]
                    room[resource] = room.get(resource, 0.0) - amount
    if count_free:
        for node in nodes:
            room = rooms[node.node_id]
            rooms[node.node_id] = {name: min(left, node.free.get(name, 0.0)) for name, left in room.items()}
    return list(rooms.values())


def _size(pool: PoolConfig) -> float:
    return sum(amount for bundle in bundles(pool) for amount in bundle.values())
