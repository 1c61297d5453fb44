"""What the compiler makes of the kernels for each accelerator, read from its machine code. No GPU is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMPILE = Path(__file__).with_name("compile_kernels.py")
# A prefill's 128 rows fill wgmma's 64 per warp group. A decode has the heads of one group, 8 of 16 rows: mma.sync.
MATRIX = {
    "sm_90": {"prefill": "wgmma.mma_async", "decode": "mma.sync"},
    "gfx942": {"prefill": "v_mfma", "decode": "v_mfma"},
    "gfx950": {"prefill": "v_mfma", "decode": "v_mfma"},
}
MOST_VECTOR_SPILLS = 4
# Scalar registers spill into lanes of vector registers, not to memory: a few cost little.
MOST_SCALAR_SPILLS = 16


@pytest.mark.parametrize("architecture", MATRIX)
def test_matrix_instructions_and_no_spills(architecture: str, tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, COMPILE, architecture], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    variants: list[dict[str, Any]] = json.loads(done.stdout)
    assert {variant["what"].split(":")[0] for variant in variants} == {
        "decode_inputs",
        "rms_norm",
        "quantize_rows",
        "silu_and_mul",
        "silu_and_mul_to_fp8",
        "rotary_and_write_kv",
        "greedy",
        "sample",
        "attend",
        "merge",
    }
    for variant in variants:
        what = variant["what"]
        assert variant["num_vector_spills"] <= MOST_VECTOR_SPILLS, variant
        assert variant["num_scalar_spills"] <= MOST_SCALAR_SPILLS, variant
        if what.startswith("attend"):
            kind = "decode" if "decode" in what else "prefill"
            assert variant["matrix"], variant
            assert all(name.startswith(MATRIX[architecture][kind]) for name in variant["matrix"]), variant
