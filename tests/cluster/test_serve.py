"""`nfold serve`, `status`, `chat`, `scale` and `down` as a user runs them, on a local cluster."""

import re
from collections.abc import Iterator

import psutil
import pytest
from nfold.cluster.processes import session_processes
from nfold.cluster.run_state import find_run
from nfold_terminal import Terminal, finish

pytestmark = pytest.mark.cluster

QUESTION = "What is 347 + 582?"


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path_factory.mktemp("home"), "{local: {nodes: 1, cores_per_node: 1}}")
    yield terminal
    if terminal.is_up():
        terminal.run("down", "--now")


def test_a_service_from_start_to_end(terminal: Terminal) -> None:
    """One test in steps, as a cluster takes long to start."""
    terminal.run("serve", str(terminal.config))
    _check_status(terminal, ["node-0"])
    assert terminal.status()["models"]["sums"]["ledger"] is None
    assert re.fullmatch(
        r"sums on CPU, tp 1, under sums: [\d,]+ tokens/s on node-0\n",
        terminal.run("baseline", "--repeats", "1", "--window", "1"),
    )
    answer = terminal.run("chat", QUESTION)
    assert re.search(r"The answer is \d+\.", answer)

    assert "the API refused: " in terminal.refuse("chat", QUESTION, "--model", "nothing")
    assert "no model named 'nothing'" in terminal.refuse("scale", "nothing", "--nodes", "2")
    assert "running already" in terminal.refuse("serve", str(terminal.config))

    assert terminal.run("scale", "sums", "--nodes", "2") == "sums: 2 nodes, 2 replicas\n"
    _check_status(terminal, ["node-0", "node-1"])

    # Nodes that go neither cut an answer nor change it.
    asking = [terminal.start("chat", QUESTION) for _ in range(3)]
    assert terminal.run("scale", "sums", "--nodes", "1") == "sums: 1 nodes, 1 replicas\n"
    asking.append(terminal.start("chat", QUESTION))
    assert [finish(process) for process in asking] == [answer] * 4
    _check_status(terminal, ["node-0"])
    model = terminal.status()["models"]["sums"]
    assert model["baselines"][0]["workload"] == "sums"
    assert model["ledger"]["saturated"] is False

    run = find_run(terminal.home, None).local
    assert run is not None
    supervisor, processes = psutil.Process(run.supervisor_pid), session_processes(run.supervisor_pid)
    assert terminal.run("down") == "nfold is down\n"
    assert not supervisor.is_running()
    assert not any(process.is_running() for process in processes)
    assert "nothing is running" in terminal.refuse("status")


def _check_status(terminal: Terminal, nodes: list[str]) -> None:
    status = terminal.status()
    assert [node["name"] for node in status["nodes"]] == nodes
    assert status["pools"][0]["replicas"] == {"running": len(nodes)}
    assert "error" not in status
    text = terminal.run("status")
    assert all(node in text for node in nodes)
