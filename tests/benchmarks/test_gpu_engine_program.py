"""`gpu_engine.py` from end to end, as it runs where no GPU is."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tiny(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks/gpu_engine.py", "--tiny", "--keep", tmp_path]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert all(row["ok"] for row in result["kernels"].values())
    assert {name.split(",")[0] for name in result["kernels"]} >= {"add_rms_norm", "paged_attention", "argmax"}
    assert result["graphs"]["equal"] == result["graphs"]["answers"]
    assert result["tokens_per_s"] > 0
    assert result["settings"]["quantization"] == "fp8"
    assert result["tiny"]
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text()) == result
