"""The controller on a live cluster: it adds a node, is killed while that comes, and goes on from what it kept."""

import time
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest
from nfold.cluster.config import load_config
from nfold.cluster.controller.decision import Action, Verdict
from nfold.cluster.controller.history import History, history_directory, read
from nfold.cluster.run_state import find_run
from nfold_terminal import Terminal

pytestmark = pytest.mark.cluster

CLUSTER = "{local: {simulated_nodes: [{accelerator: MI355X, accelerators: 2, max_nodes: 2}]}}"
MODELS = "[{name: big, path: simulated, pools: [{accelerator: MI355X}], engine: {engine: simulated}}]"
CONTROLLER = "controller: {enabled: true, tick_s: 1, models: {big: {min_nodes: 2, max_nodes: 2}}}\n"
PATIENCE_S = 90.0


@pytest.fixture
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path_factory.mktemp("home"), CLUSTER, MODELS)
    terminal.config.write_text(terminal.config.read_text() + CONTROLLER)
    yield terminal
    if terminal.is_up():
        terminal.run("down", "--now")


def until(condition: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.2)


def added(terminal: Terminal) -> list[Verdict]:
    kept = [entry.decided.decision for entry in read(history_directory(terminal.home, "nfold")) if entry.decided]
    verdicts = [verdict for decision in kept for verdict in decision.verdicts]
    return [verdict for verdict in verdicts if verdict.action is Action.ADD]


def controller_processes(terminal: Terminal) -> list[psutil.Process]:
    """Of this service's own cluster."""
    run = find_run(terminal.home, "nfold").local
    assert run is not None
    processes = psutil.Process(run.supervisor_pid).children(recursive=True)
    return [one for one in processes if one.is_running() and "nfold-controller" in " ".join(one.cmdline())]


def running_replicas(terminal: Terminal) -> int:
    (pool,) = terminal.status()["pools"]
    return pool["replicas"].get("running", 0)


@pytest.mark.slow
def test_killed_in_mid_scale_up_it_ends_what_it_began(terminal: Terminal) -> None:
    terminal.run("serve", str(terminal.config))
    until(lambda: bool(added(terminal)), "no node was asked for")
    (process,) = controller_processes(terminal)
    process.kill()
    decided = History(history_directory(terminal.home, "nfold")).resume().memory.decision
    url = f"http://127.0.0.1:{load_config(terminal.config).http.port}/v1/completions"
    asked = {"model": "big", "prompt": "Hello", "max_tokens": 5}
    assert httpx.post(url, json=asked, trust_env=False, timeout=30).status_code == 200

    until(lambda: running_replicas(terminal) == 2, "the second node does not serve")
    directory = history_directory(terminal.home, "nfold")
    until(lambda: History(directory).resume().memory.decision > decided + 2, "the controller did not come back")
    (verdict,) = added(terminal)
    assert sum(verdict.after.values()) == 2
    assert "big: add, 2 simulated-MI355X" in terminal.run("history")
    assert "no baseline says what a node brings" in " ".join(terminal.run("why").split())
    assert terminal.run("down") == "nfold is down\n"
