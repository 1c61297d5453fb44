"""Over real ssh the controller adds a listed host under load and removes it when idle; no request notices."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "listed_hosts.py"
TOOLS = ("ip", "unshare", "ssh", "rsync", "/usr/sbin/sshd")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]


@pytest.mark.cluster
@pytest.mark.skipif(os.geteuid() != 0 or bool(MISSING), reason=f"needs root and {', '.join(MISSING or TOOLS)}")
def test_the_controller_adds_and_removes_a_listed_host() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert [(move["before"], move["nodes"]) for move in figures["list"]] == [(0, 1), (1, 0)], done.stdout
    assert (figures["num_failed"], figures["num_cut"]) == (0, 0), figures["first_error"]
    assert figures["num_done"] > 0
    assert figures["decisions"] >= 2
    assert figures["passed_over"] == ["10.77.0.9"]
