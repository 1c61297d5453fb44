"""Which replicas the nodes have room for, and what is said when there is none."""

import pytest
from nfold.deployments.config import PoolConfig
from nfold.deployments.placement import NodeResources, bundles, check_fit, replicas_that_fit, type_resource
from nfold.models.errors import PlacementError

MI355X = "AMD-Instinct-MI355X-OAM"
MI300X = "AMD-Instinct-MI300X-OAM"


def gpu_node(name: str, free: float, total: float = 8, accelerator: str = MI355X) -> NodeResources:
    typed = {type_resource(accelerator): 1.0}
    return NodeResources(
        name, name, name, {"CPU": 96, "GPU": total, **typed}, {"CPU": 96, "GPU": free, **typed}, {}
    )


def cpu_node(name: str, free: float, total: float = 4) -> NodeResources:
    return NodeResources(name, name, name, {"CPU": total}, {"CPU": free}, {})


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (PoolConfig(accelerator="CPU", tp=2, cores_per_rank=3), [{"CPU": 3}, {"CPU": 3}]),
        (PoolConfig(accelerator="GPU"), [{"GPU": 1}]),
        (PoolConfig(accelerator=MI355X, tp=2), [{"GPU": 1, type_resource(MI355X): 0.001}] * 2),
    ],
)
def test_bundles(pool: PoolConfig, expected: list[dict[str, float]]) -> None:
    assert bundles(pool) == expected


@pytest.mark.parametrize(
    ("pool", "nodes", "expected"),
    [
        (PoolConfig(accelerator=MI355X), [gpu_node("a", 7)], 7),
        (PoolConfig(accelerator=MI355X, tp=2), [gpu_node("a", 7), gpu_node("b", 8)], 7),
        (PoolConfig(accelerator=MI355X, tp=8), [gpu_node("a", 7), gpu_node("b", 8)], 1),
        (PoolConfig(accelerator=MI355X), [gpu_node("a", 8, accelerator=MI300X)], 0),
        (PoolConfig(accelerator="GPU"), [gpu_node("a", 3), gpu_node("b", 2, accelerator=MI300X)], 5),
        (PoolConfig(cores_per_rank=2), [cpu_node("a", 3), cpu_node("b", 4), gpu_node("c", 0)], 1 + 2 + 48),
        (PoolConfig(), [], 0),
    ],
)
def test_replicas_that_fit(pool: PoolConfig, nodes: list[NodeResources], expected: int) -> None:
    assert replicas_that_fit(pool, nodes) == expected


def test_every_healthy_accelerator_of_a_partial_node_is_used() -> None:
    """87 of 88: ten nodes of 8, and one that has lost one of its 8."""
    nodes = [gpu_node(f"n{index}", 8) for index in range(10)] + [gpu_node("partial", 7, total=7)]
    assert check_fit({"tp1": PoolConfig(accelerator=MI355X)}, nodes[10:]) == {"tp1": 7}
    assert check_fit({"tp1": PoolConfig(accelerator=MI355X)}, nodes) == {"tp1": 87}
    assert check_fit({"tp8": PoolConfig(accelerator=MI355X, tp=8)}, nodes) == {"tp8": 10}


def test_pools_without_a_number_fill_in_turn_what_the_others_leave() -> None:
    pools = {
        "fixed": PoolConfig(accelerator=MI355X, tp=4, num_replicas=1),
        "large": PoolConfig(accelerator=MI355X, tp=2),
        "small": PoolConfig(accelerator=MI355X),
    }
    assert check_fit(pools, [gpu_node("a", 8), gpu_node("b", 3)]) == {"fixed": 1, "large": 2, "small": 3}


@pytest.mark.parametrize(
    ("pools", "nodes", "phrases"),
    [
        (
            {"llama--GPU": PoolConfig(accelerator="GPU", tp=8)},
            [gpu_node("node-a", 7), cpu_node("node-b", 4)],
            [
                "pool llama--GPU: no room for a first replica",
                "8 bundles of {GPU: 1}",
                "needs GPU 8 on one node",
                "node-a has 7 free of 8 (1 too few)",
                "node-b has no GPU",
            ],
        ),
        (
            {"m": PoolConfig(accelerator=MI355X)},
            [gpu_node("node-a", 8, accelerator=MI300X)],
            [f"node-a has {MI300X}, not {MI355X}"],
        ),
        (
            {"m": PoolConfig(cores_per_rank=2, num_replicas=2)},
            [cpu_node("node-a", 3)],
            [
                "replica 2 of 2",
                "{CPU: 2}",
                "1 free of 4 (1 too few, 2 of them given to this service's other replicas)",
            ],
        ),
        ({"m": PoolConfig()}, [], ["the cluster has no node"]),
    ],
)
def test_no_room_says_which_bundle_fits_where(
    pools: dict[str, PoolConfig], nodes: list[NodeResources], phrases: list[str]
) -> None:
    with pytest.raises(PlacementError) as error:
        check_fit(pools, nodes)
    for phrase in phrases:
        assert phrase in str(error.value)
