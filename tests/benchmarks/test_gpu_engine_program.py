"""`gpu_engine.py` from end to end, as it runs where no GPU is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_engine import going_on

ROOT = Path(__file__).parents[2]


def run(*args: str | Path) -> dict[str, Any]:
    command = [sys.executable, ROOT / "benchmarks/gpu_engine.py", "--tiny", *args]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_tiny(tmp_path: Path) -> None:
    result = run("--keep", tmp_path)
    assert all(row["ok"] for row in result["kernels"].values())
    assert {name.split(",")[0] for name in result["kernels"]} >= {"add_rms_norm", "paged_attention", "argmax"}
    assert result["graphs"]["equal"] == result["graphs"]["answers"]
    assert result["tokens_per_s"] > 0
    assert result["settings"]["quantization"] == "fp8"
    assert result["tiny"]
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text()) == result


def test_no_kernel_begins_when_time_is_over() -> None:
    assert run("--only", "kernels", "--seconds", "0")["kernels"] == {}


def test_a_part_that_fails_loses_nothing_of_the_others() -> None:
    result: dict[str, object] = {"kernels": {}}
    wrong = ["a kernel"]
    with going_on(result, wrong, "engine"):
        raise RuntimeError("out of memory")
    assert result == {"kernels": {}, "engine_raised": "RuntimeError('out of memory')"}
    assert wrong == ["a kernel", "engine"]
