"""The autoscaler's YAML: what we write is what Ray takes and what we read."""

import json
from pathlib import Path

import pytest
from nfold.cluster.config import LocalClusterConfig, SimulatedNodesConfig
from nfold.cluster.local_shape import ray_nodes
from nfold.cluster.provider.autoscaling import read_node_types
from nfold.cluster.provider.local_types import local_autoscaling, local_node_types
from nfold.models.errors import ConfigError
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

LOCAL = LocalClusterConfig(
    nodes=1,
    max_nodes=3,
    cores_per_node=1,
    simulated_nodes=(SimulatedNodesConfig(accelerator="MI300X", nodes=1, accelerators=4, max_nodes=2),),
)


def test_local_types_go_through_the_yaml_and_back(tmp_path: Path) -> None:
    config = local_autoscaling(tmp_path, LOCAL, ray_nodes(LOCAL, 1), 1)
    path = tmp_path / "autoscaling.json"
    path.write_text(json.dumps(config))
    types = {each.name: each for each in read_node_types(path)}
    assert types == {each.name: each for each in local_node_types(LOCAL, 1)}
    assert types["cpu"].min_nodes == 1, "the head"
    simulated = types["simulated-MI300X-4"]
    assert (simulated.accelerator, simulated.num_accelerators) == ("simulated-MI300X", 4)


def test_ray_takes_the_yaml(tmp_path: Path) -> None:
    config = AutoscalingConfig(local_autoscaling(tmp_path, LOCAL, ray_nodes(LOCAL, 1), 1), skip_content_hash=True)
    types = config.get_node_type_configs()
    assert types is not None
    assert {name: each.max_worker_nodes for name, each in types.items()} == {"cpu": 3, "simulated-MI300X-4": 2}
    assert config.get_head_node_type() == "cpu"
    assert config.disable_node_updaters()


def test_types_of_real_nodes(tmp_path: Path) -> None:
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(
        "max_workers: 5\nhead_node_type: head\n"
        "available_node_types:\n"
        "  head: {resources: {CPU: 16}, max_workers: 0}\n"
        "  big: {resources: {CPU: 128, GPU: 8, 'accelerator_type:AMD-Instinct-MI355X-OAM': 1}, min_workers: 1}\n"
        "  any: {resources: {GPU: 4}, labels: {rack: r1}, max_workers: 2}\n"
    )
    head, big, any_gpu = read_node_types(path)
    assert (head.accelerator, head.num_accelerators, head.min_nodes, head.max_nodes) == ("CPU", 16, 1, 1)
    assert (big.accelerator, big.num_accelerators) == ("AMD-Instinct-MI355X-OAM", 8)
    assert (big.min_nodes, big.max_nodes) == (1, 5)
    assert (any_gpu.accelerator, any_gpu.labels) == ("GPU", {"rack": "r1"})


def test_a_type_without_resources_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("available_node_types: {empty: {}}")
    with pytest.raises(ConfigError, match=r"available_node_types\.empty\.resources"):
        read_node_types(path)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"nodes": 2, "max_nodes": 1}, "2 nodes to start with"),
        ({"simulated_nodes": [{"accelerator": "MI300X", "nodes": 3, "max_nodes": 2}]}, "3 nodes to start with"),
        (
            {"simulated_nodes": [{"accelerator": "MI300X", "hosts_per_ray_node": 2, "max_nodes": 2}]},
            "hosts_per_ray_node must be 1",
        ),
    ],
)
def test_limits_below_the_start_are_refused(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        LocalClusterConfig.model_validate(fields)
