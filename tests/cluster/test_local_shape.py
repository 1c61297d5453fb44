"""The Ray nodes of a local cluster with simulated accelerators, and what is placed on them."""

from pathlib import Path

import pytest
from nfold.cluster.config import LocalClusterConfig, SimulatedNodesConfig, load_config
from nfold.cluster.hardware import hardware
from nfold.cluster.local_shape import RayNodeShape, expected_nodes, ray_nodes
from nfold.deployments.config import PoolConfig
from nfold.deployments.placement import check_fit, engines_per_node
from nfold.models.errors import PlacementError

EXAMPLES = Path(__file__).parents[2] / "examples"
POOL = PoolConfig(accelerator="simulated-MI355X")


def shapes(**group: int) -> tuple[RayNodeShape, ...]:
    local = LocalClusterConfig(nodes=0, simulated_nodes=(SimulatedNodesConfig(accelerator="MI355X", **group),))
    return ray_nodes(local, cores_per_node=1)


def test_the_example_has_87_accelerators_on_11_nodes() -> None:
    config = load_config(EXAMPLES / "simulated-87.yaml")
    local = config.cluster.local_or_default
    assert local is not None
    nodes = expected_nodes(ray_nodes(local, 1))
    assert len(nodes) == 11
    assert all(node.total["CPU"] == 0 for node in nodes)
    assert check_fit(config.pools, nodes) == {"llama2-70b--simulated-MI355X": 11}
    assert sum(engines_per_node("simulated-MI355X", node.total) for node in nodes) == 87
    assert [hardware(node) for node in nodes[9:]] == ["8 x MI355X, simulated", "7 x MI355X, simulated"]


def test_several_simulated_nodes_share_a_ray_node() -> None:
    nodes = expected_nodes(shapes(nodes=10, accelerators=7, hosts_per_ray_node=4))
    assert [node.total["simulated-MI355X"] for node in nodes] == [28, 28, 14]
    assert [engines_per_node("simulated-MI355X", node.total) for node in nodes] == [7, 7, 7]
    assert check_fit({"p": POOL}, nodes) == {"p": 10}
    assert [hardware(node) for node in nodes[1:]] == [
        "28 x MI355X, simulated (4 nodes)",
        "14 x MI355X, simulated (2 nodes)",
    ]


def test_each_pool_finds_its_own_accelerators() -> None:
    local = LocalClusterConfig.model_validate(
        {"nodes": 1, "simulated_nodes": [{"accelerator": "MI300X", "nodes": 2}, {"accelerator": "MI355X"}]}
    )
    nodes = expected_nodes(ray_nodes(local, cores_per_node=2))
    pools = {"new": POOL, "old": PoolConfig(accelerator="simulated-MI300X"), "cpu": PoolConfig()}
    assert check_fit(pools, nodes) == {"new": 1, "old": 2, "cpu": 2}


def test_what_is_missing_is_said() -> None:
    with pytest.raises(
        PlacementError, match=r"needs simulated-node-MI355X 1 on one node; node-0 has no simulated-n"
    ):
        check_fit({"p": POOL}, expected_nodes([RayNodeShape(num_cores=4)]))
    with pytest.raises(PlacementError, match=r"replica 3 of 3; .*node-0 has 0 free of 2 .*2 of them given to this"):
        check_fit(
            {"p": POOL.model_copy(update={"num_replicas": 3})},
            expected_nodes(shapes(nodes=2, hosts_per_ray_node=2)),
        )
