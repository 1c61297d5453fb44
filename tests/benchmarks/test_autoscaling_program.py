"""Ray's real autoscaler adds a node of this machine under load and ends it again; no request notices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from nfold_terminal import free_port

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "autoscaling.py"


@pytest.mark.cluster
@pytest.mark.slow
def test_one_node_comes_and_goes() -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--short", "--port", str(free_port())],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert [event["name"] for event in figures["list"]] == [
        "add a simulated-MI300X-4 node",
        "end a simulated-MI300X-4 node",
    ]
    assert (figures["num_failed"], figures["num_cut"], figures["flaps"]) == (0, 0, 0), done.stdout
    assert figures["num_done"] > 0
    assert figures["simulated"]
