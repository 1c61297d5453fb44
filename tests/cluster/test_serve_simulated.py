"""`nfold serve` with simulated nodes: partial ones are used, faults hit where they should, all says `simulated`."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from nfold.cluster.config import load_config
from nfold_terminal import Terminal

pytestmark = pytest.mark.cluster

CLUSTER = (
    "{local: {simulated_nodes: [{accelerator: MI300X, nodes: 2, accelerators: 3, hosts_per_ray_node: 2}, "
    "{accelerator: MI300X, accelerators: 2}]}}"
)
# The third engine of each node dies; the partial node has none.
MODELS = (
    "[{name: big, path: simulated, pools: [{accelerator: MI300X}], engine: {engine: simulated, simulated: "
    "{scenario: interactive, faults: [{kind: die, at_s: 5, engines: [2]}]}}}]"
)
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path_factory.mktemp("home"), CLUSTER, MODELS)
    yield terminal
    if terminal.is_up():
        terminal.run("down", "--now")


def replicas_up(status: dict[str, Any]) -> dict[str, int]:
    """Engines that answer, by node."""
    up: dict[str, int] = {}
    for replica in status["models"]["big"]["replicas"]:
        up[replica["node"]] = up.get(replica["node"], 0) + replica["up"]
    return up


def test_simulated_nodes_from_start_to_end(terminal: Terminal) -> None:
    """One test in steps, as a cluster takes long to start."""
    terminal.run("serve", str(terminal.config))
    status = terminal.status()
    assert [node["has"] for node in status["nodes"]] == [
        "6 x MI300X, simulated (2 nodes)",
        "2 x MI300X, simulated",
    ]
    assert status["pools"][0]["replicas"] == {"running": 3}
    assert status["models"]["big"]["simulated"] is True
    assert {replica["engine"] for replica in status["models"]["big"]["replicas"]} == {"simulated"}
    assert "big (simulated)" in " ".join(terminal.run("status").split())

    url = f"http://127.0.0.1:{load_config(terminal.config).http.port}/v1"
    assert httpx.get(f"{url}/models", trust_env=False).json()["data"][0]["simulated"] is True
    asked = {"model": "big", "prompt": "Hello", "max_tokens": 7, "seed": 1}
    answer = httpx.post(f"{url}/completions", json=asked, trust_env=False, timeout=30).json()
    assert len(answer["choices"][0]["text"]) == answer["usage"]["completion_tokens"] == 7

    _until(terminal, {"node-0": 4, "node-1": 2})
    again = httpx.post(f"{url}/completions", json=asked, trust_env=False, timeout=30).json()
    assert again["choices"] == answer["choices"]
    assert "what its config says" in terminal.refuse("scale", "big", "--nodes", "1")
    assert terminal.run("down") == "nfold is down\n"


def _until(terminal: Terminal, wanted: dict[str, int]) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while (up := replicas_up(terminal.status())) != wanted:
        assert time.monotonic() < give_up_at, up
        time.sleep(0.5)
