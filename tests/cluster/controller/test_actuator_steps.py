"""What the actuator does next, as tables: growing, shrinking, sick nodes, several pools, restarts in between."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from nfold.cluster.controller.actuation import (
    Actual,
    ActualNode,
    ActualPool,
    ActualReplica,
    NodeState,
    NodeType,
    Target,
)
from nfold.cluster.controller.actuator_steps import Steps, next_steps
from nfold.deployments.config import PoolConfig
from nfold.deployments.placement import NodeResources

READY, STARTING, DRAINING = NodeState.READY, NodeState.STARTING, NodeState.DRAINING
TYPE = NodeType(name="n", resources={"GPU": 4}, accelerator="GPU", num_accelerators=4, max_nodes=4)
POOLS = {"p": PoolConfig(accelerator="GPU", tp=2)}  # two replicas fill a node


def world(nodes: Mapping[str, NodeState], replicas: Mapping[str, str], *, wanted: int, healthy: int = 4) -> Actual:
    """Replica ids to the nodes that they are on; the first node is the head; nodes are as old as their order."""
    own = [
        ActualReplica(replica_id=name, pool="p", node_id=node, state="running") for name, node in replicas.items()
    ]
    placed = sum(bool(replica.node_id) for replica in own)
    return Actual(
        time_s=100.0,
        node_types=(TYPE,),
        nodes=tuple(
            ActualNode(
                node_id=name,
                node_type="n",
                state=state,
                since_s=float(index),
                num_accelerators=healthy,
                is_head=not index,
            )
            for index, (name, state) in enumerate(nodes.items())
        ),
        pools=(ActualPool(pool="p", wanted=wanted, starting=len(own) - placed, running=placed, draining=0),),
        replicas=tuple(own),
    )


def steps(actual: Actual, target: Target, *, free: float | None = None, total: float = 4) -> Steps:
    """What to do when Ray calls what replicas do not hold free, unless `free` says otherwise."""
    resources = {
        node.node_id: NodeResources(
            node_id=node.node_id,
            name=node.node_id,
            address="a",
            total={"GPU": total},
            free={
                "GPU": total - 2 * sum(r.node_id == node.node_id for r in actual.replicas) if free is None else free
            },
            labels={},
        )
        for node in actual.nodes
        if node.state in (READY, DRAINING)
    }
    return next_steps(actual, target, POOLS, resources)


def target(nodes: int, replicas: int, **others: tuple[str, ...]) -> Target:
    return Target(decision=1, nodes={"n": nodes}, replicas={"p": replicas}, **others)


ONE = {"r0": "h", "r1": "h"}
TWO = {**ONE, "r2": "a", "r3": "a"}


def test_a_settled_world_needs_nothing() -> None:
    assert steps(world({"h": READY, "a": READY}, TWO, wanted=4), target(2, 4)) == Steps({"n": 2}, {"p": 4}, [])


def test_growing_asks_for_nodes_first_and_fills_them_as_they_come() -> None:
    assert steps(world({"h": READY}, ONE, wanted=2), target(3, 6)) == Steps({"n": 3}, {"p": 2}, [])
    assert steps(world({"h": READY, "a": STARTING}, ONE, wanted=2), target(3, 6)) == Steps({"n": 3}, {"p": 2}, [])
    assert steps(world({"h": READY, "a": READY}, ONE, wanted=2), target(3, 6)) == Steps({"n": 3}, {"p": 4}, [])


def test_replicas_that_wait_for_a_place_are_not_asked_for_twice() -> None:
    unplaced = {**ONE, "r2": "", "r3": ""}
    assert steps(world({"h": READY, "a": READY}, unplaced, wanted=4), target(2, 6)).replicas == {"p": 4}


def test_what_others_hold_is_no_room() -> None:
    assert steps(world({"h": READY, "a": READY}, {}, wanted=0), target(2, 4), free=2).replicas == {"p": 2}


def test_no_replica_goes_because_rays_figures_lag() -> None:
    """One just ended on `a` and Ray still calls its room taken: the pool keeps its number."""
    actual = world({"h": READY, "a": READY}, {**ONE, "r2": "a"}, wanted=4)
    assert steps(actual, target(2, 4), free=0).replicas == {"p": 4}


def test_shrinking_drains_the_emptiest_node_but_never_the_head() -> None:
    actual = world({"h": READY, "a": READY, "b": READY}, {"r1": "a", "r2": "a"}, wanted=2)
    assert steps(actual, target(2, 2)) == Steps({"n": 2}, {"p": 2}, ["b"])
    assert steps(actual, target(1, 2)) == Steps({"n": 1}, {"p": 2}, ["a", "b"])
    assert steps(actual, target(0, 2)).drain == ["a", "b"]


def test_nodes_drain_when_serve_has_picked_the_replicas_that_go() -> None:
    nodes = {"h": READY, "a": READY, "b": READY}
    full = ONE | {"r2": "a", "r3": "a", "r4": "b", "r5": "b"}
    assert steps(world(nodes, full, wanted=6), target(2, 4)) == Steps({"n": 2}, {"p": 4}, [])
    assert steps(world(nodes, full, wanted=4), target(2, 4)) == Steps({"n": 2}, {"p": 4}, []), "Serve has not begun"
    picked = ONE | {"r4": "b", "r5": "b"}
    assert steps(world(nodes, picked, wanted=4), target(2, 4)) == Steps({"n": 2}, {"p": 4}, ["a"]), "not our pick"


def test_no_node_drains_where_a_replica_may_be_starting() -> None:
    nodes = {"h": READY, "a": READY, "b": READY}
    starting = world(nodes, {"r0": "h", "r1": "a", "r2": "a", "r3": ""}, wanted=4)
    assert steps(starting, target(2, 4)).drain == [], "it may be on b"
    assert steps(starting, target(2, 4), total=1).drain == ["b"], "b has no room for it"
    assert steps(world(nodes, {"r0": "h", "r1": "a", "r2": "a", "r3": "h"}, wanted=4), target(2, 4)).drain == ["b"]


def test_what_is_left_on_a_node_that_goes_moves_to_where_there_is_room() -> None:
    scattered = world({"h": READY, "a": READY, "b": READY}, {"r0": "h", "r1": "a", "r2": "b"}, wanted=3)
    assert steps(scattered, target(2, 3)) == Steps({"n": 2}, {"p": 3}, ["b"])


def test_of_equally_empty_nodes_the_youngest_goes() -> None:
    assert steps(world({"h": READY, "a": READY, "b": READY}, ONE, wanted=2), target(2, 2)).drain == ["b"]


def test_fewer_nodes_mean_no_more_replicas_than_they_hold() -> None:
    """Whatever the target says of replicas, those on nodes that go have to fit elsewhere."""
    assert steps(world({"h": READY, "a": READY}, TWO, wanted=4), target(1, 4)) == Steps({"n": 1}, {"p": 2}, [])
    assert steps(world({"h": READY, "a": READY}, ONE, wanted=2), target(1, 4)) == Steps({"n": 1}, {"p": 2}, ["a"])


def test_draining_nodes_are_drained_once_and_hold_up_nothing() -> None:
    after = world({"h": READY, "a": DRAINING}, TWO, wanted=2)
    assert steps(after, target(1, 2)) == Steps({"n": 1}, {"p": 2}, [])


def test_replicas_on_a_sick_node_count_until_others_have_come() -> None:
    actual = world({"h": READY, "a": READY}, TWO, wanted=4)
    assert steps(actual, target(2, 4, leaving=("a",))) == Steps({"n": 2}, {"p": 4}, ["a"])
    draining = world({"h": READY, "a": DRAINING, "b": STARTING}, TWO, wanted=4)
    assert steps(draining, target(2, 4, leaving=("a",))) == Steps({"n": 2}, {"p": 4}, [])


def test_a_sick_node_does_not_count_among_the_wanted() -> None:
    actual = world({"h": READY, "a": READY, "b": READY}, TWO | {"r4": "b", "r5": "b"}, wanted=6)
    assert steps(actual, target(2, 4, leaving=("a",))).drain == ["a"]


def test_the_head_and_nodes_that_are_gone_are_not_drained() -> None:
    assert steps(world({"h": READY}, ONE, wanted=2), target(1, 2, leaving=("h", "gone"))).drain == []


def test_the_last_replica_waits_for_its_successor() -> None:
    actual = world({"h": READY, "a": READY}, {"r0": "a"}, wanted=1)
    assert steps(actual, target(1, 1), total=1).replicas == {"p": 1}


def test_a_pool_may_go_to_none() -> None:
    assert steps(world({"h": READY, "a": READY}, TWO, wanted=4), target(1, 0)).replicas == {"p": 0}


def test_partial_nodes_are_filled_with_what_works() -> None:
    actual = world({"h": READY, "a": READY}, {}, wanted=0, healthy=3)
    assert steps(actual, target(2, 4), total=3).replicas == {"p": 2}


def test_no_more_is_asked_for_than_the_provider_has() -> None:
    assert steps(world({"h": READY}, ONE, wanted=2), target(9, 2)).nodes == {"n": 4}


def test_nodes_that_the_autoscaler_would_start_anew_stay() -> None:
    actual = replace(world({"h": READY, "a": READY}, ONE, wanted=2), node_types=(replace(TYPE, min_nodes=2),))
    assert steps(actual, target(1, 2)) == Steps({"n": 2}, {"p": 2}, [])


@pytest.mark.parametrize("state", [READY, STARTING])
def test_what_the_target_does_not_name_stays(state: NodeState) -> None:
    actual = world({"h": READY, "a": state}, TWO, wanted=4)
    assert steps(actual, Target(decision=1, nodes={}, replicas={})) == Steps({"n": 2}, {"p": 4}, [])


def test_without_an_autoscaler_nodes_are_as_they_are() -> None:
    actual = replace(world({"h": READY, "a": READY}, TWO, wanted=4), node_types=())
    assert steps(actual, target(1, 3)) == Steps({}, {"p": 3}, [])
