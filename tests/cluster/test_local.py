"""A real local cluster: nodes come and go, a second start is refused, and nothing stays behind."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from nfold.cluster import local
from nfold.cluster.config import LocalClusterConfig, NfoldConfig
from nfold.cluster.processes import YIELDING, session_processes
from nfold.cluster.run_state import LocalRun, RunState, find_run
from nfold.models.errors import StateError

pytestmark = pytest.mark.cluster

# In a process of its own, because Ray reads its environment once.
LIST_NODES = """
import json, ray
ray.init({address!r}, log_to_driver=False, logging_level="ERROR")
print(json.dumps([(n["NodeName"], n["Alive"], n["Resources"].get("CPU"), n["Labels"].get("nfold-cores"),
                   n["NodeManagerAddress"]) for n in ray.nodes()]))
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    if (tmp_path / "run" / "nfold" / "state.json").exists():
        local.stop(_running(tmp_path))


def _running(home: Path) -> LocalRun:
    run = find_run(home, None).local
    assert run is not None
    return run


def _start(home: Path) -> RunState:
    orders = local.plan_local(NfoldConfig.default(), LocalClusterConfig(nodes=1, cores_per_node=1), home)
    return local.start_local(orders, home, print)


def _ray_nodes(state: RunState) -> list[list[object]]:
    script = LIST_NODES.format(address=state.address)
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **state.environment}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_nodes_come_and_go_and_nothing_stays(home: Path) -> None:
    state = _start(home)
    run = _running(home)
    assert [node.name for node in run.nodes] == ["node-0"]
    autogroup = Path(f"/proc/{run.supervisor_pid}/autogroup")
    assert not autogroup.exists() or autogroup.read_text().endswith(f" nice {YIELDING}\n")

    with pytest.raises(StateError, match=r"named nfold is running already"):
        _start(home)

    added = local.add_node(run)
    assert added.name == "node-1"
    alive = [node[:1] + node[2:] for node in _ray_nodes(state) if node[1]]
    assert sorted(map(str, alive)) == sorted(
        str([node.name, 1.0, str(node.cores[0]), "127.0.0.1"]) for node in _running(home).nodes
    )

    local.remove_node(run, "node-1")
    assert [node.name for node in _running(home).nodes] == ["node-0"]
    with pytest.raises(StateError, match="KeyError: 'node-7'"):
        local.remove_node(run, "node-7")

    processes = session_processes(run.supervisor_pid)
    assert len(processes) > 5
    local.stop(_running(home))
    assert session_processes(run.supervisor_pid) == []
    assert not any(process.is_running() for process in processes)
    assert not psutil.pid_exists(run.supervisor_pid)
    assert not run.socket.parent.exists()
    with pytest.raises(StateError, match="nothing is running"):
        find_run(home, None)


def test_sigterm_ends_all_and_a_killed_supervisor_is_cleaned_after(home: Path) -> None:
    _start(home)
    supervisor = psutil.Process(_running(home).supervisor_pid)
    processes = session_processes(supervisor.pid)
    supervisor.terminate()
    supervisor.wait(30)
    assert not any(process.is_running() for process in processes)

    _start(home)
    supervisor = psutil.Process(_running(home).supervisor_pid)
    processes = session_processes(supervisor.pid)
    supervisor.kill()
    supervisor.wait(30)
    with pytest.raises(StateError, match="its supervisor ended without"):
        find_run(home, None)
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []


def test_a_start_that_fails_tells_why_and_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REDIS_ADDRESS", "nonsense")
    with pytest.raises(StateError, match=r"did not start: \w+Error"):
        _start(home)
    with pytest.raises(StateError, match="nothing is running"):
        find_run(home, None)
