"""A program: two Ray nodes with fake MI355X (`amdsmi.py` beside it), and what ranks see there, as one line of JSON.

In a process of its own, because Ray looks for `amdsmi` once.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

import ray
from nfold.deployments.config import PoolConfig
from nfold.deployments.devices import AssignedDevice, plan_device, ray_options, visibility
from nfold.deployments.nodes import alive_nodes
from nfold.deployments.placement import PLACEMENT_STRATEGY, bundles
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from ray_cluster import local_ray

MI355X = "AMD-Instinct-MI355X-OAM"
TIMEOUT_S = 60


@ray.remote(num_cpus=0, num_gpus=1)
class CheckOnly:
    """What a rank does before it imports torch, and nothing else."""

    def plan(self, rank: int) -> dict[str, Any]:
        context = ray.get_runtime_context()
        ids, environment = context.get_accelerator_ids()["GPU"], visibility(os.environ)
        planned = plan_device(AssignedDevice(rank, MI355X, ids, environment))
        return {"ids": ids, "environment": environment, "node": context.get_node_id()} | asdict(planned)


def views(tp: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Each rank's view of a replica with `tp` ranks, whose actors have these options of Ray."""
    group = placement_group(bundles(PoolConfig(accelerator=MI355X, tp=tp)), PLACEMENT_STRATEGY)
    ray.get(group.ready(), timeout=TIMEOUT_S)
    assert len(placement_group_table(group)["bundles_to_node_id"]) == tp
    actors = [
        CheckOnly.options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            **options,
        ).remote()
        for rank in range(tp)
    ]
    seen = ray.get([actor.plan.remote(rank) for rank, actor in enumerate(actors)], timeout=TIMEOUT_S)
    remove_placement_group(group)
    return seen


def main() -> None:
    nodes = [{"num_cpus": 1, "num_gpus": count, "node_name": name} for name, count in (("seven", 7), ("eight", 8))]
    with local_ray(nodes, environment={"PYTHONPATH": str(Path(__file__).parent)}):
        report = {
            "nodes": [asdict(node) for node in alive_nodes()],
            "hidden": views(2, ray_options(PoolConfig(accelerator=MI355X, tp=2))),
            "not_hidden": views(
                3, {"runtime_env": {"env_vars": {"RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES": "1"}}}
            ),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
