"""Placement on AMD nodes as Ray sees them, over a stand-in for amdsmi: which bundle lands where, and its device."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nfold.deployments.config import PoolConfig
from nfold.deployments.placement import NodeResources, check_fit, replicas_that_fit
from nfold.models.errors import PlacementError

pytestmark = pytest.mark.cluster

MI355X = "AMD-Instinct-MI355X-OAM"
AMD = Path(__file__).parent.parent / "support" / "amd"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    program = [sys.executable, "-W", "ignore", str(AMD / "place_on_amd.py")]
    done = subprocess.run(program, env=os.environ | {"PYTHONPATH": str(AMD)}, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


def test_nodes_are_seen_with_their_healthy_accelerators(report: dict[str, Any]) -> None:
    nodes = [NodeResources(**node) for node in report["nodes"]]
    assert [(node.name, node.total["GPU"]) for node in nodes] == [("seven", 7), ("eight", 8)]
    pool = PoolConfig(accelerator=MI355X, tp=2)
    assert replicas_that_fit(pool, nodes) == 3 + 4
    assert check_fit({"m": pool}, nodes) == {"m": 7}
    with pytest.raises(PlacementError, match=r"seven has 7 free of 7 \(1 too few\)"):
        check_fit({"m": PoolConfig(accelerator=MI355X, tp=8, num_replicas=2)}, nodes)
    with pytest.raises(PlacementError, match=rf"seven has {MI355X}, not AMD-Instinct-MI300X-OAM"):
        check_fit({"m": PoolConfig(accelerator="AMD-Instinct-MI300X-OAM")}, nodes)


def test_ray_hides_all_but_the_bundles_device(report: dict[str, Any]) -> None:
    views = report["hidden"]
    assert len({view["ids"][0] for view in views}) == 2
    assert len({view["node"] for view in views}) == 1
    for view in views:
        assert view["environment"] == {"HIP_VISIBLE_DEVICES": view["ids"][0]}
        assert (view["device"], view["num_visible"]) == ("cuda:0", 1)


def test_where_ray_hides_nothing_the_device_is_chosen_by_its_id(report: dict[str, Any]) -> None:
    views = report["not_hidden"]
    assert len({view["ids"][0] for view in views}) == 3
    assert len({view["node"] for view in views}) == 1
    for view in views:
        assert view["environment"] == {}
        assert (view["device"], view["num_visible"]) == (f"cuda:{view['ids'][0]}", None)
