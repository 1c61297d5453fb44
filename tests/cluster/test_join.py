"""A service on a Ray cluster that nfold did not start: it joins, scales with its nodes, and leaves it running."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from nfold.cluster import local
from nfold.cluster.config import LocalClusterConfig, NfoldConfig
from nfold.cluster.run_state import LocalRun, RunState, find_run
from nfold_terminal import Terminal, finish

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunState]:
    """A Ray cluster of one node, without a service."""
    home: Path = tmp_path_factory.mktemp("cluster")
    orders = local.plan_local(NfoldConfig.default(), LocalClusterConfig(nodes=1, cores_per_node=1), home)
    yield local.start_local(orders, home, print)
    local.stop(_supervised(find_run(home, None)))


def _supervised(state: RunState) -> LocalRun:
    assert state.local is not None
    return state.local


@pytest.fixture(scope="module")
def terminal(cluster: RunState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path_factory.mktemp("home"), f"{{address: '{cluster.address}'}}")
    yield terminal
    if terminal.is_up():
        terminal.run("down")


def test_a_service_joins_scales_and_leaves(cluster: RunState, terminal: Terminal) -> None:
    """One test in steps, as a cluster takes long to start."""
    terminal.run("serve", str(terminal.config))
    status = terminal.status()
    assert status["cluster"] == cluster.address
    assert status["pools"][0]["replicas"] == {"running": 1}

    refusal = terminal.refuse("scale", "sums", "--nodes", "2", "--timeout", "1")
    assert "1 of 2 nodes are there after 1 s and serve sums--CPU" in refusal

    scaling = terminal.start("scale", "sums", "--nodes", "2", "--timeout", "120")
    local.add_node(_supervised(cluster))  # as an autoscaler would
    assert finish(scaling) == "sums: 2 nodes, 2 replicas\n"

    assert terminal.run("scale", "sums", "--nodes", "1") == "sums: 1 nodes, 1 replicas\n"
    assert [node["name"] for node in terminal.status()["nodes"]] == ["node-0", "node-1"]

    assert terminal.run("down") == "nfold is down\n"
    assert "nothing is running" in terminal.refuse("status")
    terminal.run("serve", str(terminal.config))  # the cluster is still there, with both nodes
    assert terminal.status()["pools"][0]["replicas"] == {"running": 2}
