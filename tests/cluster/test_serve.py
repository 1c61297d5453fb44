"""`nfold serve`, `status`, `chat`, `scale` and `down` as a user runs them, on a local cluster."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from nfold.cluster.processes import session_processes
from nfold.cluster.run_state import find_run

pytestmark = pytest.mark.cluster

NFOLD = Path(sys.executable).parent / "nfold"
QUESTION = "What is 347 + 582?"


class Terminal:
    """A user's shell with an nfold home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ports = [_free_port(), _free_port()]
        self.config = home / "nfold.yaml"
        self.config.write_text(
            "models: [{name: sums, engine: {max_num_seqs: 8, kv_cache_bytes: 16777216}}]\n"
            "cluster: {local: {nodes: 1, cores_per_node: 1}}\n"
            f"http: {{port: {self.ports[0]}}}\nmetrics: {{port: {self.ports[1]}}}\n"
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [NFOLD, *arguments],
            env={**os.environ, "NFOLD_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0) -> str:
        """Standard output, and standard error where failure is expected."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=200)
        assert process.returncode == code, err
        assert "Traceback" not in err, err
        return err if code else out

    def status(self) -> dict[str, Any]:
        return json.loads(self.run("status", "--json"))


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path_factory.mktemp("home"))
    terminal.run("serve", str(terminal.config))
    yield terminal
    if (terminal.home / "run" / "nfold" / "state.json").exists():
        terminal.run("down", "--now")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_service_from_start_to_end(terminal: Terminal) -> None:
    """One test in steps, as a cluster takes long to start."""
    status = terminal.status()
    assert [node["name"] for node in status["nodes"]] == ["node-0"]
    assert status["pools"][0]["replicas"] == {"running": 1}
    assert status["models"]["sums"]["replicas"][0]["node"] == "node-0"
    assert "error" not in status

    answer = terminal.run("chat", QUESTION)
    assert re.search(r"The answer is \d+\.", answer)

    assert "no model named 'nothing'" in terminal.run("scale", "nothing", "--nodes", "2", code=1)
    assert "running already" in terminal.run("serve", str(terminal.config), code=1)

    assert terminal.run("scale", "sums", "--nodes", "2") == "sums: 2 nodes, 2 replicas\n"
    status = terminal.status()
    assert [node["name"] for node in status["nodes"]] == ["node-0", "node-1"]
    assert status["pools"][0]["replicas"] == {"running": 2}

    _ask_while_scaling_down(terminal, answer)
    status = terminal.status()
    assert [node["name"] for node in status["nodes"]] == ["node-0"]
    assert status["pools"][0]["replicas"] == {"running": 1}

    text = terminal.run("status")
    assert "node-0" in text
    assert "sums" in text

    run = find_run(terminal.home, None).local
    assert run is not None
    supervisor, processes = psutil.Process(run.supervisor_pid), session_processes(run.supervisor_pid)
    assert terminal.run("down") == "nfold is down\n"
    assert not supervisor.is_running()
    assert not any(process.is_running() for process in processes)
    assert "nothing is running" in terminal.run("status", code=1)


def _ask_while_scaling_down(terminal: Terminal, expected: str) -> None:
    """No answer is cut or changed by nodes that go."""
    asking = [terminal.start("chat", QUESTION) for _ in range(3)]
    assert terminal.run("scale", "sums", "--nodes", "1") == "sums: 1 nodes, 1 replicas\n"
    asking.append(terminal.start("chat", QUESTION))
    for process in asking:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out == expected
